"""The newest rows of something, and exact quantiles over them without sorting."""

import math

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """The last `rows` values of each of C columns, in a persistent buffer; values are not negative.

    How many rows were pushed is a plain number, so that nothing waits for the device to learn it.
    """

    def __init__(self, columns: int, rows: int) -> None:
        """Start empty."""
        super().__init__()
        self.pushed = 0
        self.values: Tensor
        self.register_buffer("values", torch.zeros(columns, rows))

    def get_extra_state(self) -> Tensor:
        """Return the position in the ring, which the state dict keeps beside the buffer."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.pushed = int(state)

    @property
    def filled(self) -> int:
        """Count the rows that were pushed, at most the capacity."""
        return min(self.pushed, self.values.shape[1])

    def push(self, rows: Tensor) -> None:
        """Overwrite the oldest rows with [B, C]; of more rows than fit, the last."""
        size = self.values.shape[1]
        kept = rows[-size:].T
        first = self.pushed + len(rows) - kept.shape[1]
        self.values[:, (first + torch.arange(kept.shape[1], device=rows.device)) % size] = kept
        self.pushed += len(rows)

    def quantile(self, share: Tensor) -> Tensor:
        """Take each column's value at index clamp(floor(n * share), 0, n - 1) of its n values in ascending order.

        Args:
            share: [C] float64.
        """
        n = self.filled
        return order_statistic(self.values[:, :n], (n * share).floor().long().clamp(0, n - 1))


def order_statistic(values: Tensor, rank: Tensor) -> Tensor:
    """The rank-th smallest of each row, counted from 0, without sorting.

    Bisects the integers that the bits of non-negative floats spell: they are in the same order, and 31 halvings find
    one exactly.

    Args:
        values: [C, n] float32, not negative.
        rank: [C] integers in 0..n-1.
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
"""The bits of positive infinity, the largest float."""
