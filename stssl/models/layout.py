"""Choose the memory format of images and kernels, in one place for networks and their inputs."""

import torch
from torch import nn

SAFE_CHANNELS = 16
"""Input channels in each group that a strided 1x1 convolution must have for channels_last on the CPU.

With fewer, oneDNN 3.13 (torch 2.15) writes past its workspace when it computes the gradient of the kernel: the heap is
corrupted, which ends in "double free", SIGSEGV, a hang, or wrong numbers (uxlfoundation/oneDNN issue 6035).
Measured with memory that ends at a guard page, AVX-512, 27 numbers of input channels from 1 to 128 by 10 of outputs
from 1 to 64, fp32, stride 2: all of 2 to 15 input channels write beyond it at 64 px and more, none of 16 to 128 at any
size. Below 48 px the write stays within the block. With AVX2 the bound is 8.
"""


def memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Choose the memory format of a network's kernels and images: channels_last wherever that is safe.

    Args:
        network: Network, or several in one module, that get the same images.
        device: Device that it will run on.
    """
    if device.type == "cpu" and any(_overruns(part) for part in network.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _overruns(part: nn.Module) -> bool:
    if not isinstance(part, nn.Conv2d):
        return False
    strided_point = set(part.kernel_size) == {1} and max(part.stride) > 1
    return strided_point and part.in_channels // part.groups < SAFE_CHANNELS


def placed(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Move a network to its device in the format that is safe there, and return that format."""
    chosen = memory_format(network, device)
    network.to(device)
    network.to(memory_format=chosen)
    return chosen
