"""Match the bands of weights with the bands of images by name, and pick the first layer's kernels for these images."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stssl.base.errors import ConfigError

BandsMissing = Literal["zero", "mean"]
"""Kernels for bands that only the images have: zeros, or the mean of the file's kernels.

With the mean, all kernels are then multiplied by the number of the file's bands divided by that of the images. Bands of
one image are alike: the sum over more bands would be larger than what the next layers learned from."""
RGB = ("B04", "B03", "B02")
"""Red, green and blue, by their Sentinel-2 names."""
COLOR_BANDS = {"red": "B04", "green": "B03", "blue": "B02", "r": "B04", "g": "B03", "b": "B02"}
"""Other names of bands."""


class PickedBands(NamedTuple):
    """Tell which band of a weights file gives the kernels for each band of the images.

    Attributes:
        places: Index of each image band among the bands of the file; None if the file lacks it.
        dropped: Names of bands that only the file has.
        filled: Names of bands that only the images have.
    """

    places: list[int | None]
    dropped: list[str]
    filled: list[str]

    @property
    def changes(self) -> bool:
        """Return True if the kernels of the file must be reordered, dropped or filled for the bands of the images."""
        return self.places != list(range(len(self.places))) or bool(self.dropped)


def same_band(name: str) -> str:
    """Return the one name that stands for all spellings of a band: `B04` for `B4` and `red`, `B8A` for `b8a`.

    A name that is not known is returned in lower case.
    """
    lower = name.strip().lower()
    if lower in COLOR_BANDS:
        return COLOR_BANDS[lower]
    number = re.fullmatch(r"b0*(\d{1,2})(a?)", lower)
    if number is None:
        return lower
    return f"B{number[1]}A" if number[2] else f"B{int(number[1]):02d}"


def pick_bands(
    file_bands: Sequence[str], image_bands: Sequence[str], missing: BandsMissing | None, what: str
) -> PickedBands:
    """Find each band of the images among the bands of a weights file.

    Return their indexes, and the bands without a match.

    Args:
        file_bands: Names of the file's bands, sorted as in its first layer.
        image_bands: Names of the images' bands, sorted as in their channels.
        missing: How bands that the file lacks will be filled, `zero` or `mean`; None raises an error for them.
        what: Name of the weights in messages.

    Raises:
        ConfigError: The file lacks a band of the images and `missing` is None, or the file has none of the images'
            bands.
    """
    known = [same_band(band) for band in file_bands]
    wanted = [same_band(band) for band in image_bands]
    places = [known.index(band) if band in known else None for band in wanted]
    filled = [band for band, place in zip(image_bands, places, strict=True) if place is None]
    dropped = [band for band, name in zip(file_bands, known, strict=True) if name not in wanted]
    if len(filled) == len(image_bands):
        raise ConfigError(
            f"model.weights: {what} was trained on {', '.join(file_bands)}, and data.bands has none of them. If the "
            "names mean the same bands, give model.weights_bands with the names of the store."
        )
    if filled and missing is None:
        raise ConfigError(
            f"model.weights: {what} was not trained on {', '.join(filled)} of data.bands (it has "
            f"{', '.join(file_bands)}). Leave these bands out, or set model.bands_missing to zero or mean."
        )
    return PickedBands(places, dropped, filled)


def picked_kernels(kernel: Tensor, picked: PickedBands, missing: BandsMissing | None) -> Tensor:
    """Return the kernels of a first layer for the bands of the images, made from the kernels of a weights file.

    Args:
        kernel: [outputs, file bands, height, width] kernels of the file.
        picked: Result of `pick_bands`: index of the file's band for each band of the images.
        missing: How to fill bands that the file lacks: `zero`, or `mean` of the file's kernels. None acts as `zero`.

    Returns:
        [outputs, image bands, height, width] kernels. Those of bands that the file has are unchanged. But if bands are
            filled with the mean, all kernels are scaled, so that their sum over the bands stays about as large.
    """
    by_mean = bool(picked.filled) and missing == "mean"
    other = kernel.mean(1) if by_mean else torch.zeros_like(kernel[:, 0])
    made = torch.stack([other if place is None else kernel[:, place] for place in picked.places], 1)
    return made * (kernel.shape[1] / len(picked.places)) if by_mean else made
