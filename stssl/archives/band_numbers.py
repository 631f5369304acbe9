"""Convert the numbers that a file stores for a band to those that students (trained networks) expect.

Students expect that 0 means zero reflectance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from stssl.base.arrays import AnyArray


@dataclass(frozen=True)
class BandNumbers:
    """Describe how the stored numbers of a band become those that students (trained networks) expect.

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
        """Return True if stored numbers need no conversion."""
        return not self.shift and self.factor == 1

    def measured(self, stored: AnyArray) -> NDArray[np.bool_] | None:
        """Return for each stored number whether it differs from `nodata`; None if the band has no such number."""
        return None if self.nodata is None else np.asarray(stored != self.nodata)

    def converted(self, stored: AnyArray) -> AnyArray:
        """Return the shifted and scaled stored integers, rounded and clipped to the range of their type."""
        if self.plain:
            return stored
        limits = np.iinfo(str(stored.dtype))
        moved = np.rint((stored.astype(np.float64) + self.shift) * self.factor)
        return np.clip(moved, limits.min, limits.max).astype(stored.dtype)


def numbers_of(file: DatasetReader, index: int) -> BandNumbers:
    """Describe how a band's stored numbers must be shifted, by the scale and the offset that its file states.

    Files of some archives state reflectance = scale * number + offset. Students expect scale * number, so the shift is
    offset / scale. It is 0 if the file states no offset.

    Args:
        file: Open file.
        index: Number of the band in its file, from 1.
    """
    scale, offset = float(file.scales[index - 1]), float(file.offsets[index - 1])
    shift = offset / scale if offset and scale and np.isfinite(offset / scale) else 0.0
    return BandNumbers(shift=shift)
