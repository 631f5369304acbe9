"""Resize images on the device where they are: by bilinear interpolation, or to exactly the bytes that Pillow gives."""

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
    """Return images resized to squares of `size` pixels. Images that have this size already keep their values.

    Args:
        image: [n, bands, height, width]; for `pillow` whole numbers from 0 to 255.
        size: Side of the result in pixels.
        how: `centers` interpolates with antialiasing if the images shrink. `corners` aligns the centers of the corner
            pixels, without antialiasing. `pillow` antialiases as Pillow does, and rounds to bytes.

    Returns:
        [n, bands, size, size] float32.
    """
    # Return early, because an interpolation to the same size would still take time to copy the batch.
    if image.shape[-1] == size and image.shape[-2] == size:
        return image.float()
    if how == "pillow":
        return _pillow(image, size)
    if how == "corners":
        return functional.interpolate(image.float(), (size, size), mode="bilinear", align_corners=True)
    # Antialias images that shrink: if they become several times smaller, plain interpolation ignores most pixels.
    shrinks = image.shape[-1] > size
    return functional.interpolate(image.float(), (size, size), mode="bilinear", align_corners=False, antialias=shrinks)


def _pillow(image: Tensor, size: int) -> Tensor:
    """Return images [n, bands, height, width] of whole numbers 0..255, resized to squares of `size` pixels, as float32.

    The values are those of Pillow's bilinear filter: first rows, then columns are resized, and each result is rounded.
    """
    # Use float64: sums of these whole numbers are exact in it, so the result is the same on every device.
    image = image.double()
    for axis in (-1, -2):
        if image.shape[axis] != size:
            weights = torch.from_numpy(_weights(image.shape[axis], size)).to(image.device)
            image = image @ weights.T if axis == -1 else weights @ image
            image = ((image + _ONE // 2) / _ONE).floor_().clamp_(0, 255)
    return image.float()


@lru_cache(maxsize=16)
def _weights(source: int, size: int) -> NDArray[np.float64]:
    """Return the weights of `source` pixels in each of `size` new pixels, [size, source], in units of 2**-22.

    They are those of Pillow's bilinear (triangle) filter, which is wider if the image shrinks.
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
