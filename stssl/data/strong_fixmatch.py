"""Apply RandAugment as FixMatch does: operations of Pillow on 8-bit values, with random magnitudes.

The images are uint8 tensors, and all operations give Pillow's bytes. Three bands are red, green and blue. For other
numbers of bands, which Pillow does not have, gray is the mean of all bands.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Floats, Ints
from stssl.data.operations import (
    LEVELS,
    Operation,
    Rounds,
    box_sums,
    count_levels,
    equalizing_table,
    factor,
    group_rounds,
)

RANGES: dict[str, tuple[float, float]] = {
    "AutoContrast": (0, 1),
    "Brightness": (0.05, 0.95),
    "Color": (0.05, 0.95),
    "Contrast": (0.05, 0.95),
    "Equalize": (0, 1),
    "Identity": (0, 1),
    "Posterize": (4, 8),
    "Rotate": (-30, 30),
    "Sharpness": (0.05, 0.95),
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "Solarize": (0, 256),
    "TranslateX": (-0.3, 0.3),
    "TranslateY": (-0.3, 0.3),
}
"""Lowest and highest magnitude of each operation."""
FIXMATCH_NAMES = tuple(RANGES)
FIXMATCH_NUMBERS = 2
"""Number of random numbers for each operation. They choose its kind and its magnitude."""
_ONE = 1 << 16
"""Units in a pixel: Pillow computes the position of a source pixel in 65,536ths of a pixel."""
_MOVE = "move"
_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def draw_fixmatch(numbers: Floats, size: int) -> Rounds:
    """Choose operations and magnitudes for n images from random numbers. An image may get an operation again.

    Args:
        numbers: [n, 2 * rounds] uniform numbers in [0, 1).
        size: Side of the images in pixels.

    Returns:
        For each round (an image gets one operation in each), by name of the operation: row numbers [k] of its images,
        and the amounts [k, 6] with which the operation changes them.
    """
    # Use float64: in float32, the largest number below 1, times the number of operations, could be rounded up to an
    # operation that does not exist.
    choices = (numbers[:, ::FIXMATCH_NUMBERS].astype(np.float64) * len(FIXMATCH_NAMES)).astype(np.int64)
    low, high = (np.array([ends[i] for ends in RANGES.values()], np.float64)[choices] for i in (0, 1))
    return fixmatch_rounds(choices, low + (high - low) * numbers[:, 1::FIXMATCH_NUMBERS].astype(np.float64), size)


def fixmatch_rounds(choices: Ints, magnitudes: NDArray[np.float64], size: int) -> Rounds:
    """Group n images by the operation of each round, and compute the operations' amounts from their magnitudes.

    Args:
        choices: [n, rounds] positions in `FIXMATCH_NAMES`.
        magnitudes: [n, rounds] magnitudes, with the meaning that they have in Pillow's functions.
        size: Side of the images in pixels.

    Returns:
        For each round (an image gets one operation in each), by name of the operation: row numbers [k] of its images,
        and the amounts [k, 6] with which the operation changes them. For geometric operations, these are the numbers of
        `_source_steps`; else the magnitude comes first.
    """
    amounts = np.zeros((*choices.shape, 6))
    amounts[..., 0] = magnitudes
    moved = np.isin(choices, [FIXMATCH_NAMES.index(name) for name in _GEOMETRIC])
    amounts[moved] = _source_steps(choices[moved], magnitudes[moved], size)
    names = dict.fromkeys(_GEOMETRIC, _MOVE) | {"Identity": None}
    return group_rounds(choices, amounts, [names.get(name, name) for name in FIXMATCH_NAMES])


def _source_steps(choices: Ints, magnitudes: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return for k images where their moved pixels come from: [k, 6] whole numbers, in 65,536ths of a pixel.

    The first three numbers a, b, c give the source column of a pixel: a * column + b * row + c. The last three give its
    source row in the same way.

    Args:
        choices: [k] positions in `FIXMATCH_NAMES`, of geometric operations (rotate, shear, translate).
        magnitudes: [k] magnitudes of these operations.
        size: Side of the images in pixels.
    """
    turned, is_x, is_y, to_x, to_y = (choices == FIXMATCH_NAMES.index(name) for name in _GEOMETRIC)
    turn = -np.radians(np.where(turned, magnitudes % 360, 0))
    cos, sin = np.round(np.cos(turn), 15), np.round(np.sin(turn), 15)
    along = np.stack([cos, sin + is_x * magnitudes], 1)
    across = np.stack([is_y * magnitudes - sin, cos], 1)
    middle = size / 2
    found = []
    for steps, is_moved in ((along, to_x), (across, to_y)):
        # Follow Pillow, so that the images are the same: turn about the middle of the image, shear from its corner,
        # and move by whole pixels.
        turning = np.where(turned, middle - middle * steps.sum(1), 0)
        start = turning + steps.sum(1) * 0.5
        whole = np.floor(0.5 + is_moved * magnitudes * size) * _ONE
        found += [_fixed(steps[:, 0]), _fixed(steps[:, 1]), np.where(is_moved, whole, _fixed(start))]
    return np.stack(found, 1)


def _fixed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers of pixels in whole 65,536ths of a pixel, rounded as Pillow does."""
    return np.floor(values * _ONE + 0.5)


# Operations work on whole batches: on a GPU, a loop over images would be slow.


def _move(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images rotated, sheared or translated. A pixel gets its nearest source pixel, or zero outside the image.

    Args:
        image: [k, bands, height, width] bytes.
        amounts: [k, 6] numbers that say where a pixel comes from, as `_source_steps` returns them.
    """
    height, width = image.shape[2:]
    steps = amounts.int()[:, :, None, None]
    x = torch.arange(width, device=image.device, dtype=torch.int32)
    y = torch.arange(height, device=image.device, dtype=torch.int32)[:, None]
    columns = (x * steps[:, 0] + (y * steps[:, 1] + steps[:, 2])).bitwise_right_shift_(16).clamp_(-1, width)
    rows = (x * steps[:, 3] + (y * steps[:, 4] + steps[:, 5])).bitwise_right_shift_(16).clamp_(-1, height)
    # Add a frame of zeros: sources outside the image were clamped to this frame, so their pixels become zero.
    framed = functional.pad(image, (1, 1, 1, 1)).flatten(2)
    source = columns.add_(rows, alpha=width + 2).add_(width + 3).long().view(len(image), 1, -1)
    return framed.gather(2, source.expand(-1, image.shape[1], -1)).view_as(image)


def _gray(image: Tensor) -> Tensor:
    """Return the gray value of each pixel, [k, 1, height, width] int32, of images [k, bands, height, width] of bytes.

    It is Pillow's luma for three bands, and the rounded mean of the bands for other numbers of bands.
    """
    bands = image.shape[1]
    if bands != 3:
        return (2 * image.sum(1, keepdim=True, dtype=torch.int32) + bands) // (2 * bands)
    values = image.int()
    luma = values[:, :1] * 19595 + 32768
    return luma.add_(values[:, 1:2], alpha=38470).add_(values[:, 2:], alpha=7471).bitwise_right_shift_(16)


def _blend(base: Tensor, image: Tensor, amounts: Tensor) -> Tensor:
    """Return base + factor * (image - base) as bytes: in float32, with decimals cut off, as Pillow's `Image.blend`.

    Args:
        base: [k, 1, height, width] gray images or [k, 1, 1, 1] mean values.
        image: [k, bands, height, width] bytes.
        amounts: [k, c]; column 0 has the factors.
    """
    base = base.float()
    return _bytes(image.float().sub_(base).mul_(factor(amounts).float()).add_(base))


def _bytes(values: Tensor) -> Tensor:
    """Return floats as bytes, with the decimals cut off. The detour over int32 is three times as fast on a CPU."""
    return values.int().byte()


def _look_up(image: Tensor, table: Tensor) -> Tensor:
    """Return a copy of images [k, bands, height, width], with each value 0..255 replaced by its new value.

    `table` [k, bands, 256] has the new value of each value.
    """
    return table.byte().gather(2, image.flatten(2).long()).view_as(image)


def _auto_contrast(image: Tensor, amounts: Tensor) -> Tensor:
    low, high = (end((2, 3))[..., None].double() for end in (image.amin, image.amax))
    level = torch.arange(LEVELS, device=image.device, dtype=torch.float64)
    # Make a tensor of the number 255 before the division: torch divides a number by a tensor with less precision.
    scale = torch.full_like(low, LEVELS - 1) / (high - low).clamp_min(1)
    table = (level * scale - low * scale).trunc_().clamp_(0, LEVELS - 1)
    return _look_up(image, torch.where(high > low, table, level))


def _equalize(image: Tensor, amounts: Tensor) -> Tensor:
    levels = image.flatten(2).long()
    return equalizing_table(count_levels(levels)).byte().gather(2, levels).view_as(image)


def _brightness(image: Tensor, amounts: Tensor) -> Tensor:
    return _bytes(image.float().mul_(factor(amounts).float()))


def _color(image: Tensor, amounts: Tensor) -> Tensor:
    return _blend(_gray(image), image, amounts)


def _contrast(image: Tensor, amounts: Tensor) -> Tensor:
    mean = _gray(image).sum((1, 2, 3), keepdim=True).double() / image[0, 0].numel()
    return _blend((mean + 0.5).floor_(), image, amounts)


def _sharpness(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images sharpened or blurred: inner pixels are mixed with their smoothed neighborhood, in place.

    Border pixels keep their values.
    """
    values = image.float()
    inner = values[..., 1:-1, 1:-1]
    # A sum divided by 13 is at least 1/26 away from every half. So float32 rounds it to the right whole number.
    smooth = box_sums(values).add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    image[..., 1:-1, 1:-1] = _bytes(inner.sub_(smooth).mul_(factor(amounts).float()).add_(smooth))
    return image


def _posterize(image: Tensor, amounts: Tensor) -> Tensor:
    bits = factor(amounts).trunc().clamp_(1, 8)
    return image & (LEVELS - torch.exp2(8 - bits)).byte()


def _solarize(image: Tensor, amounts: Tensor) -> Tensor:
    # Round the threshold up to a whole number: the same pixels are below it, and whole numbers fit into 16 bits. The
    # shift turns the sign of the difference into -1 (all bits are 1) or 0.
    below = image.short().sub_(factor(amounts).ceil().short()).bitwise_right_shift_(15)
    # Invert the pixels that are not below by xor with 255 (x xor 255 is 255 - x), and the others by xor with 0. On a
    # CPU, `torch.where` is ten times slower.
    return image.bitwise_xor_(below.bitwise_not_().byte())


FIXMATCH: dict[str, Operation] = {
    _MOVE: _move,
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Equalize": _equalize,
    "Posterize": _posterize,
    "Sharpness": _sharpness,
    "Solarize": _solarize,
}
"""Operations on uint8 images, by name."""
