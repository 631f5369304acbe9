"""Store the newest rows of numbers in a ring buffer, and compute exact quantiles of them without sorting."""

import math

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """Store the newest rows of numbers in a ring buffer that checkpoints save. Numbers must not be negative."""

    def __init__(self, columns: int, rows: int) -> None:
        """Create an empty ring buffer.

        Args:
            columns: Number of values in a row.
            rows: Number of rows to keep.
        """
        super().__init__()
        # Use a plain number, not a buffer: to read a buffer, the host would have to wait for the device.
        self.pushed = 0
        self.values: Tensor
        self.register_buffer("values", torch.zeros(columns, rows))

    def get_extra_state(self) -> Tensor:
        """Return the number of rows pushed so far, to save it in the state dict."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of pushed rows from a state dict."""
        self.pushed = int(state)

    @property
    def filled(self) -> int:
        """Return how many rows the ring buffer holds now."""
        return min(self.pushed, self.values.shape[1])

    def push(self, rows: Tensor) -> None:
        """Overwrite the oldest rows with new rows [rows, columns].

        If there are more new rows than the ring can hold, store only the last of them.
        """
        size = self.values.shape[1]
        kept = rows[-size:].T
        first = self.pushed + len(rows) - kept.shape[1]
        self.values[:, (first + torch.arange(kept.shape[1], device=rows.device)) % size] = kept
        self.pushed += len(rows)

    def quantile(self, share: Tensor) -> Tensor:
        """Compute one quantile of each column over the rows in the ring.

        Of n values in ascending order, this is the value at index clamp(floor(n * share), 0, n - 1).

        Args:
            share: [columns] shares as float64, 0..1.

        Returns:
            [columns] quantiles as float32.
        """
        n = self.filled
        return order_statistic(self.values[:, :n], (n * share).floor().long().clamp(0, n - 1))


def order_statistic(values: Tensor, rank: Tensor) -> Tensor:
    """Find for each row of a table the value that would be at position `rank` after sorting, without sorting.

    Use bisection over the bits of the floats, read as integers. Non-negative floats have the same order as their bits,
    so 31 halvings find a value exactly.

    Args:
        values: [columns, n] float32, n values for each column of the ring; not negative.
        rank: [columns] positions, 0..n-1.

    Returns:
        [columns] float32, one value of each row.
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
"""Bits of the float32 "infinity", read as an integer."""
