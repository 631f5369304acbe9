"""Lay windows over a scene, and blend the predictions of windows into predictions of pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Floats, Ints


@dataclass(frozen=True)
class WindowAxis:
    """Describe windows (parts of a scene that a student classifies) along the scene's rows or columns.

    All windows have the same distance, the stride. It divides the scene into cells. Each window has its cell near its
    middle, and reaches over the scene's edge at the first and last cells.

    Attributes:
        size: Length of the scene in pixels.
        window: Length of a window in pixels.
        stride: Distance between the first pixels of neighboring windows. This is also the length of a cell.
        margin: Number of pixels that a window begins before its cell.
    """

    size: int
    window: int
    stride: int
    margin: int

    @property
    def count(self) -> int:
        """Return the number of windows along this axis."""
        return -(-self.size // self.stride)

    def start(self, number: int) -> int:
        """Return the position of a window's first pixel. It is negative if the window begins before the scene.

        `number` is the number of the window along this axis, from 0.
        """
        return number * self.stride - self.margin

    def touching(self, first: int, last: int) -> range:
        """Return the numbers of the windows that contain at least one of the pixels first..last-1."""
        low = max(0, -(-(first + self.margin - self.window + 1) // self.stride))
        return range(low, min(self.count, (last - 1 + self.margin) // self.stride + 1))

    def weights(self, pixels: Ints, numbers: range) -> Floats:
        """Return the weights of windows at pixels: a sin^2 curve, 1 in a window's middle and almost 0 at its ends.

        Args:
            pixels: [n] positions of pixels along this axis.
            numbers: Numbers of m windows.

        Returns:
            [n, m] weights; 0 where the window does not contain the pixel.
        """
        starts = np.array([self.start(number) for number in numbers], np.float64)
        share = (pixels[:, None] + 0.5 - starts) / self.window
        return np.where((share > 0) & (share < 1), np.sin(np.pi * share) ** 2, 0).astype(np.float32)


@dataclass(frozen=True)
class WindowGrid:
    """Describe windows (parts of a scene that a student classifies), which lie over a scene in rows and columns.

    Attributes:
        down: Windows along the height of the scene.
        across: Windows along its width.
    """

    down: WindowAxis
    across: WindowAxis

    @property
    def count(self) -> int:
        """Return the number of windows in the whole scene."""
        return self.down.count * self.across.count


def blend(
    grid: WindowGrid,
    pixels: tuple[Ints, Ints],
    numbers: tuple[range, range],
    values: Floats,
    valid: NDArray[np.bool_],
) -> tuple[Floats, NDArray[np.bool_]]:
    """Average the predictions of all windows that contain a pixel, for many pixels of a scene.

    The pixels form a rectangle, or a grid of pixels at larger distances. A window counts more if its middle is near the
    pixel.

    Args:
        grid: Windows of the scene.
        pixels: [h] rows and [w] columns of the pixels.
        numbers: Numbers of the m rows and n columns of windows that have predictions in `values`. All windows that
            contain one of the pixels must be among them.
        values: [m, n, C] predictions of the windows.
        valid: [m, n] False for windows without a prediction.

    Returns:
        [h, w, C] averages, and [h, w] False for pixels without a prediction. Their averages are 0.
    """
    down, across = grid.down.weights(pixels[0], numbers[0]), grid.across.weights(pixels[1], numbers[1])
    weighed = np.concatenate([values * valid[..., None], valid[..., None].astype(np.float32)], 2)
    tall = (down @ weighed.reshape(len(numbers[0]), -1)).reshape(len(down), len(numbers[1]), -1)
    total = across @ tall
    weight = total[..., -1:]
    covered = weight[..., 0] > 0
    return total[..., :-1] / np.where(weight > 0, weight, 1), covered
