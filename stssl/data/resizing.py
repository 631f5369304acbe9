"""Resize images on their device: by interpolation between pixels, or to the same bytes as Pillow."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Resize = Literal["centers", "corners", "pillow"]
"""Ways to resize: align the edges of both images, align the centers of their corner pixels, or give Pillow's bytes."""

_ONE = 1 << 22
"""Weight 1 of Pillow's arithmetic for bytes: it rounds weights to multiples of 2**-22."""


def resize_images(image: Tensor, size: int, how: Resize) -> Tensor:
    """Resample images to a square of another size. Images of this size are returned unchanged.

    Args:
        image: [n, bands, height, width]; for `pillow` whole numbers from 0 to 255.
        size: Side of the result in pixels.
        how: `centers` antialiases if the images shrink, `corners` never. `pillow` antialiases, and rounds to bytes.

    Returns:
        [n, bands, size, size] float32.
    """
    # An interpolation to the same size would still copy the batch.
    if image.shape[-1] == size and image.shape[-2] == size:
        return image.float()
    if how == "pillow":
        return _pillow(image, size)
    if how == "corners":
        return functional.interpolate(image.float(), (size, size), mode="bilinear", align_corners=True)
    # If images become several times smaller, an interpolation without this filter skips pixels.
    shrinks = image.shape[-1] > size
    return functional.interpolate(image.float(), (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


def _pillow(image: Tensor, size: int) -> Tensor:
    """Resize whole numbers from 0 to 255 as Pillow's bilinear filter does: first rows, then columns, each rounded."""
    # Sums of these whole numbers are exact in float64. So the result is the same on every device.
    image = image.double()
    for axis in (-1, -2):
        if image.shape[axis] != size:
            weights = torch.from_numpy(_weights(image.shape[axis], size)).to(image.device)
            image = image @ weights.T if axis == -1 else weights @ image
            image = ((image + _ONE // 2) / _ONE).floor_().clamp_(0, 255)
    return image.float()


@lru_cache(maxsize=16)
def _weights(source: int, size: int) -> NDArray[np.float64]:
    """Return the weights [size, source] of a triangle filter, in units of 2**-22.

    To shrink images, the filter is wider.
    """
    scale = source / size
    reach = max(scale, 1.0)
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.trunc(center - reach + 0.5), 0)
    last = np.minimum(np.trunc(center + reach + 0.5), source)
    place = np.arange(source)
    weights = np.maximum(1 - np.abs((place - center[:, None] + 0.5) / reach), 0)
    weights[(place < first[:, None]) | (place >= last[:, None])] = 0
    weights /= weights.sum(1, keepdims=True)
    found: NDArray[np.float64] = np.trunc(weights * _ONE + 0.5)
    return found
