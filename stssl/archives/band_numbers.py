"""Convert the stored numbers of a band to those that students (trained networks) expect: 0 means zero reflectance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from stssl.base.arrays import AnyArray


@dataclass(frozen=True)
class BandNumbers:
    """Describe the stored numbers of a band.

    Attributes:
        nodata: Stored number that means "not measured", beside what the file itself marks; None for none.
        shift: Number to add to stored numbers.
        factor: Number to multiply the shifted numbers by.
    """

    nodata: int | None = None
    shift: float = 0.0
    factor: float = 1.0

    @property
    def plain(self) -> bool:
        """Return True if stored numbers need no conversion."""
        return not self.shift and self.factor == 1

    def measured(self, stored: AnyArray) -> NDArray[np.bool_] | None:
        """Return True for each number that does not mean "not measured"; None if all numbers are measured."""
        return None if self.nodata is None else np.asarray(stored != self.nodata)

    def converted(self, stored: AnyArray) -> AnyArray:
        """Shift and scale stored integers, and clip them to the range of their type."""
        if self.plain:
            return stored
        limits = np.iinfo(str(stored.dtype))
        moved = np.rint((stored.astype(np.float64) + self.shift) * self.factor)
        return np.clip(moved, limits.min, limits.max).astype(stored.dtype)


def numbers_of(file: DatasetReader, index: int) -> BandNumbers:
    """Return the shift of a band's stored numbers, computed from the scale and the offset that its file states.

    Files of some archives state reflectance = scale * number + offset. Students expect scale * number.

    Args:
        file: Open file.
        index: Number of the band in its file, from 1.
    """
    scale, offset = float(file.scales[index - 1]), float(file.offsets[index - 1])
    shift = offset / scale if offset and scale and np.isfinite(offset / scale) else 0.0
    return BandNumbers(shift=shift)
