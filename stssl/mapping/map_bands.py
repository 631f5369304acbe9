"""Turn the probabilities of pixels into the bands of a map: classes or probabilities, and confidence."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Floats
from stssl.mapping.needs import SceneNeeds

Probabilities = Literal["uint8", "float32"]
CONFIDENCE = "confidence"
PRESENT = 0.5
"""Least probability at which a multi-label map has a class."""


@dataclass(frozen=True)
class MapBands:
    """Describe the bands of a map.

    The last band is the confidence. A map of probabilities has one band for each class before it. A map of classes has
    one band of class indexes before it or, if a place may have several classes, a band of 0 and 1 for each class.

    Attributes:
        names: Descriptions of the bands.
        dtype: Type of all bands.
        nodata: Value of pixels that are not measured.
        scales: Number by which to multiply the values of each band to get a probability; 1 for bands of classes.
        colors: Color [red, green, blue] of each class in the first band; empty if the map has no color table.
        probabilities: True if the bands before the confidence hold probabilities.
        multilabel: True if a place may have any number of classes.
    """

    names: tuple[str, ...]
    dtype: Literal["uint8", "uint16", "float32"]
    nodata: float
    scales: tuple[float, ...]
    colors: tuple[tuple[int, int, int], ...]
    probabilities: bool
    multilabel: bool

    @property
    def most(self) -> int:
        """Return the stored value that means probability 1, if the map's type is an integer."""
        return int(self.nodata) - 1

    def encoded(self, values: Floats, there: NDArray[np.bool_]) -> AnyArray:
        """Return the probabilities of a rectangle of pixels as the values [bands, h, w] that the map stores.

        Args:
            values: [h, w, C] probabilities of C classes.
            there: [h, w] False for pixels that get the nodata value.
        """
        planes = np.moveaxis(values, -1, 0)
        confidence = np.maximum(planes, 1 - planes).mean(0) if self.multilabel else planes.max(0)
        if self.probabilities:
            out = self._stored(np.concatenate([planes, confidence[None]], 0))
        elif self.multilabel:
            out = np.concatenate([(planes >= PRESENT).astype(self.dtype), self._stored(confidence[None])], 0)
        else:
            out = np.stack([planes.argmax(0).astype(self.dtype), self._stored(confidence)], 0)
        out[:, ~there] = self.nodata
        return out

    def _stored(self, values: Floats) -> AnyArray:
        """Return probabilities 0..1 as the map stores them: unchanged as floats, or as integers from 0 to `most`."""
        if self.dtype == "float32":
            return values.astype(np.float32)
        return np.rint(np.clip(values, 0, 1) * self.most).astype(self.dtype)


def map_bands(needs: SceneNeeds, probabilities: Probabilities | None) -> MapBands:
    """Choose the bands of a map and their type, and return their description.

    Args:
        needs: Classes of the students, their colors, and whether a place may have several classes.
        probabilities: Type of the probabilities to write, `uint8` or `float32`; None writes classes.
    """
    count = len(needs.classes)
    bands = ("class",) if probabilities is None and not needs.multilabel else needs.classes
    if probabilities == "float32":
        dtype: Literal["uint8", "uint16", "float32"] = "float32"
        nodata = float("nan")
    else:
        # Take the smallest type that has a number for each class, from 0, and another one, its largest, for nodata.
        dtype, nodata = ("uint8", 255) if len(bands) > 1 or count < 255 else ("uint16", 65535)
    unit = 1.0 if dtype == "float32" else 1 / (nodata - 1)
    own = unit if probabilities else 1.0
    table = tuple(_rgb(color) for color in needs.colors) if bands == ("class",) else ()
    scales = (*[own] * len(bands), unit)
    return MapBands((*bands, CONFIDENCE), dtype, nodata, scales, table, probabilities is not None, needs.multilabel)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
