"""Augment images with batched tensor operations on the device of the networks.

The loader draws all random numbers from (seed, stream, epoch, patch). So a view does not depend on ranks, threads or
restarts. The weak view is a random crop with reflected borders, and random flips along both axes. The strong view adds
RandAugment (Cubuk et al. 2020, arXiv:1909.13719) in one of several styles, and a gray square.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Floats
from stssl.base.batch import View
from stssl.base.config import Config, Domain
from stssl.data import strong_fixmatch, strong_kornia, strong_stssl
from stssl.data.cutout import draw_cutout, fill_boxes
from stssl.data.operations import Rounds, apply_rounds, sampling_grid
from stssl.data.packing import packed, unpacked

Style = Literal["stssl", "kornia-0.7", "kornia", "fixmatch"]
"""Implementation of RandAugment that strong views follow in operations and magnitudes."""
GREATEST: dict[Style, int] = {"stssl": 10, "kornia-0.7": 30, "kornia": 30, "fixmatch": 30}
"""Greatest magnitude `m` of each style."""


class RandAugmentConfig(Config):
    """Set the operations of RandAugment for strong views: `n` operations of magnitude `m` on each image.

    Attributes:
        style: Implementation of RandAugment to follow. `kornia` is RandAugment of kornia 0.9, and `kornia-0.7` that of
            kornia 0.7.3. `fixmatch` is FixMatch's, with Pillow's operations on 8-bit values. `stssl` resamples an image
            only once.
        n: Number of operations.
        m: Magnitude of each operation: 0 to 10 in the style `stssl`, 0 to 30 in the others. `fixmatch` does not use it,
            but draws a random magnitude for each operation.
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
            image. 0 draws no square. FixMatch uses 0.5.
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
    """Hold the random choices that augment n patches: how to crop, flip and change each to make one view of it.

    Attributes:
        shift: [n, 2] offset of the crop in pixels: rows, then columns.
        flip: [n, 2] booleans: flip vertically, flip horizontally.
        matrix: [n, 2, 2] inverse linear map of the geometric operations, in the style `stssl`; else None.
        offset: [n, 2] translation (x, y) of this map in coordinates from -1 to 1; None without a map.
        rounds: One dict for each round (an image gets one operation in each round). By name of the operation, it has
            the row numbers [k] of the images that the operation changes, and their amounts [k, c], such as a factor.
        style: Implementation of RandAugment that the operations follow.
        boxes: [n, 4] gray squares: first column, last column, first row, last row; None for no squares.
    """

    shift: Tensor
    flip: Tensor
    matrix: Tensor | None = None
    offset: Tensor | None = None
    rounds: Rounds = ()
    style: Style = "stssl"
    boxes: Tensor | None = None

    def each(self, move: Callable[[Tensor], Tensor]) -> "Draw":
        """Return a copy of these choices, with each tensor replaced by the result of `move(tensor)`.

        Each call of this method passes the tensors to `move` in the same sequence.
        """
        rounds = tuple({k: (move(r), move(m)) for k, (r, m) in ops.items()} for ops in self.rounds)
        matrix, offset, boxes = (None if t is None else move(t) for t in (self.matrix, self.offset, self.boxes))
        return Draw(move(self.shift), move(self.flip), matrix, offset, rounds, self.style, boxes)


def draws_on(draws: Mapping[View, Draw], device: torch.device) -> dict[View, Draw]:
    """Copy the random choices of augmentations to a device, and return the copies by view.

    The choices of a step are about 60 small tensors. So copy all of them together, in one transfer.

    Args:
        draws: The random choices for each view, on the CPU.
        device: Device of the copies.
    """
    if device.type == "cpu":
        return dict(draws)
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for draw in draws.values():
        draw.each(note)
    buffer = packed(found, pinned=device.type == "cuda").to(device, non_blocking=True)
    copies = iter(unpacked(buffer, found))
    return {view: draw.each(lambda _: next(copies)) for view, draw in draws.items()}


_PER_OPERATION: dict[Style, int] = {
    "stssl": strong_stssl.STSSL_NUMBERS,
    "kornia-0.7": strong_kornia.KORNIA_NUMBERS,
    "kornia": strong_kornia.KORNIA_NUMBERS,
    "fixmatch": strong_fixmatch.FIXMATCH_NUMBERS,
}


def numbers_needed(strong: RandAugmentConfig | None, cutout: float = 0) -> int:
    """Return how many random numbers one augmented copy (view) of a patch needs.

    Crop and flips need 4. A strong view needs 2 or 3 more for each operation, and 3 for a gray square.

    Args:
        strong: Operations of a strong view; None for a weak view.
        cutout: Largest side of the gray square; 0 draws none.
    """
    return 4 + (_PER_OPERATION[strong.style] * strong.n + 3 * (cutout > 0) if strong else 0)


def draw_view(numbers: Floats, size: int, padding: float, strong: RandAugmentConfig | None, cutout: float = 0) -> Draw:
    """Return the choices of an augmentation (crop, flips, operations) for n patches, computed from random numbers.

    Args:
        numbers: [n, numbers_needed(strong, cutout)] uniform numbers in [0, 1).
        size: Side of the images in pixels.
        padding: Largest shift of the crop, as a share of the side.
        strong: Operations of a strong view; None for a weak view.
        cutout: Largest side of the gray square of a strong view, as a share of the side; 0 draws none.
    """
    reach = int(size * padding)
    shift = torch.from_numpy(np.floor(numbers[:, :2] * (2 * reach + 1)).astype(np.int64) - reach)
    flip = torch.from_numpy(numbers[:, 2:4] < 0.5)
    if strong is None:
        return Draw(shift, flip)
    last = 4 + _PER_OPERATION[strong.style] * strong.n
    own, matrix, offset = numbers[:, 4:last], None, None
    if strong.style == "stssl":
        matrix, offset, rounds = strong_stssl.draw_stssl(own, strong.m)
    elif strong.style == "fixmatch":
        rounds = strong_fixmatch.draw_fixmatch(own, size)
    else:
        rounds = strong_kornia.draw_kornia(own, strong.m, size, strong.style)
    boxes = draw_cutout(numbers[:, last : last + 3], size, cutout) if cutout else None
    return Draw(shift, flip, matrix, offset, rounds, strong.style, boxes)


def _crop(image: Tensor, draw: Draw) -> Tensor:
    """Return copies of images [n, bands, height, width], shifted with reflected borders and flipped as `draw` says."""
    if image.device.type == "cpu":
        return _crop_each(image, draw)
    rows, columns = (
        _source(image.shape[2 + axis], draw.shift[:, axis], draw.flip[:, axis], image.device) for axis in (0, 1)
    )
    # Index the images once: this reads them once. Padding, slicing and flipping would copy them three times.
    n, c = (torch.arange(k, device=image.device) for k in image.shape[:2])
    return image[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _crop_each(image: Tensor, draw: Draw) -> Tensor:
    """Return shifted and flipped copies of images [n, bands, height, width], made one by one.

    On a CPU, this is several times as fast as to index all images at once.

    Args:
        image: The images.
        draw: Shift and flips of each image.
    """
    reach = int(draw.shift.abs().max()) if len(image) else 0
    padded = _reflect(image, reach)
    height, width = image.shape[2:]
    out = torch.empty(image.shape, dtype=image.dtype)
    for own, source, shift, flip in zip(out, padded, draw.shift.tolist(), draw.flip.tolist(), strict=True):
        top, left = shift[0] + reach, shift[1] + reach
        part = source[:, top : top + height, left : left + width]
        own.copy_(part.flip([axis + 1 for axis in (0, 1) if flip[axis]]))
    return out


def _reflect(image: Tensor, reach: int) -> Tensor:
    """Return images [n, bands, height, width] with a reflected border of `reach` pixels added on each side.

    The images may be bytes, which `functional.pad` refuses.
    """
    if not reach:
        return image
    n, bands, height, width = image.shape
    padded = torch.empty(n, bands, height + 2 * reach, width + 2 * reach, dtype=image.dtype)
    middle = padded[:, :, reach:-reach]
    middle[..., reach:-reach] = image
    middle[..., :reach] = image[..., 1 : reach + 1].flip(3)
    middle[..., -reach:] = image[..., -reach - 1 : -1].flip(3)
    padded[:, :, :reach] = middle[:, :, 1 : reach + 1].flip(2)
    padded[:, :, -reach:] = middle[:, :, -reach - 1 : -1].flip(2)
    return padded


def _source(size: int, shift: Tensor, flip: Tensor, device: torch.device) -> Tensor:
    """Return for n shifted and flipped images which row of the original each row shows: row numbers [n, size].

    Columns work in the same way.

    Args:
        size: Number of rows of an image.
        shift: [n] shift of each image in rows.
        flip: [n] booleans: True if the image is flipped.
        device: Device of the result.
    """
    line = torch.arange(size, device=device)
    line = torch.where(flip[:, None], size - 1 - line, line) + shift[:, None]
    # Reflect without repeating the border pixel: strong views use `grid_sample`, which reflects in this way.
    return (size - 1) - ((size - 1) - line.abs()).abs()


def _warp(image: Tensor, draw: Draw) -> Tensor:
    """Return images after geometric operations, crop and flips, in one bilinear resampling with reflected borders.

    If the choices have no geometric map (weak views and other styles than `stssl`), only crop and flip, without
    resampling.

    Args:
        image: [n, bands, height, width] images.
        draw: The random choices for each image.
    """
    if draw.matrix is None or draw.offset is None:
        return _crop(image, draw)
    height, width = image.shape[2:]
    sign = 1.0 - 2.0 * draw.flip.flip(1).to(image.dtype)
    shift = torch.stack([draw.shift[:, 1] * (2.0 / (width - 1)), draw.shift[:, 0] * (2.0 / (height - 1))], 1)
    linear = draw.matrix * sign[:, None, :]
    offset = draw.offset + (draw.matrix @ shift[:, :, None])[:, :, 0]
    grid = sampling_grid(torch.cat([linear, offset[:, :, None]], 2), height, width)
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def _levels(image: Tensor) -> Tensor:
    """Return values in [0, 1] as bytes 0..255, rounded.

    On a CPU, work on 8 images at a time, which fit into its cache.
    """
    parts = torch.tensor_split(image, tuple(range(8, len(image), 8))) if image.device.type == "cpu" else (image,)
    return torch.cat([(part * 255).round_().int().byte() for part in parts])


def apply_view(image: Tensor, draw: Draw) -> Tensor:
    """Augment images as the given random choices say, and return the augmented images (a view).

    Args:
        image: [n, bands, height, width] with values in [0, 1].
        draw: The random choices, on the same device.

    Returns:
        [n, bands, height, width] with values in [0, 1].
    """
    if draw.style == "fixmatch":
        levels = apply_rounds(_crop(_levels(image), draw), draw.rounds, strong_fixmatch.FIXMATCH)
        return fill_boxes(levels, draw.boxes, 255).float().div_(255)
    image = _warp(image, draw)
    operations = strong_stssl.PHOTOMETRIC if draw.style == "stssl" else strong_kornia.KORNIA[draw.style]
    return fill_boxes(apply_rounds(image, draw.rounds, operations), draw.boxes, 1)
