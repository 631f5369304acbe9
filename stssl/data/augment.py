"""Augment images with batched tensor operations on the device of the networks.

The loader draws all random numbers from (seed, stream, epoch, patch). So a view does not depend on ranks, threads or
restarts. The weak view is a random crop with reflected borders, and random flips along both axes. The strong view adds
RandAugment (Cubuk et al. 2020, arXiv:1909.13719). One resampling does the crop and all geometric operations of
RandAugment. The photometric operations run one after another.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Floats
from stssl.base.config import Config, Domain

Style = Literal["stssl", "kornia-0.7", "kornia", "fixmatch"]
"""Whose operations and magnitudes the strong view has."""
GREATEST: dict[Style, int] = {"stssl": 10, "kornia-0.7": 30, "kornia": 30, "fixmatch": 30}
"""Greatest magnitude `m` of each style."""


class RandAugmentConfig(Config):
    """Set the strong view: `n` operations of magnitude `m` on each image.

    Attributes:
        style: Whose operations to use. `kornia` is RandAugment of kornia 0.9, and `kornia-0.7` that of kornia 0.7.3.
            `fixmatch` is FixMatch's, with Pillow's operations on 8-bit values. `stssl` resamples an image only once.
        n: Number of operations.
        m: Magnitude of each operation: 0 to 10 in the style `stssl`, 0 to 30 in the others. `fixmatch` does not use it,
            but draws the magnitude of each operation.
    """

    style: Style = "stssl"
    n: Annotated[int, Field(ge=0, le=15), Domain(1, 4)] = 3
    m: Annotated[float, Field(ge=0, le=30), Domain(2, 10)] = 5.0

    @model_validator(mode="after")
    def _possible(self) -> "RandAugmentConfig":
        if self.m > GREATEST[self.style]:
            raise ValueError(f"m is {self.m:g}, but in the style {self.style} it may be 0 to {GREATEST[self.style]}")
        return self


class AugmentConfig(Config):
    """Set how training images are augmented.

    Attributes:
        strong_labeled: True to give labeled patches a strong view too.
        randaugment: Operations of the strong views.
        cutout: Largest side of the gray square that hides a part of each strong view, as a share of the side of the
            image. 0 draws no square. FixMatch has 0.5.
        padding: Largest shift of the random crop, as a share of the side of the image.
        metadata_dropout: Probability to hide the place of a patch from the networks. The date is hidden with the same
            probability, independently of the place.
    """

    strong_labeled: bool = False
    randaugment: RandAugmentConfig = RandAugmentConfig()
    cutout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0
    padding: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    metadata_dropout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0


@dataclass(frozen=True)
class Draw:
    """Hold the random choices of an augmentation, for one view (an augmented copy) of each of n patches.

    Attributes:
        shift: [n, 2] offset of the crop in pixels: rows, then columns.
        flip: [n, 2] booleans: flip vertically, flip horizontally.
        matrix: [n, 2, 2] inverse linear map of the geometric operations; None for a weak view.
        offset: [n, 2] translation (x, y) of this map in normalized coordinates; None for a weak view.
        photometric: One dictionary for each round. By name of the operation, it has the rows that the operation changes
            and their magnitudes.
    """

    shift: Tensor
    flip: Tensor
    matrix: Tensor | None = None
    offset: Tensor | None = None
    photometric: tuple[dict[str, tuple[Tensor, Tensor]], ...] = ()

    def to(self, device: torch.device) -> "Draw":
        """Copy the random choices to another device, such as a GPU. Return before the copy ends."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        rounds = tuple({k: (move(r), move(m)) for k, (r, m) in ops.items()} for ops in self.photometric)
        matrix, offset = (None if t is None else move(t) for t in (self.matrix, self.offset))
        return Draw(move(self.shift), move(self.flip), matrix, offset, rounds)


# Random choices are made on the CPU, in the loader's thread: the device need not wait for them.

GEOMETRIC = ("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_GEOMETRY = {"rotate": math.radians(30), "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}


def numbers_needed(strong: RandAugmentConfig | None) -> int:
    """Return how many random numbers one augmented copy (view) of a patch needs.

    Crop and flips need 4. Each operation of a strong view needs 2 more: its kind and its magnitude.
    """
    return 4 + (2 * strong.n if strong else 0)


def draw_view(numbers: Floats, size: int, padding: float, strong: RandAugmentConfig | None) -> Draw:
    """Turn random numbers into the choices of an augmentation (crop, flips, operations) for n patches.

    Args:
        numbers: [n, numbers_needed(strong)] uniform numbers in [0, 1).
        size: Side of the images in pixels.
        padding: Largest shift, as a share of the side.
        strong: Strength of RandAugment; None for a weak view.
    """
    reach = int(size * padding)
    shift = torch.from_numpy(np.floor(numbers[:, :2] * (2 * reach + 1)).astype(np.int64) - reach)
    flip = torch.from_numpy(numbers[:, 2:4] < 0.5)
    if strong is None:
        return Draw(shift, flip)
    choices = (numbers[:, 4::2] * len(_NAMES)).astype(np.int64)
    signs = np.where(numbers[:, 5::2] < 0.5, -1.0, 1.0).astype(np.float64)
    magnitudes = strong.m / 10 * signs
    matrix, offset = _compose(choices, magnitudes)
    rounds = tuple(_by_operation(choices[:, i], magnitudes[:, i]) for i in range(choices.shape[1]))
    return Draw(shift, flip, torch.from_numpy(matrix).float(), torch.from_numpy(offset).float(), rounds)


def _by_operation(choices: NDArray[np.int64], magnitudes: NDArray[np.float64]) -> dict[str, tuple[Tensor, Tensor]]:
    """Group patches by the photometric operation that they get in one round of RandAugment.

    Args:
        choices: [n] number of the operation of each patch.
        magnitudes: [n] magnitude of the operation of each patch.

    Returns:
        By name of the operation, the rows (0..n-1) of its patches and their magnitudes.
    """
    found = {}
    for number in np.unique(choices):
        if _NAMES[number] in PHOTOMETRIC:
            rows = np.flatnonzero(choices == number)
            found[_NAMES[number]] = (torch.from_numpy(rows), torch.from_numpy(magnitudes[rows].astype(np.float32)))
    return found


def _compose(choices: NDArray[np.int64], magnitudes: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Combine the geometric operations of each patch into one inverse affine map: matrices [n, 2, 2], offsets [n, 2].

    Coordinates are normalized: the image goes from -1 to 1. In each round, a patch gets one operation, and the amounts
    of all others are 0. So one formula serves all operations.
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
        # Multiply on the right. The map goes from output to source, so it undoes the last operation first.
        offset += np.einsum("nij,nj->ni", matrix, move)
        matrix = matrix @ step
    return matrix, offset


# Operations work on whole batches: on a GPU, a loop over images would be slow.


def _blend(image: Tensor, base: Tensor, magnitude: Tensor) -> Tensor:
    """Change contrast, brightness or sharpness, by mixing an image with a plain or blurred image `base`.

    A positive magnitude moves the pixels away from `base`, a negative one toward it, as Pillow's `ImageEnhance` does.
    """
    return base + (1 + 0.9 * magnitude) * (image - base)


def _contrast(image: Tensor, magnitude: Tensor) -> Tensor:
    return _blend(image, image.mean((1, 2, 3), keepdim=True), magnitude)


def _color(image: Tensor, magnitude: Tensor) -> Tensor:
    return _blend(image, image.mean(1, keepdim=True), magnitude)


def _brightness(image: Tensor, magnitude: Tensor) -> Tensor:
    return image * (1 + 0.9 * magnitude)


def _sharpness(image: Tensor, magnitude: Tensor) -> Tensor:
    kernel = image.new_ones(3, 3)
    kernel[1, 1] = 5
    kernel = kernel / 13
    bands = image.shape[1]
    padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    smooth = functional.conv2d(padded, kernel.expand(bands, 1, 3, 3), groups=bands)
    return _blend(image, smooth, magnitude)


def _posterize(image: Tensor, magnitude: Tensor) -> Tensor:
    levels = 2.0 ** torch.round(8 - 4 * magnitude.abs())
    return torch.floor((image.clamp(0, 1) * 255).round() / 256 * levels) / levels * (256 / 255)


def _solarize(image: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(image >= 1 - magnitude.abs(), 1 - image, image)


def _autocontrast(image: Tensor, magnitude: Tensor) -> Tensor:
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return torch.where(high > low, (image - low) / (high - low).clamp_min(1e-6), image)


def _equalize(image: Tensor, magnitude: Tensor) -> Tensor:
    """Equalize the histogram of each band in 256 bins. The new value of a pixel is the share of darker pixels."""
    bins = (image.clamp(0, 1) * 255).round().long().flatten(2)
    # Pillow uses these bins too, and the tests compare the results with Pillow's.
    counts = torch.zeros(*bins.shape[:2], 256, device=image.device).scatter_add_(2, bins, torch.ones_like(bins).float())
    below = (counts.cumsum(2) - counts).gather(2, bins)
    spread = bins.shape[2] - counts.gather(2, bins.amax(2, keepdim=True))
    equalized = below / spread.clamp_min(1)
    return torch.where(spread[..., None] > 0, equalized.view_as(image), image)


PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}
_NAMES = (*GEOMETRIC, *PHOTOMETRIC)


def _crop(image: Tensor, draw: Draw) -> Tensor:
    """Shift images [n, bands, height, width] with reflected borders, and flip them."""
    rows, columns = (
        _source(image.shape[2 + axis], draw.shift[:, axis], draw.flip[:, axis], image.device) for axis in (0, 1)
    )
    # One gather reads the image once. Padding, slicing and flipping would copy it three times.
    n, c = (torch.arange(k, device=image.device) for k in image.shape[:2])
    return image[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _source(size: int, shift: Tensor, flip: Tensor, device: torch.device) -> Tensor:
    """Find which row (or column) of the image each row (or column) of a shifted and flipped image shows, [n, size]."""
    line = torch.arange(size, device=device)
    line = torch.where(flip[:, None], size - 1 - line, line) + shift[:, None]
    # Reflect without repeating the border pixel: strong views use `grid_sample`, which reflects in this way.
    return (size - 1) - ((size - 1) - line.abs()).abs()


def _warp(image: Tensor, draw: Draw) -> Tensor:
    """Apply geometric operations, crop and flips in one bilinear resampling with reflected borders.

    A weak view has no geometric operations. It needs no resampling.
    """
    if draw.matrix is None or draw.offset is None:
        return _crop(image, draw)
    height, width = image.shape[2:]
    sign = 1.0 - 2.0 * draw.flip.flip(1).to(image.dtype)
    shift = torch.stack([draw.shift[:, 1] * (2.0 / (width - 1)), draw.shift[:, 0] * (2.0 / (height - 1))], 1)
    linear = draw.matrix * sign[:, None, :]
    offset = draw.offset + (draw.matrix @ shift[:, :, None])[:, :, 0]
    grid = functional.affine_grid(torch.cat([linear, offset[:, :, None]], 2), list(image.shape), align_corners=True)
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def apply_view(image: Tensor, draw: Draw) -> Tensor:
    """Augment images with the given random choices. The result is called a view.

    Args:
        image: [n, bands, height, width] with values in [0, 1].
        draw: The random choices, on the same device.

    Returns:
        [n, bands, height, width] with values in [0, 1].
    """
    image = _warp(image, draw)
    for operations in draw.photometric:
        changed = image
        for name, (rows, magnitude) in operations.items():
            # Compute each operation only on its own rows. All operations on all rows would cost several times as much.
            touched = PHOTOMETRIC[name](image[rows], magnitude[:, None, None, None]).clamp(0, 1)
            changed = changed.index_copy(0, rows, touched)
        image = changed
    return image
