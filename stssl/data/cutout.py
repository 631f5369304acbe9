"""Hide a square of each image behind gray (Cutout: DeVries and Taylor 2017, arXiv:1708.04552), as FixMatch does."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl.base.arrays import Floats

GRAY = (125, 123, 114)
"""FixMatch's gray: red, green and blue from 0 to 255."""
OTHER_GRAY = 121
"""Gray of images with another number of bands than three: the mean of `GRAY`."""


def draw_cutout(numbers: Floats, size: int, largest: float) -> Tensor:
    """Choose at random where the gray square of each of n images lies. It may reach over the right and lower border.

    Args:
        numbers: [n, 3] uniform numbers in [0, 1).
        size: Side of the images in pixels.
        largest: Largest side of the square, as a share of the side of the image.

    Returns:
        [n, 4] int64: first column, last column, first row, last row, all inclusive. For an image without a square, the
        last column lies before the first.
    """
    return cutout_boxes(numbers.astype(np.float64) * [largest, size, size], size)


def cutout_boxes(share_x_y: NDArray[np.float64], size: int) -> Tensor:
    """Return the columns and rows that gray squares fill, given their sides and centers.

    Args:
        share_x_y: [n, 3] side of each square, as a share of the side of the image, and x and y of its center in pixels.
        size: Side of the images in pixels.

    Returns:
        [n, 4] int64: first column, last column, first row, last row, all inclusive. If the side of a square is 0, the
        last column lies before the first.
    """
    side = share_x_y[:, :1] * size
    first = np.trunc(np.maximum(share_x_y[:, 1:] - side / 2, 0))
    # Follow FixMatch: if the border of the image moves the first pixel, the square still has its whole side. The last
    # pixel belongs to it, because Pillow's rectangles include it.
    last = np.trunc(np.minimum(first + side, size))
    last = np.where(side > 0, last, -1)
    return torch.from_numpy(np.stack([first, last], 2).reshape(-1, 4).astype(np.int64))


def fill_boxes(image: Tensor, boxes: Tensor | None, white: int) -> Tensor:
    """Fill a square of each image with gray (half of white), and return the images.

    Args:
        image: [n, bands, height, width]. On a CPU, the images change in place. On a GPU, the result is a copy.
        boxes: [n, 4] first column, last column, first row and last row of each square, on the device of the images;
            None changes nothing.
        white: Value of a white pixel: 255 for bytes, else 1.
    """
    if boxes is None:
        return image
    colors = GRAY if image.shape[1] == len(GRAY) else (OTHER_GRAY,)
    gray = torch.tensor(colors).mul(white / 255).to(image)[:, None, None]
    if image.device.type == "cpu":
        for one, (left, right, top, bottom) in zip(image, boxes.tolist(), strict=True):
            one[:, top : bottom + 1, left : right + 1] = gray
        return image
    # Fill the squares of all images at once: on a GPU, a loop over images would be slow.
    height, width = image.shape[2:]
    x, y = torch.arange(width, device=image.device), torch.arange(height, device=image.device)
    left, right, top, bottom = boxes[:, :, None].unbind(1)
    columns, rows = (x >= left) & (x <= right), (y >= top) & (y <= bottom)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], gray, image)
