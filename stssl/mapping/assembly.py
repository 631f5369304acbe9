"""Blend the predictions in a map's finished blocks (groups of windows) to pixels, and write the pixels top down."""

from collections.abc import Iterator

import numpy as np
from rasterio.io import DatasetWriter

from stssl.base.arrays import Ints
from stssl.mapping.blocks import BlockPlan
from stssl.mapping.kept_blocks import KeptBlocks
from stssl.mapping.map_bands import MapBands
from stssl.mapping.map_file import TILE, MapFile
from stssl.mapping.windows import blend

CHUNK_NUMBERS = 1 << 22
"""Largest number of values (pixels times classes) that are blended at a time."""


class FinishedRows:
    """Record which blocks (groups of windows) are finished. Count the rows of windows above the first missing block."""

    def __init__(self, plan: BlockPlan, missing: list[int]) -> None:
        """Set which blocks are missing at the start of the prediction.

        Args:
            plan: Blocks of the map.
            missing: Numbers of the missing blocks.
        """
        self.plan, self.missing = plan, set(missing)

    def add(self, number: int) -> None:
        """Record that the block `number` is finished."""
        self.missing.discard(number)

    @property
    def windows(self) -> int:
        """Return how many rows of windows are finished, from the top down to the first missing block."""
        blocks = min(self.missing) // self.plan.shape[1] if self.missing else self.plan.shape[0]
        return min(blocks * self.plan.rows, self.plan.grid.down.count)


class MapAssembly:
    """Write the pixels of a map as soon as all windows that touch them are finished."""

    def __init__(self, kept: KeptBlocks, bands: MapBands, target: MapFile, file: DatasetWriter) -> None:
        """Store the source and the target of the map's pixels. Write nothing yet: `advance` writes them from the top.

        Args:
            kept: Finished blocks on disk.
            bands: Bands of the map.
            target: Writer of the map.
            file: Open file of the map.
        """
        self.kept, self.bands, self.target, self.file = kept, bands, target, file
        self.row, self.measured = 0, 0

    def advance(self, ready: int) -> None:
        """Write the next rows of the map's pixels, as far down as all windows that touch them are finished.

        Args:
            ready: Number of finished rows of windows, from the top down.

        Raises:
            RunError: The map cannot be written.
        """
        axis = self.kept.plan.grid.down
        while self.row < axis.size:
            bottom = min(self.row + TILE, axis.size)
            down = axis.touching(self.row, bottom)
            if down.stop > ready:
                return
            rows = np.arange(self.row, bottom, dtype=np.int64)
            for columns in self._chunks():
                self._write(rows, columns, down)
            self.row = bottom

    def _chunks(self) -> Iterator[Ints]:
        """Yield ranges of columns to blend at a time: one tile wide, or more if the map has few classes.

        A larger range would need too much memory.
        """
        axis, classes = self.kept.plan.grid.across, max(1, len(self.bands.names))
        width = max(1, CHUNK_NUMBERS // (TILE * TILE * classes)) * TILE
        for left in range(0, axis.size, width):
            yield np.arange(left, min(left + width, axis.size), dtype=np.int64)

    def _write(self, rows: Ints, columns: Ints, down: range) -> None:
        """Blend the predictions of windows to a rectangle of pixels, and write this rectangle into the map."""
        grid = self.kept.plan.grid
        first, last = int(columns[0]), int(columns[-1]) + 1
        numbers = (down, grid.across.touching(first, last))
        values, covered = blend(grid, (rows, columns), numbers, *self.kept.windows(*numbers))
        there = covered & self.kept.measured(range(int(rows[0]), int(rows[-1]) + 1), range(first, last))
        self.measured += int(there.sum())
        self.target.write(self.file, int(rows[0]), first, self.bands.encoded(values, there))
