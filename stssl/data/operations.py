"""Apply each operation of RandAugment to the images for which it was chosen, and define what several styles share."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl.base.arrays import Floats, Ints

Operation = Callable[[Tensor, Tensor], Tensor]
"""Operation on images [k, bands, height, width] with amounts [k, c] (such as a factor). It may change its input."""
Rounds = tuple[dict[str, tuple[Tensor, Tensor]], ...]
"""For each round, by name of the operation: the rows [k] that drew it, and their amounts [k, c]."""
LEVELS = 256
"""Number of values of a byte."""


def group_rounds(choices: Ints, amounts: Floats | NDArray[np.float64], names: Sequence[str | None]) -> Rounds:
    """Group the images of each round by the operation that was chosen for them.

    Args:
        choices: [n, rounds] number of the operation for each image and round. A negative number chooses none.
        amounts: [n, rounds, c] amounts of the operations, such as a factor.
        names: Name of each operation number. Numbers with the same name form one group; the name None does nothing.

    Returns:
        For each round, by name of the operation: the row numbers [k] of its images, and their amounts [k, c].
    """
    groups = {name: group for group, name in enumerate(dict.fromkeys(names)) if name is not None}
    # Look up the groups of all rounds at once: `np.isin` for each name and round took two fifths of the time that all
    # random choices of a batch take.
    table = np.array([-1 if name is None else groups[name] for name in (*names, None)])
    group_of = table[np.where(choices < 0, len(names), choices)]
    found = []
    for i in range(choices.shape[1]):
        drawn = {name: np.flatnonzero(group_of[:, i] == group) for name, group in groups.items()}
        found.append(
            {
                name: (torch.from_numpy(rows), torch.from_numpy(amounts[rows, i]))
                for name, rows in drawn.items()
                if len(rows)
            }
        )
    return tuple(found)


def apply_rounds(image: Tensor, rounds: Rounds, operations: Mapping[str, Operation]) -> Tensor:
    """Apply the operations of all rounds to images, in place, and return the images.

    Args:
        image: [n, bands, height, width], with bytes in the style `fixmatch`, else with values in [0, 1].
        rounds: For each round, row numbers of the images and amounts by operation, on the device of the images.
        operations: Functions that apply an operation, by name.
    """
    for drawn in rounds:
        for name, (rows, amounts) in drawn.items():
            # Compute each operation only on the images for which it was chosen: all operations on all images would
            # cost several times as much. Each image has one operation in a round, so it can be changed in place.
            _put(image, rows, operations[name](image.index_select(0, rows), amounts))
    return image


def _put(image: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Replace some images of a batch, in place.

    Args:
        image: [n, bands, height, width] the batch.
        rows: [k] numbers of the images to replace.
        changed: [k, bands, height, width] the new images.
    """
    if image.device.type != "cpu":
        image.index_copy_(0, rows, changed)
        return
    # Copy image by image on a CPU: `index_copy_` copies number by number, which takes four times as long.
    for row, one in zip(rows.tolist(), changed, strict=True):
        image[row].copy_(one)


def sampling_grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Return where each pixel of k resampled images comes from, as `functional.grid_sample` needs it.

    Coordinates go from -1 to 1 between the centers of the corner pixels. This equals `affine_grid` with
    `align_corners=True`, but on a CPU it is several times as fast.

    Args:
        maps: [k, 2, 3] affine maps from the result to its source.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        [k, height, width, 2]: x, then y.
    """
    x = torch.linspace(-1, 1, width, device=maps.device)
    y = torch.linspace(-1, 1, height, device=maps.device)[:, None]
    grid = torch.empty(len(maps), height, width, 2, device=maps.device)
    for i in (0, 1):
        along, across, offset = (maps[:, i, j, None, None] for j in range(3))
        torch.add(along * x, across * y + offset, out=grid[..., i])
    return grid


def at_least(image: Tensor, threshold: Tensor) -> Tensor:
    """Return 1.0 where a pixel of `image` is at least the threshold, else 0.0. `torch.lerp` takes these as weights.

    With these weights, `lerp` returns one of its two inputs exactly. On a CPU, `torch.where` takes ten times as long.
    """
    return torch.ge(image, threshold, out=torch.empty_like(image))


def factor(amounts: Tensor, column: int = 0) -> Tensor:
    """Return one column of the amounts [k, c] of k images as [k, 1, 1, 1], so that it can multiply the images."""
    return amounts[:, column, None, None, None]


def count_levels(levels: Tensor) -> Tensor:
    """Return the histogram of each band of k images: how many pixels have each of the levels 0..255.

    Args:
        levels: [k, bands, pixels] int64, 0..255.

    Returns:
        [k, bands, 256] int64.
    """
    shape = (*levels.shape[:2], LEVELS)
    if levels.device.type == "cpu":
        first = torch.arange(shape[0] * shape[1]).view(*shape[:2], 1) * LEVELS
        return (levels + first).reshape(-1).bincount(minlength=first.numel() * LEVELS).view(shape)
    # Avoid `bincount` on a GPU: it would wait until the GPU has done all earlier work.
    counts = torch.zeros(shape, dtype=torch.int64, device=levels.device)
    return counts.scatter_add_(2, levels, torch.ones_like(levels))


def equalizing_table(counts: Tensor) -> Tensor:
    """Return tables [k, bands, 256] that equalize histograms, as Pillow and kornia do: the new value of each level.

    With `div` as integer division, level j becomes (number of pixels below j + step div 2) div step, at most 255. The
    step is the number of pixels that are not in the highest level, div 255. If it is 0, levels stay the same.

    Args:
        counts: [k, bands, 256] int64: how many pixels of each band have each of the levels 0..255.
    """
    level = torch.arange(LEVELS, device=counts.device)
    highest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // (LEVELS - 1)
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp_min(1)
    return torch.where(step > 0, table.clamp_max_(LEVELS - 1), level)


def box_sums(image: Tensor) -> Tensor:
    """Return the sum of the 3 x 3 pixels around each inner pixel of images [..., h, w]: [..., h - 2, w - 2]."""
    rows = image[..., :-2, :] + image[..., 1:-1, :]
    rows += image[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1]
    sums += rows[..., 2:]
    return sums
