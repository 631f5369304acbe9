"""Load batches of the labeled and the unlabeled stream. A thread loads them before the step that needs them."""

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
            views: Wanted views.
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        ...

    def drop_metadata(self, metadata: Tensor, stream: Stream, epochs: Ints, rows: Ints) -> Tensor:
        """Set some metadata to NaN at random.

        Args:
            metadata: [n, 4] with the columns of `MetadataColumn`.
            stream: Stream of the rows.
            epochs: [n] epoch of each row.
            rows: [n] store rows.
        """
        ...


@dataclass(frozen=True)
class StreamSource:
    """Hold the sources of the patches of one stream.

    The store has N rows, and the stream has `size` of them. G is the number of decisions a patch (see `base.labels`).

    Attributes:
        reader: Reader of pixels.
        rows: [size] store rows of the stream.
        metadata: [N, 4] metadata of all store rows.
        labels: [N, G] choice ids of all store rows.
        sampler: Chooses the positions of each batch. A position, 0..size-1, is a place in `rows`.
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
        """Load the rows of this rank from the global batch of a step, with random choices for their views.

        Args:
            views: Views that the step uses. All must be of this stream.
            draw: Draws the random choices.
            step: Number of the step.
            ranks: This rank and the number of ranks.
        """
        stream = next(iter(views)).stream
        positions, epochs = self.sampler.rows(step, rows_of(self.sampler.batch, *ranks))
        rows = self.rows[positions]
        chosen = torch.from_numpy(rows)
        arrays = self.reader.read(rows)
        # Draw by store row, not by position. So another split of the same store augments a patch in the same way.
        metadata = draw.drop_metadata(self.metadata[chosen], stream, epochs, rows)
        draws = draw(views, epochs, rows)
        return RawRows(arrays, metadata, self.labels[chosen], torch.from_numpy(positions), chosen, draws)


class Loader:
    """Iterate over the global batches of a range of steps. Deliver the part of this rank."""

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
            sources: Sources of the patches of each stream.
            draw: Draws the random choices of views.
            views: Function that returns the views of a step. If a stream has no view in a step, do not read it.
            rank: Number of this process.
            world: Number of processes.
        """
        self.sources, self.draw, self.views, self.ranks = sources, draw, views, (rank, world)

    def load(self, step: int) -> RawBatch:
        """Read the rows of one step in the calling thread."""
        return {
            stream: source.load(views, self.draw, step, self.ranks) for stream, source, views in self._streams(step)
        }

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Return the store rows that all ranks together use in a step, by name of the stream."""
        return {stream.value: source.global_rows(step) for stream, source, _ in self._streams(step)}

    def rows_at(self, step: int) -> int:
        """Return how many patches all ranks together read in a step."""
        return sum(source.sampler.batch for _, source, _ in self._streams(step))

    def _streams(self, step: int) -> Iterator[tuple[Stream, StreamSource, list[View]]]:
        """Yield the streams that a step uses, each with its source and its views."""
        wanted = self.views(step)
        for stream, source in self.sources.items():
            if views := [view for view in wanted if view.stream is stream]:
                yield stream, source, views

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawBatch]:
        """Yield the rows of each step. A thread reads up to `ahead` steps in advance.

        If the rows of a step cannot be read, raise the error at this step.

        Args:
            start: First step.
            stop: The step after the last one.
            ahead: Number of steps to read in advance.
        """
        yield from prefetch((partial(self.load, step) for step in range(start, stop)), ahead)


def prefetch(jobs: Iterator[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """Run jobs in one thread, up to `ahead` jobs in advance. Yield the results in the sequence of the jobs."""
    # One thread keeps the sequence. Reading releases the GIL, so it overlaps with the step.
    pool = ThreadPoolExecutor(1, "stssl-loader")
    try:
        running = deque(pool.submit(job) for job in islice(jobs, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    finally:
        # Cancel the waiting reads. If the loop ends early (an error, SIGTERM), they must not delay the end.
        pool.shutdown(cancel_futures=True)


def metadata_table(lat: ColumnArray, lon: ColumnArray, day: ColumnArray, time: ColumnArray) -> Tensor:
    """Arrange columns of a store with N patches as metadata. A missing value becomes NaN.

    Args:
        lat: [N] degrees north; NaN if missing.
        lon: [N] degrees east; NaN if missing.
        day: [N] day of year 1..366; below 1 if missing.
        time: [N] seconds since 1970-01-01 UTC; the smallest int64 if missing.

    Returns:
        [N, 4] float32 with the columns of `MetadataColumn`.
    """
    # The smallest int64 stands for a missing time. Do not divide it: the remainder would look like a valid hour.
    known = time != np.iinfo(np.int64).min
    hour = np.where(known, (np.where(known, time, 0) % 86400) / 3600, np.nan)
    date = np.where(day >= 1, day, np.nan)
    columns = {MetadataColumn.LAT: lat, MetadataColumn.LON: lon, MetadataColumn.DAY: date, MetadataColumn.HOUR: hour}
    return torch.from_numpy(np.stack([columns[column] for column in MetadataColumn], 1).astype(np.float32))
