"""The newest rows of something, and exact quantiles over them without sorting."""

import torch
from torch import Tensor, nn


class Ring(nn.Module):
    """The last `rows` values of each of C columns, in persistent buffers; values are not negative."""

    def __init__(self, columns: int, rows: int) -> None:
        """Start empty."""
        super().__init__()
        self.values: Tensor
        self.pushed: Tensor
        self.register_buffer("values", torch.zeros(columns, rows))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def push(self, rows: Tensor) -> None:
        """Overwrite the oldest rows with [B, C]; of more rows than fit, the last."""
        size = self.values.shape[1]
        kept = rows[-size:].T
        first = self.pushed + len(rows) - kept.shape[1]
        self.values[:, (first + torch.arange(kept.shape[1], device=rows.device)) % size] = kept
        self.pushed.add_(len(rows))

    def quantile(self, share: Tensor) -> Tensor:
        """Of each column the value at index clamp(floor(n * share), 0, n - 1) of its n values in ascending order.

        Args:
            share: [C] float64.
        """
        size = self.values.shape[1]
        n = self.pushed.clamp_max(size)
        rank = (n * share).floor().long().minimum(n - 1).clamp_min(0)
        filled = torch.arange(size, device=n.device) < n
        return order_statistic(torch.where(filled, self.values, torch.inf), rank)


def order_statistic(values: Tensor, rank: Tensor) -> Tensor:
    """The rank-th smallest of each row, counted from 0, without sorting.

    Bisects the integers that the bits of non-negative floats spell, which are in the same order.

    Args:
        values: [C, n] float32, not negative; infinite where they should count as largest.
        rank: [C] integers in 0..n-1.
    """
    bits = values.view(torch.int32)
    low = torch.zeros(len(values), 1, dtype=torch.int32, device=values.device)
    high = torch.full_like(low, 0x7F800000)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = (bits <= middle).sum(1, keepdim=True) > rank[:, None]
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return low[:, 0].view(torch.float32)
