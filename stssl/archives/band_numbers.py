"""Convert the numbers that a file stores for a band to those that students (trained networks) expect.

Students expect that 0 means zero reflectance.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from stssl.base.arrays import AnyArray


@dataclass(frozen=True)
class BandNumbers:
    """Hold how to convert the stored numbers of a band to those that students (trained networks) expect.

    The converted number is (stored number + shift) * factor.

    Attributes:
        nodata: Stored number that means "not measured", in addition to the file's own mask; None if there is none.
        shift: Number to add to stored numbers.
        factor: Number to multiply the shifted numbers by.
    """

    nodata: int | None = None
    shift: float = 0.0
    factor: float = 1.0

    @property
    def plain(self) -> bool:
        """Return True if the stored numbers need no conversion: the shift is 0 and the factor is 1."""
        return not self.shift and self.factor == 1

    def measured(self, stored: AnyArray) -> NDArray[np.bool_] | None:
        """Return which stored numbers are measured: booleans of the same shape, False where a number equals `nodata`.

        Return None if the band has no `nodata`.
        """
        return None if self.nodata is None else np.asarray(stored != self.nodata)

    def converted(self, stored: AnyArray) -> AnyArray:
        """Return stored integers after shift and scaling, rounded and clipped to the range of their type.

        The result has the shape and the type of `stored`, an array.
        """
        if self.plain:
            return stored
        limits = np.iinfo(str(stored.dtype))
        moved = np.rint((stored.astype(np.float64) + self.shift) * self.factor)
        return np.clip(moved, limits.min, limits.max).astype(stored.dtype)


def shift_remarks(name: str, numbers: Iterable[BandNumbers]) -> Iterator[str]:
    """Yield a remark if the metadata of a scene state an offset, such as -1000, which is added to its pixel values.

    Args:
        name: Name of the scene.
        numbers: How the numbers of the scene's bands are converted.
    """
    shifts = sorted({one.shift for one in numbers} - {0.0})
    if shifts:
        words = ", ".join(f"{shift:+g}" for shift in shifts)
        yield f"{name}: its metadata state an offset ({words}), which is applied: 0 means zero reflectance"


def stated_numbers(scale: float, offset: float) -> BandNumbers:
    """Return how to shift a band's stored numbers, given the scale and the offset that its file states.

    Files of some archives state reflectance = scale * number + offset. Students (trained networks) expect scale *
    number, so the shift is offset / scale. It is 0 if the file states no offset. The returned `BandNumbers` does not
    scale.

    Args:
        scale: Stated scale; 1 if the file states none.
        offset: Stated offset; 0 if the file states none.
    """
    shift = offset / scale if offset and scale and np.isfinite(offset / scale) else 0.0
    return BandNumbers(shift=shift)


def numbers_of(file: DatasetReader, index: int) -> BandNumbers:
    """Return how to shift the stored numbers of a band of an open file, as `stated_numbers` does.

    Args:
        file: Open file.
        index: Number of the band in its file, from 1.
    """
    return stated_numbers(float(file.scales[index - 1]), float(file.offsets[index - 1]))
