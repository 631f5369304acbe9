"""Choose the memory format, channels first or last, of a network's kernels and its images."""

import torch
from torch import nn

SAFE_CHANNELS = 16
"""Number of input channels in each group from which channels_last is safe for strided 1x1 convolutions on the CPU.

With fewer channels, oneDNN 3.13 (torch 2.15) writes past its workspace when it computes the gradient of the kernel.
This damages the heap. The result is "double free", SIGSEGV, a hang, or wrong numbers (uxlfoundation/oneDNN issue 6035).

The bound was measured with memory that ends at a guard page (AVX-512, fp32, stride 2): 27 numbers of input channels
from 1 to 128, with 10 numbers of output channels from 1 to 64 each. At 64 px and more, 2 to 15 input channels always
write past the workspace; 16 to 128 never do at any size. Below 48 px the write stays within the block. With AVX2 the
bound is 8.
"""


def memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory format for a network's kernels and images: `channels_last`, unless this can damage memory.

    It can on the CPU, in strided 1x1 convolutions with fewer than `SAFE_CHANNELS` input channels per group, because of
    an error in oneDNN. A network with such a convolution gets `contiguous_format` there.

    Args:
        network: Network, or a module with several networks that get the same images.
        device: Device that the network will run on.
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
    """Move a network, in place, to a device and into a safe memory format for that device. Return this format.

    It is `channels_last`, or `contiguous_format` where `channels_last` could damage memory.
    """
    chosen = memory_format(network, device)
    network.to(device)
    network.to(memory_format=chosen)
    return chosen
