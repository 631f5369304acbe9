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
    """Track which blocks (groups of windows) of a map are finished, to tell how many complete rows of windows exist."""

    def __init__(self, plan: BlockPlan, missing: list[int]) -> None:
        """Set which blocks are missing at the start of the prediction.

        Args:
            plan: All blocks of the map.
            missing: Numbers of the blocks that no earlier prediction has finished.
        """
        self.plan, self.missing = plan, set(missing)

    def add(self, number: int) -> None:
        """Record that the block `number`, a group of windows, is finished."""
        self.missing.discard(number)

    @property
    def windows(self) -> int:
        """Return the number of finished rows of windows, counted from the map's top down to the first missing block."""
        blocks = min(self.missing) // self.plan.shape[1] if self.missing else self.plan.shape[0]
        return min(blocks * self.plan.rows, self.plan.grid.down.count)


class MapAssembly:
    """Blend the predictions of windows to pixels. Write pixels as soon as all windows that touch them are finished."""

    def __init__(self, kept: KeptBlocks, bands: MapBands, target: MapFile, file: DatasetWriter) -> None:
        """Store where the predictions come from and where the pixels go. `advance` will write the pixels.

        Args:
            kept: Reader of the finished blocks (groups of windows), which lie on disk.
            bands: Description of the map's bands.
            target: Writer of the map.
            file: Open file of the map.
        """
        self.kept, self.bands, self.target, self.file = kept, bands, target, file
        self.row, self.measured = 0, 0

    def advance(self, ready: int) -> None:
        """Write the next rows of the map's pixels, as far down as all windows that touch them are finished.

        Args:
            ready: Number of finished rows of windows, counted from the map's top.

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
        """Yield the numbers of the map's columns, [width] at a time: one tile wide, or more if the map has few classes.

        Together these arrays have all columns. Blending more columns at a time would need too much memory.
        """
        axis, classes = self.kept.plan.grid.across, max(1, len(self.bands.names))
        width = max(1, CHUNK_NUMBERS // (TILE * TILE * classes)) * TILE
        for left in range(0, axis.size, width):
            yield np.arange(left, min(left + width, axis.size), dtype=np.int64)

    def _write(self, rows: Ints, columns: Ints, down: range) -> None:
        """Blend the predictions of windows to a rectangle of pixels, and write this rectangle into the map.

        Args:
            rows: [h] numbers of the rectangle's rows.
            columns: [w] numbers of its columns.
            down: Numbers of the rows of windows that contain at least one of these pixels.
        """
        grid = self.kept.plan.grid
        first, last = int(columns[0]), int(columns[-1]) + 1
        numbers = (down, grid.across.touching(first, last))
        values, covered = blend(grid, (rows, columns), numbers, *self.kept.windows(*numbers))
        there = covered & self.kept.measured(range(int(rows[0]), int(rows[-1]) + 1), range(first, last))
        self.measured += int(there.sum())
        self.target.write(self.file, int(rows[0]), first, self.bands.encoded(values, there))
