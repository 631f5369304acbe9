"""Keep the newest rows of a stream, and compute their exact quantiles without sorting."""

import math

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """Keep the last rows of C columns in a persistent buffer. Values must not be negative."""

    def __init__(self, columns: int, rows: int) -> None:
        """Make an empty ring.

        Args:
            columns: Number of columns, C.
            rows: Number of rows to keep.
        """
        super().__init__()
        # Use a plain number, not a buffer: the host would wait for the device to read a buffer.
        self.pushed = 0
        self.values: Tensor
        self.register_buffer("values", torch.zeros(columns, rows))

    def get_extra_state(self) -> Tensor:
        """Return the number of pushed rows for the state dict. This number is not in a buffer."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of pushed rows from a state dict."""
        self.pushed = int(state)

    @property
    def filled(self) -> int:
        """Return how many rows the ring holds."""
        return min(self.pushed, self.values.shape[1])

    def push(self, rows: Tensor) -> None:
        """Overwrite the oldest rows with rows [B, C]. If B is larger than the ring, keep only the last rows."""
        size = self.values.shape[1]
        kept = rows[-size:].T
        first = self.pushed + len(rows) - kept.shape[1]
        self.values[:, (first + torch.arange(kept.shape[1], device=rows.device)) % size] = kept
        self.pushed += len(rows)

    def quantile(self, share: Tensor) -> Tensor:
        """Return one quantile of each column.

        Of n values in ascending order, this is the value at index clamp(floor(n * share), 0, n - 1).

        Args:
            share: [C] shares as float64, 0..1.

        Returns:
            [C] quantiles as float32.
        """
        n = self.filled
        return order_statistic(self.values[:, :n], (n * share).floor().long().clamp(0, n - 1))


def order_statistic(values: Tensor, rank: Tensor) -> Tensor:
    """Find the value at position `rank` of each row in ascending order, without sorting.

    Use bisection over the bits of the floats, read as integers. Non-negative floats have the same order as their bits,
    so 31 halvings find a value exactly.

    Args:
        values: [C, n] float32, n values for each of C columns of the ring; not negative.
        rank: [C] positions, 0..n-1.

    Returns:
        [C] float32, one value of each row.
    """
    low = torch.zeros(len(values), 1, dtype=torch.int32, device=values.device)
    high = torch.full_like(low, _INFINITY)
    wanted = rank[:, None]
    for _ in range(math.ceil(math.log2(_INFINITY))):
        middle = low + (high - low) // 2
        reached = (values <= middle.view(torch.float32)).sum(1, keepdim=True, dtype=torch.int32) > wanted
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    return low[:, 0].view(torch.float32)


_INFINITY = 0x7F800000
"""Bits of positive infinity, the largest float."""
