"""Store the newest rows of numbers, such as predictions, in a ring buffer, and compute their exact quantiles."""

import math

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """Store the newest rows of numbers, such as predicted probabilities, in a ring buffer that checkpoints save.

    Numbers must not be negative.
    """

    def __init__(self, columns: int, rows: int) -> None:
        """Create an empty ring buffer.

        Args:
            columns: Number of values in a row.
            rows: Largest number of rows in the buffer. Once it is full, new rows replace the oldest ones.
        """
        super().__init__()
        # Use a plain number, not a tensor on the GPU: each time that Python reads such a tensor, it waits for the GPU.
        self.pushed = 0
        self.values: Tensor
        self.register_buffer("values", torch.zeros(columns, rows))

    def get_extra_state(self) -> Tensor:
        """Return the number of rows that were ever pushed, so that PyTorch saves it in the state dict."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the number of rows that were ever pushed to the value in a state dict, when PyTorch loads one."""
        self.pushed = int(state)

    @property
    def filled(self) -> int:
        """Return the number of rows that are in the ring buffer now."""
        return min(self.pushed, self.values.shape[1])

    def push(self, rows: Tensor) -> None:
        """Store new rows [n, columns] in the ring buffer. If it is full, they replace the oldest rows.

        If there are more new rows than the buffer can hold, store only the last of them.
        """
        size = self.values.shape[1]
        kept = rows[-size:].T
        first = self.pushed + len(rows) - kept.shape[1]
        self.values[:, (first + torch.arange(kept.shape[1], device=rows.device)) % size] = kept
        self.pushed += len(rows)

    def quantile(self, share: Tensor) -> Tensor:
        """Compute one quantile of each column over the rows in the ring buffer, which must have at least one row.

        Of n values in ascending order, this is the value at index clamp(floor(n * share), 0, n - 1).

        Args:
            share: [columns] quantile to compute for each column, as float64, 0..1.

        Returns:
            [columns] quantiles as float32.
        """
        n = self.filled
        return order_statistic(self.values[:, :n], (n * share).floor().long().clamp(0, n - 1))


def order_statistic(values: Tensor, rank: Tensor) -> Tensor:
    """Return for each of several lists of numbers the number at position `rank` of the sorted list, without sorting it.

    Use bisection over the bits of the floats, read as integers. Non-negative floats have the same order as their bits,
    so that 31 halvings find a value exactly.

    Args:
        values: [columns, n] float32: a list of n numbers for each column of the ring buffer; not negative.
        rank: [columns] position in each sorted list, 0..n-1.

    Returns:
        [columns] float32, one number of each list.
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
