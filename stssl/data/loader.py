"""Batches of the labeled and the unlabeled stream, read ahead of the step by a thread."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import MetadataColumn, Stream, View
from stssl.base.distributed import rows_of
from stssl.data.augment import Draw
from stssl.data.order import Sampler
from stssl.data.views import RawBatch, RawRows

T = TypeVar("T")


class PatchReader(Protocol):
    """Read pixels of store rows."""

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """One tensor [n, bands, height, width] for each band group."""
        ...


class Drawer(Protocol):
    """Draw the random choices of views."""

    def __call__(self, views: Collection[View], epochs: Ints, rows: Ints) -> dict[View, Draw]:
        """Choices for each view of the patches."""
        ...

    def drop_metadata(self, metadata: Tensor, stream: Stream, epochs: Ints, rows: Ints) -> Tensor:
        """Blank some metadata fields at random.

        Args:
            metadata: [n, 4].
            stream: Stream of the rows.
            epochs: [n] epoch of each row.
            rows: [n] positions in the stream.
        """
        ...


@dataclass(frozen=True)
class StreamSource:
    """One stream's patches.

    Attributes:
        reader: Delivers pixels of store rows.
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
        """Store rows of all ranks in a step."""
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def load(self, views: Collection[View], draw: Drawer, step: int, ranks: tuple[int, int]) -> RawRows:
        """Load this rank's rows of a step's global batch, with random choices for this stream's views.

        Args:
            views: Views that the step uses.
            draw: Draws the random choices.
            step: Number of the step.
            ranks: This rank and the number of ranks.
        """
        stream = next(iter(views)).stream
        positions, epochs = self.sampler.rows(step, rows_of(self.sampler.batch, *ranks))
        rows = self.rows[positions]
        chosen = torch.from_numpy(rows)
        arrays = self.reader.read(rows)
        metadata = draw.drop_metadata(self.metadata[chosen], stream, epochs, rows)
        draws = draw(views, epochs, rows)
        return RawRows(arrays, metadata, self.labels[chosen], torch.from_numpy(positions), chosen, draws)


class Loader:
    """Iterates over this rank's part of the global batches `start`..`stop`-1, in order."""

    def __init__(
        self,
        sources: Mapping[Stream, StreamSource],
        draw: Drawer,
        views: Callable[[int], Collection[View]],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Load rank `rank`'s contiguous rows of each global batch.

        Args:
            sources: The patches of each stream.
            draw: Draws the random choices of views.
            views: Those that a step looks at; a stream without any is not read in that step.
            rank: This process.
            world: Number of processes.
        """
        self.sources, self.draw, self.views, self.ranks = sources, draw, views, (rank, world)

    def load(self, step: int) -> RawBatch:
        """One step's rows, read now."""
        return {
            stream: source.load(views, self.draw, step, self.ranks) for stream, source, views in self._streams(step)
        }

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Store rows of all ranks in a step, by the name of their stream."""
        return {stream.value: source.global_rows(step) for stream, source, _ in self._streams(step)}

    def rows_at(self, step: int) -> int:
        """Count the patches that all ranks together read in a step."""
        return sum(source.sampler.batch for _, source, _ in self._streams(step))

    def _streams(self, step: int) -> Iterator[tuple[Stream, StreamSource, list[View]]]:
        """The streams that a step looks at, with the views it looks at."""
        wanted = self.views(step)
        for stream, source in self.sources.items():
            if views := [view for view in wanted if view.stream is stream]:
                yield stream, source, views

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawBatch]:
        """Yield the rows of each step, read by a thread up to `ahead` steps before they are needed.

        An error of the reader is raised here, at the step whose rows it could not read.

        Args:
            start: First step.
            stop: Step to stop before.
            ahead: Steps to read ahead.
        """
        yield from prefetch((partial(self.load, step) for step in range(start, stop)), ahead)


def prefetch(jobs: Iterator[Callable[[], T]], ahead: int) -> Iterator[T]:
    """Run jobs in a thread, up to `ahead` before they are asked for, and yield their results in order."""
    pool = ThreadPoolExecutor(1, "stssl-loader")
    try:
        running = deque(pool.submit(job) for job in islice(jobs, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def metadata_table(lat: NDArray[Any], lon: NDArray[Any], day: NDArray[Any], time: NDArray[Any]) -> Tensor:
    """Columns of a store to [N, 4] float32 metadata, NaN where missing.

    Args:
        lat: Degrees north, NaN where missing.
        lon: Degrees east, NaN where missing.
        day: Day of year 1..366; below 1 where missing.
        time: Seconds since 1970-01-01; the smallest int64 where missing.
    """
    known = time != np.iinfo(np.int64).min
    hour = np.where(known, (np.where(known, time, 0) % 86400) / 3600, np.nan)
    date = np.where(day >= 1, day, np.nan)
    columns = {MetadataColumn.LAT: lat, MetadataColumn.LON: lon, MetadataColumn.DAY: date, MetadataColumn.HOUR: hour}
    return torch.from_numpy(np.stack([columns[column] for column in MetadataColumn], 1).astype(np.float32))
