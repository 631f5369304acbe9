"""Apply RandAugment in the style of this package: one resampling does the crop and all geometric operations.

The photometric operations run one after another. An image may get an operation more than once.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Floats
from stssl.data.operations import Operation, Rounds, at_least, box_sums, count_levels, factor, group_rounds

GEOMETRIC = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_GEOMETRY = {"rotate": math.radians(30), "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}
STSSL_NUMBERS = 2
"""Number of random numbers for each operation. They choose its kind and its sign."""


def draw_stssl(numbers: Floats, m: float) -> tuple[Tensor, Tensor, Rounds]:
    """Choose operations and their signs for n images from random numbers.

    Args:
        numbers: [n, 2 * rounds] uniform numbers in [0, 1).
        m: Magnitude, 0 to 10.

    Returns:
        Three values. The inverse linear map [n, 2, 2] and the translation [n, 2] of all geometric operations together.
        For each round (an image gets one operation in each), by name of the photometric operation: row numbers [k] of
        the images and their amounts [k, 1].
    """
    choices = (numbers[:, ::STSSL_NUMBERS] * len(_NAMES)).astype(np.int64)
    signs = np.where(numbers[:, 1::STSSL_NUMBERS] < 0.5, -1.0, 1.0).astype(np.float64)
    magnitudes = m / 10 * signs
    matrix, offset = _compose(choices, magnitudes)
    names = [name if name in PHOTOMETRIC else None for name in _NAMES]
    rounds = group_rounds(choices, magnitudes[..., None].astype(np.float32), names)
    return torch.from_numpy(matrix).float(), torch.from_numpy(offset).float(), rounds


def _compose(choices: NDArray[np.int64], magnitudes: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Combine the geometric operations of each of n images into one inverse affine map.

    Return its matrices [n, 2, 2] and offsets [n, 2], for coordinates that go from -1 to 1 over the image. In each
    round, an image gets one operation, and the amounts of all others are 0. So one formula serves all operations.

    Args:
        choices: [n, rounds] positions in `_NAMES`, the list of all operations.
        magnitudes: [n, rounds] magnitudes from -1 to 1.
    """
    rows = len(choices)
    matrix, offset = np.tile(np.eye(2), (rows, 1, 1)), np.zeros((rows, 2))
    step, move = np.empty((rows, 2, 2)), np.empty((rows, 2))
    for i in range(choices.shape[1]):
        turn, shear_x, shear_y, move_x, move_y = (
            np.where(choices[:, i] == _NAMES.index(name), magnitudes[:, i] * scale, 0.0)
            for name, scale in _GEOMETRY.items()
        )
        cos, sin = np.cos(turn), np.sin(turn)
        step[:, 0, 0], step[:, 0, 1], step[:, 1, 0], step[:, 1, 1] = cos, shear_x - sin, shear_y + sin, cos
        move[:, 0], move[:, 1] = 2 * move_x, 2 * move_y
        # Multiply each new operation on the right: the map goes from the result to its source, so it applies the
        # inverse of the last operation first.
        offset += np.einsum("nij,nj->ni", matrix, move)
        matrix = matrix @ step
    return matrix, offset


# Operations work on whole batches: on a GPU, a loop over images would be slow.


def _blend(image: Tensor, base: Tensor, amounts: Tensor) -> Tensor:
    """Return images with changed contrast, color or sharpness: mixed with their means, gray versions or blurred copies.

    A positive amount moves the pixels away from `base`, a negative one toward it, as Pillow's `ImageEnhance` does.

    Args:
        image: [k, bands, height, width].
        base: What the images are mixed with.
        amounts: [k, c]; column 0 has the amounts from -1 to 1.
    """
    return base + (1 + 0.9 * factor(amounts)) * (image - base)


def _contrast(image: Tensor, amounts: Tensor) -> Tensor:
    return _blend(image, image.mean((1, 2, 3), keepdim=True), amounts)


def _color(image: Tensor, amounts: Tensor) -> Tensor:
    return _blend(image, image.mean(1, keepdim=True), amounts)


def _brightness(image: Tensor, amounts: Tensor) -> Tensor:
    return image * (1 + 0.9 * factor(amounts))


def _sharpness(image: Tensor, amounts: Tensor) -> Tensor:
    smooth = box_sums(functional.pad(image, (1, 1, 1, 1), mode="replicate")).add_(image, alpha=4).div_(13)
    return _blend(image, smooth, amounts)


def _posterize(image: Tensor, amounts: Tensor) -> Tensor:
    levels = 2.0 ** torch.round(8 - 4 * factor(amounts).abs())
    return torch.floor((image.clamp(0, 1) * 255).round() / 256 * levels) / levels * (256 / 255)


def _solarize(image: Tensor, amounts: Tensor) -> Tensor:
    return image.lerp(1 - image, at_least(image, 1 - factor(amounts).abs()))


def _autocontrast(image: Tensor, amounts: Tensor) -> Tensor:
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return image.lerp((image - low).div_((high - low).clamp_min_(1e-6)), (high > low).float())


def _equalize(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images with equalized histograms of each band, in 256 bins. Bands with a single value stay unchanged.

    The new value of a pixel is the number of darker pixels, divided by the number of pixels below the highest level.
    The operation needs no `amounts`.
    """
    bins = (image.clamp(0, 1) * 255).round().long().flatten(2)
    # Use 256 bins although values are floats, as Pillow does: public code of these algorithms equalizes by Pillow, and
    # results should be comparable.
    counts = count_levels(bins).float()
    below = (counts.cumsum(2) - counts).gather(2, bins)
    spread = bins.shape[2] - counts.gather(2, bins.amax(2, keepdim=True))
    equalized = below / spread.clamp_min(1)
    return image.lerp(equalized.view_as(image), (spread[..., None] > 0).float())


def _clipped(operation: Operation) -> Operation:
    return lambda image, amounts: operation(image, amounts).clamp_(0, 1)


PHOTOMETRIC: dict[str, Operation] = {
    "autocontrast": _clipped(_autocontrast),
    "brightness": _clipped(_brightness),
    "color": _clipped(_color),
    "contrast": _clipped(_contrast),
    "equalize": _clipped(_equalize),
    "posterize": _clipped(_posterize),
    "sharpness": _clipped(_sharpness),
    "solarize": _clipped(_solarize),
}
"""Photometric operations, on images with values in [0, 1]."""
_NAMES = (*GEOMETRIC, *PHOTOMETRIC)
