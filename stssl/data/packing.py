"""Put many small tensors into one buffer, to copy them to a device in one transfer."""

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNED = 16
"""Multiple of bytes at which each tensor begins: that of the widest type."""


def packed(tensors: Sequence[Tensor], pinned: bool = False) -> Tensor:
    """Copy tensors one after the other into a new one-dimensional tensor of bytes (the buffer), and return it.

    Args:
        tensors: Tensors in host memory.
        pinned: True to put the buffer into pinned memory, from which a GPU copies while the host continues.
    """
    buffer = torch.empty(_starts(tensors)[-1], dtype=torch.uint8, pin_memory=pinned)
    for tensor, copy in zip(tensors, unpacked(buffer, tensors), strict=True):
        copy.copy_(tensor)
    return buffer


def unpacked(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that a buffer of `packed` holds. They share the memory of the buffer.

    Args:
        buffer: The buffer, or a copy of it on any device.
        tensors: The tensors that were packed. Their types and shapes say how to read the buffer.
    """
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(_starts(tensors), tensors, strict=False)
    ]


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Return the byte at which each tensor begins in the buffer that holds them.

    The last number is the buffer's size.
    """
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNED) * _ALIGNED)
    return starts
