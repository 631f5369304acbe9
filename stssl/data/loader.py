"""Load batches of the labeled and the unlabeled stream in a thread, ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import MetadataColumn, Stream, View
from stssl.base.distributed import rows_of
from stssl.data.augment import Draw
from stssl.data.order import Sampler
from stssl.data.views import RawBatch, RawRows
from stssl.store.schema import ColumnArray

Result = TypeVar("Result")


class PatchReader(Protocol):
    """Read the pixels of store rows."""

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Read one tensor [n, bands, height, width] for each band group."""
        ...


class Drawer(Protocol):
    """Draw the random choices of views."""

    def __call__(self, views: Collection[View], epochs: Ints, rows: Ints) -> dict[View, Draw]:
        """Draw the choices for each view of some patches.

        Args:
            views: Views that are wanted.
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        ...

    def drop_metadata(self, metadata: Tensor, stream: Stream, epochs: Ints, rows: Ints) -> Tensor:
        """Set some metadata to NaN at random.

        Args:
            metadata: [n, 4], columns as in `MetadataColumn`.
            stream: Stream of the rows.
            epochs: [n] epoch of each row.
            rows: [n] store rows.
        """
        ...


@dataclass(frozen=True)
class StreamSource:
    """Hold what the patches of one stream are read from.

    Attributes:
        reader: Delivers the pixels of store rows.
        rows: [size] store rows of the stream.
        metadata: [N, 4] of all store rows.
        labels: [N, G] choice ids of all store rows.
        sampler: The stream's order over positions 0..size-1.
    """

    reader: PatchReader
    rows: Ints
    metadata: Tensor
    labels: Tensor
    sampler: Sampler

    def global_rows(self, step: int) -> list[int]:
        """List the store rows that all ranks together use in a step."""
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def load(self, views: Collection[View], draw: Drawer, step: int, ranks: tuple[int, int]) -> RawRows:
        """Load this rank's rows of a step's global batch, with random choices for this stream's views.

        Args:
            views: Views that the step uses, all of this stream.
            draw: Draws the random choices.
            step: Number of the step.
            ranks: This rank and the number of ranks.
        """
        stream = next(iter(views)).stream
        positions, epochs = self.sampler.rows(step, rows_of(self.sampler.batch, *ranks))
        rows = self.rows[positions]
        chosen = torch.from_numpy(rows)
        arrays = self.reader.read(rows)
        # Drawn by store row, not by position: another split of the same store then augments a patch in the same way.
        metadata = draw.drop_metadata(self.metadata[chosen], stream, epochs, rows)
        draws = draw(views, epochs, rows)
        return RawRows(arrays, metadata, self.labels[chosen], torch.from_numpy(positions), chosen, draws)


class Loader:
    """Iterate over this rank's part of the global batches of a range of steps, in order."""

    def __init__(
        self,
        sources: Mapping[Stream, StreamSource],
        draw: Drawer,
        views: Callable[[int], Collection[View]],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Load contiguous rows of each global batch.

        Args:
            sources: The patches of each stream.
            draw: Draws the random choices of views.
            views: Returns the views that a step uses; a stream without any is not read in that step.
            rank: Number of this process.
            world: Number of processes.
        """
        self.sources, self.draw, self.views, self.ranks = sources, draw, views, (rank, world)

    def load(self, step: int) -> RawBatch:
        """Read one step's rows in the calling thread."""
        return {
            stream: source.load(views, self.draw, step, self.ranks) for stream, source, views in self._streams(step)
        }

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Return the store rows that all ranks together use in a step, by the name of their stream."""
        return {stream.value: source.global_rows(step) for stream, source, _ in self._streams(step)}

    def rows_at(self, step: int) -> int:
        """Count the patches that all ranks together read in a step."""
        return sum(source.sampler.batch for _, source, _ in self._streams(step))

    def _streams(self, step: int) -> Iterator[tuple[Stream, StreamSource, list[View]]]:
        """Yield the streams that a step uses, with its views of each."""
        wanted = self.views(step)
        for stream, source in self.sources.items():
            if views := [view for view in wanted if view.stream is stream]:
                yield stream, source, views

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawBatch]:
        """Yield the rows of each step, read by a thread up to `ahead` steps before they are needed.

        An error of the reader is raised here, at the step whose rows could not be read.

        Args:
            start: First step.
            stop: Step to stop before.
            ahead: Steps to read ahead.
        """
        yield from prefetch((partial(self.load, step) for step in range(start, stop)), ahead)


def prefetch(jobs: Iterator[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """Run jobs in one thread, up to `ahead` before their results are asked for, and yield the results in order."""
    # One thread keeps the order; reading releases the GIL, so that it overlaps with the step.
    pool = ThreadPoolExecutor(1, "stssl-loader")
    try:
        running = deque(pool.submit(job) for job in islice(jobs, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    finally:
        # When the loop ends early (an error, SIGTERM), reads that were planned ahead must not hold the process back.
        pool.shutdown(cancel_futures=True)


def metadata_table(lat: ColumnArray, lon: ColumnArray, day: ColumnArray, time: ColumnArray) -> Tensor:
    """Arrange columns of a store as [N, 4] float32 metadata, NaN where a value is missing.

    Args:
        lat: [N] degrees north, NaN where missing.
        lon: [N] degrees east, NaN where missing.
        day: [N] day of year 1..366; below 1 where missing.
        time: [N] seconds since 1970-01-01 UTC; the smallest int64 where missing.

    Returns:
        Columns as in `MetadataColumn`.
    """
    # The missing time is the smallest int64, whose remainder by a day would be a valid hour.
    known = time != np.iinfo(np.int64).min
    hour = np.where(known, (np.where(known, time, 0) % 86400) / 3600, np.nan)
    date = np.where(day >= 1, day, np.nan)
    columns = {MetadataColumn.LAT: lat, MetadataColumn.LON: lon, MetadataColumn.DAY: date, MetadataColumn.HOUR: hour}
    return torch.from_numpy(np.stack([columns[column] for column in MetadataColumn], 1).astype(np.float32))
