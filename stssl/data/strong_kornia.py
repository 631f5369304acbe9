"""Apply RandAugment as kornia does (kornia.augmentation.auto.RandAugment), to images of any number of bands.

Each image draws its own operations, all different. Each geometric operation resamples the image, with zeros outside.
kornia 0.7 and 0.9 compute different amounts from a magnitude. For example, 0.7 posterizes to 0 bits if 0.9 keeps 7.
Geometric amounts of 0.7 are never negative, and its translations are parts of a pixel.
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
    """Return kornia's amount of an operation: degrees, bits, pixels or a factor, without a sign.

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
    """Draw operations for n images, grouped by round and name. No image draws an operation twice.

    Args:
        numbers: [n, 3 * operations] uniform numbers in [0, 1).
        m: Magnitude, 0 to 30.
        size: Side of the images in pixels.
        version: Version of kornia.
    """
    kinds, signs, thresholds = (numbers[:, i::KORNIA_NUMBERS] for i in range(KORNIA_NUMBERS))
    choices = _different(kinds)
    amounts = np.array([amount_of(name, m, size, version) for name in KORNIA_NAMES])[choices]
    low = -1.0 if version == "kornia" else 0.0
    signed = np.isin(choices, [KORNIA_NAMES.index(name) for name in SIGNED])
    return kornia_rounds(choices, np.where(signed & (signs < 0.5), low * amounts, amounts), thresholds, size)


def _different(numbers: Floats) -> Ints:
    """Draw different operations for each image: the first places of a random permutation (Fisher-Yates)."""
    rows, count = numbers.shape
    order = np.tile(np.arange(len(KORNIA_NAMES)), (rows, 1))
    every = np.arange(rows)
    for i in range(count):
        left = len(KORNIA_NAMES) - i
        # Use float64: in float32, the product with the largest number could round up to the whole.
        other = i + (numbers[:, i].astype(np.float64) * left).astype(np.int64)
        taken = order[every, other].copy()
        order[every, other] = order[:, i]
        order[:, i] = taken
    return order[:, :count]


def kornia_rounds(choices: Ints, amounts: NDArray[np.float64], thresholds: Floats, size: int) -> Rounds:
    """Group the chosen operations of n images by round and name, with their rows and amounts (see `group_rounds`).

    Args:
        choices: [n, operations] positions in `KORNIA_NAMES`.
        amounts: [n, operations] kornia's amounts: degrees, bits, pixels or a factor, with a sign.
        thresholds: [n, operations] threshold of solarize_add.
        size: Side of the images in pixels.
    """
    plain = np.zeros((*choices.shape, 6), np.float32)
    plain[..., 0], plain[..., 1] = amounts, thresholds
    moved = np.isin(choices, [KORNIA_NAMES.index(name) for name in SIGNED])
    plain[moved] = _inverse_maps(choices[moved], amounts[moved], size)
    # An amount of 0 moves nothing, so leave it out: resampling would take time and change
    # pixels by rounding errors.
    found = np.where(moved & (amounts == 0), -1, choices)
    return group_rounds(found, plain, [_WARP if name in SIGNED else name for name in KORNIA_NAMES])


_WARP = "warp"


def _inverse_maps(choices: Ints, amounts: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the rows of affine maps [k, 6] from the result to its source, in coordinates from -1 to 1."""
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
    """Resample images by their inverse maps: bilinear, zeros outside."""
    grid = sampling_grid(amounts.view(-1, 2, 3), *image.shape[2:])
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _auto_contrast(image: Tensor, amounts: Tensor) -> Tensor:
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return image.sub_(low).div_(high - low + 1e-6).clamp_(0, 1)


def _levels(image: Tensor) -> Tensor:
    """Return each pixel as a whole number from 0 to 255, [k, bands, pixels]."""
    return (image * (LEVELS - 1)).long().clamp_(0, LEVELS - 1).flatten(2)


def _white(image: Tensor) -> Tensor:
    """Return 255 as a tensor. A GPU divides exactly only by tensors, and multiplies by the inverse of a number."""
    return image.new_full((1,), LEVELS - 1)


def _equalize(image: Tensor, amounts: Tensor) -> Tensor:
    levels = _levels(image)
    return _equalized(image, levels, equalizing_table(count_levels(levels)))


def _equalize_old(image: Tensor, amounts: Tensor) -> Tensor:
    """Equalize as kornia 0.7: it counts pixels in 256 bins of equal width over 0..255, but looks up whole numbers."""
    bins = (image * (LEVELS - 1) * LEVELS / _white(image)).long().clamp_(0, LEVELS - 1).flatten(2)
    return _equalized(image, _levels(image), equalizing_table(count_levels(bins)))


def _equalized(image: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    # Leave a band with step 0 unchanged to its last digit, as kornia does.
    changes = (table != torch.arange(LEVELS, device=table.device)).any(2)[..., None, None].float()
    values = table.float().div_(_white(image))
    return image.lerp_(values.gather(2, levels).view_as(image), changes)


def _posterize(image: Tensor, amounts: Tensor) -> Tensor:
    bits = factor(amounts)
    width = torch.exp2(8 - bits)
    whole = (image * 255).floor_()
    # The float32 division before `trunc` is kornia's, with its rounding.
    white = _white(image)
    kept = (255 * (whole / width / white)).floor_().mul_(width).div_(white)
    return image.lerp_(kept.mul_((bits > 0).float()), (bits < 8).float())


def _solarize(image: Tensor, amounts: Tensor) -> Tensor:
    return image.lerp(1 - image, at_least(image, factor(amounts)))


def _solarize_add(image: Tensor, amounts: Tensor) -> Tensor:
    lighter = image.add_(factor(amounts)).clamp_(0, 1)
    return lighter.lerp(1 - lighter, at_least(lighter, factor(amounts, 1)))


def _color(image: Tensor, amounts: Tensor) -> Tensor:
    """Change the saturation in the HSV model: change the distance of all bands from the largest band."""
    low, high = image.amin(1, keepdim=True), image.amax(1, keepdim=True)
    spread = high - low
    saturation = (factor(amounts) * (spread / (high + 1e-8))).clamp_(0, 1)
    # The lower limit only avoids 0 / 0 in gray pixels, which keep their value with any ratio.
    ratio = saturation.mul_(high).div_(spread.clamp_min_(1e-30))
    return (high - image).mul_(ratio).neg_().add_(high)


def _contrast(image: Tensor, amounts: Tensor) -> Tensor:
    return image.mul_(factor(amounts)).clamp_(0, 1)


def _brightness(image: Tensor, amounts: Tensor) -> Tensor:
    return image.add_(factor(amounts) - 1).clamp_(0, 1)


def _sharpness(image: Tensor, amounts: Tensor) -> Tensor:
    """Mix inner pixels with their smoothed neighborhood. Border pixels keep their values."""
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
