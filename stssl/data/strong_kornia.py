"""Apply RandAugment as kornia does (kornia.augmentation.auto.RandAugment), to images of any number of bands.

The operations are chosen at random for each image, and an image gets no operation twice. Each geometric operation
resamples the image, with zeros outside of it. kornia 0.7 and 0.9 compute different amounts from a magnitude. For
example, at magnitude 5, kornia 0.7 posterizes to 0 bits and kornia 0.9 to 7. Geometric amounts of kornia 0.7 are never
negative, and its translations are parts of a pixel.
"""

import math
from typing import Literal

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
    at_least,
    box_sums,
    count_levels,
    equalizing_table,
    factor,
    group_rounds,
    sampling_grid,
)

KorniaVersion = Literal["kornia-0.7", "kornia"]
"""kornia 0.7.3 (as 0.6.12 to 0.8.3, except for repeated draws), or 0.9.0."""
KORNIA_NAMES = (
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
"""The operations, in kornia's order."""
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""The geometric operations: their amounts may be negative."""
KORNIA_NUMBERS = 3
"""Number of random numbers for each operation. They choose its kind, its sign, and the threshold of solarize_add."""
GREATEST_M = 30


def amount_of(name: str, m: float, size: int, version: KorniaVersion) -> float:
    """Return the amount that kornia computes for an operation: degrees, bits, pixels or a factor, without a sign.

    Args:
        name: One of `KORNIA_NAMES`.
        m: Magnitude, 0 to 30.
        size: Side of the images in pixels.
        version: Version of kornia.
    """
    share, new = m / GREATEST_M, version == "kornia"
    amounts = {
        "rotate": 30 * share,
        "shear_x": 54 * share,
        "shear_y": 54 * share,
        "translate_x": 0.1 * share * (size if new else 1),
        "translate_y": 0.1 * share * (size if new else 1),
        "posterize": float(math.trunc(4 + 4 * (1 - share) if new else 4 * share)),
        "solarize": share,
        "solarize_add": 0.43 * share,
    }
    return amounts.get(name, 0.1 + 1.8 * share)


def draw_kornia(numbers: Floats, m: float, size: int, version: KorniaVersion) -> Rounds:
    """Choose operations for n images from random numbers. No image gets an operation twice.

    Args:
        numbers: [n, 3 * rounds] uniform numbers in [0, 1).
        m: Magnitude, 0 to 30.
        size: Side of the images in pixels.
        version: Version of kornia.

    Returns:
        For each round (an image gets one operation in each), by name of the operation: row numbers [k] of its images,
        and the amounts [k, 6] with which the operation changes them.
    """
    kinds, signs, thresholds = (numbers[:, i::KORNIA_NUMBERS] for i in range(KORNIA_NUMBERS))
    choices = _different(kinds)
    amounts = np.array([amount_of(name, m, size, version) for name in KORNIA_NAMES])[choices]
    low = -1.0 if version == "kornia" else 0.0
    signed = np.isin(choices, [KORNIA_NAMES.index(name) for name in SIGNED])
    return kornia_rounds(choices, np.where(signed & (signs < 0.5), low * amounts, amounts), thresholds, size)


def _different(numbers: Floats) -> Ints:
    """Choose different operations for each of n images: the start of a random permutation (Fisher-Yates).

    Args:
        numbers: [n, operations] uniform numbers in [0, 1).

    Returns:
        [n, operations] positions in `KORNIA_NAMES`.
    """
    rows, count = numbers.shape
    order = np.tile(np.arange(len(KORNIA_NAMES)), (rows, 1))
    every = np.arange(rows)
    for i in range(count):
        left = len(KORNIA_NAMES) - i
        # Use float64: in float32, the largest number below 1, times `left`, could be rounded up to `left`, which is no
        # valid choice.
        other = i + (numbers[:, i].astype(np.float64) * left).astype(np.int64)
        taken = order[every, other].copy()
        order[every, other] = order[:, i]
        order[:, i] = taken
    return order[:, :count]


def kornia_rounds(choices: Ints, amounts: NDArray[np.float64], thresholds: Floats, size: int) -> Rounds:
    """Group n images by the operation of each round, and turn the amounts of geometric operations into affine maps.

    Args:
        choices: [n, rounds] positions in `KORNIA_NAMES`.
        amounts: [n, rounds] kornia's amounts: degrees, bits, pixels or a factor, with a sign.
        thresholds: [n, rounds] threshold of solarize_add.
        size: Side of the images in pixels.

    Returns:
        For each round (an image gets one operation in each), by name of the operation: row numbers [k] of its images,
        and [k, 6] numbers: an affine map, or the amount and the threshold of the other operations.
    """
    plain = np.zeros((*choices.shape, 6), np.float32)
    plain[..., 0], plain[..., 1] = amounts, thresholds
    moved = np.isin(choices, [KORNIA_NAMES.index(name) for name in SIGNED])
    plain[moved] = _inverse_maps(choices[moved], amounts[moved], size)
    # Leave out geometric operations with the amount 0: they move nothing, but resampling would take time and change
    # pixels by rounding errors.
    found = np.where(moved & (amounts == 0), -1, choices)
    return group_rounds(found, plain, [_WARP if name in SIGNED else name for name in KORNIA_NAMES])


_WARP = "warp"


def _inverse_maps(choices: Ints, amounts: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return for k geometric operations the affine map from a result pixel to its source, [k, 6].

    The six numbers are the 2 x 3 matrix of the map, row by row, for coordinates from -1 to 1.

    Args:
        choices: [k] positions in `KORNIA_NAMES`, of geometric operations (rotate, shear, translate).
        amounts: [k] degrees or pixels, with a sign.
        size: Side of the images in pixels.
    """
    degrees, tangents = (
        np.where(np.isin(choices, [KORNIA_NAMES.index(name) for name in names]), np.radians(amounts), 0.0)
        for names in (("rotate",), ("shear_x", "shear_y"))
    )
    cos, sin, tan = np.cos(degrees), np.sin(degrees), np.tan(tangents)
    is_x, is_y, to_x, to_y = (choices == KORNIA_NAMES.index(name) for name in SIGNED[1:])
    move = -2 * amounts / (size - 1)
    columns = [cos, is_x * tan - sin, to_x * move, is_y * tan + sin, cos, to_y * move]
    return np.stack(columns, 1)


# Operations work on whole batches: on a GPU, a loop over images would be slow.


def _warp(image: Tensor, amounts: Tensor) -> Tensor:
    """Return k images rotated, sheared or translated by bilinear resampling, with zeros outside of the images.

    Args:
        image: [k, bands, height, width].
        amounts: [k, 6] affine maps from a result pixel to its source, as `_inverse_maps` returns them.
    """
    grid = sampling_grid(amounts.view(-1, 2, 3), *image.shape[2:])
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _auto_contrast(image: Tensor, amounts: Tensor) -> Tensor:
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return image.sub_(low).div_(high - low + 1e-6).clamp_(0, 1)


def _levels(image: Tensor) -> Tensor:
    """Return values in [0, 1] of images [k, bands, height, width] as whole numbers 0..255, [k, bands, pixels].

    Decimals are cut off.
    """
    return (image * (LEVELS - 1)).long().clamp_(0, LEVELS - 1).flatten(2)


def _white(image: Tensor) -> Tensor:
    """Return 255 as a tensor [1] with type and device of `image`, to divide by it.

    On a GPU, torch divides exactly by a tensor. In place of a division by a number, it multiplies by the inverse.
    """
    return image.new_full((1,), LEVELS - 1)


def _equalize(image: Tensor, amounts: Tensor) -> Tensor:
    levels = _levels(image)
    return _equalized(image, levels, equalizing_table(count_levels(levels)))


def _equalize_old(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images [k, bands, height, width] with equalized histograms, as kornia 0.7 computes them.

    It counts pixels in 256 bins of equal width over 0..255, but looks up a pixel's new value by its whole number. The
    operation needs no `amounts`.
    """
    bins = (image * (LEVELS - 1) * LEVELS / _white(image)).long().clamp_(0, LEVELS - 1).flatten(2)
    return _equalized(image, _levels(image), equalizing_table(count_levels(bins)))


def _equalized(image: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    # If the table changes no level, kornia returns the band unchanged. So do not round its values to 256 levels.
    changes = (table != torch.arange(LEVELS, device=table.device)).any(2)[..., None, None].float()
    values = table.float().div_(_white(image))
    return image.lerp_(values.gather(2, levels).view_as(image), changes)


def _posterize(image: Tensor, amounts: Tensor) -> Tensor:
    bits = factor(amounts)
    width = torch.exp2(8 - bits)
    whole = (image * 255).floor_()
    # Divide in float32 and in this sequence, as kornia does: another sequence would round some pixels differently.
    white = _white(image)
    kept = (255 * (whole / width / white)).floor_().mul_(width).div_(white)
    return image.lerp_(kept.mul_((bits > 0).float()), (bits < 8).float())


def _solarize(image: Tensor, amounts: Tensor) -> Tensor:
    return image.lerp(1 - image, at_least(image, factor(amounts)))


def _solarize_add(image: Tensor, amounts: Tensor) -> Tensor:
    lighter = image.add_(factor(amounts)).clamp_(0, 1)
    return lighter.lerp(1 - lighter, at_least(lighter, factor(amounts, 1)))


def _color(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images with another saturation (HSV model): the distances of all bands from the largest one are scaled.

    Args:
        image: [k, bands, height, width] with values in [0, 1].
        amounts: [k, c]; column 0 has the factors of the saturation.
    """
    low, high = image.amin(1, keepdim=True), image.amax(1, keepdim=True)
    spread = high - low
    saturation = (factor(amounts) * (spread / (high + 1e-8))).clamp_(0, 1)
    # Limit `spread` from below only to avoid 0 / 0 in gray pixels: with any ratio, they keep their value.
    ratio = saturation.mul_(high).div_(spread.clamp_min_(1e-30))
    return (high - image).mul_(ratio).neg_().add_(high)


def _contrast(image: Tensor, amounts: Tensor) -> Tensor:
    return image.mul_(factor(amounts)).clamp_(0, 1)


def _brightness(image: Tensor, amounts: Tensor) -> Tensor:
    return image.add_(factor(amounts) - 1).clamp_(0, 1)


def _sharpness(image: Tensor, amounts: Tensor) -> Tensor:
    """Return images sharpened or blurred: inner pixels are mixed with their smoothed neighborhood, in place.

    Border pixels keep their values.
    """
    inner = image[..., 1:-1, 1:-1]
    smooth = box_sums(image).add_(inner, alpha=4).div_(13)
    inner.copy_((inner - smooth).mul_(factor(amounts)).add_(smooth))
    return image.clamp_(0, 1)


_NEW: dict[str, Operation] = {
    _WARP: _warp,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda image, amounts: 1 - image,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
KORNIA: dict[KorniaVersion, dict[str, Operation]] = {"kornia": _NEW, "kornia-0.7": _NEW | {"equalize": _equalize_old}}
"""Operations of each version, on images with values in [0, 1]."""
