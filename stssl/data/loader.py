"""Load batches of labeled and unlabeled patches. A thread loads each batch before the step that needs it."""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

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
    """Define the method that a reader must have: it reads the pixels of patches, given their rows in the store."""

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Return the pixels of n patches, given their store rows [n].

        The result has for each band group (the bands of one resolution), by its name, a tensor [n, bands, height,
        width].
        """
        ...


class Drawer(Protocol):
    """Define the methods that choose at random how patches are augmented. The class `ViewDrawer` has them."""

    def __call__(self, views: Collection[View], epochs: Ints, rows: Ints) -> dict[View, Draw]:
        """Choose at random how to augment n patches, for each wanted view. Return the choices by view.

        Args:
            views: Wanted views (augmented copies, such as a weak and a strong one).
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        ...

    def drop_metadata(self, metadata: Tensor, stream: Stream, epochs: Ints, rows: Ints) -> Tensor:
        """Return the metadata [n, 4] of n patches with some places and dates, chosen at random, set to NaN.

        NaN hides them from the networks.

        Args:
            metadata: [n, 4] with the columns of `MetadataColumn`.
            stream: Source of the patches, labeled or unlabeled.
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        ...


@dataclass(frozen=True)
class StreamSource:
    """Read the patches of one stream (labeled or unlabeled) with metadata and labels, batch by batch.

    The store has N rows, and the stream has `size` of them. G is the number of decisions for each patch: 1 if a patch
    has one class, else the number of classes.

    Attributes:
        reader: Reader of pixels.
        rows: [size] store rows of the stream.
        metadata: [N, 4] places and dates of all store rows; NaN if missing.
        labels: [N, G] choice ids (the number of the right choice in each decision) of all store rows; `IGNORED` if
            unknown.
        sampler: Chooses the patches of each batch by their positions in `rows` (0..size-1).
    """

    reader: PatchReader
    rows: Ints
    metadata: Tensor
    labels: Tensor
    sampler: Sampler

    def global_rows(self, step: int) -> list[int]:
        """Return the store rows of this stream's patches that all training processes together use in step `step`."""
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def choose(self, step: int, ranks: tuple[int, int]) -> "StepRows":
        """Return which patches of this stream this training process (rank) gets in a step.

        Args:
            step: Number of the step.
            ranks: This rank and the number of ranks.

        Returns:
            Positions in the stream, epochs and store rows of the patches.
        """
        positions, epochs = self.sampler.rows(step, rows_of(self.sampler.batch, *ranks))
        return StepRows(positions, epochs, self.rows[positions])

    def complete(
        self, chosen_rows: "StepRows", arrays: dict[str, Tensor], views: Collection[View], draw: Drawer
    ) -> RawRows:
        """Return patches as `RawRows`: their pixels, with metadata, labels and random choices for augmentation added.

        Args:
            chosen_rows: Positions, epochs and store rows of the patches.
            arrays: Pixels of the patches for each band group.
            views: Views of this stream that the step uses.
            draw: Makes the random choices for augmentation.
        """
        stream = next(iter(views)).stream
        positions, epochs, rows = chosen_rows
        chosen = torch.from_numpy(rows)
        # Choose by store row, not by position in the stream: then another split of the same store augments a patch in
        # the same way.
        metadata = draw.drop_metadata(self.metadata[chosen], stream, epochs, rows)
        draws = draw(views, epochs, rows)
        return RawRows(arrays, metadata, self.labels[chosen].long(), torch.from_numpy(positions), chosen, draws)


class StepRows(NamedTuple):
    """Describe which n patches a step uses: their positions in their stream [n], epochs [n] and store rows [n]."""

    positions: Ints
    epochs: Ints
    rows: Ints


def read_together(wanted: Sequence[tuple[PatchReader, Ints]]) -> list[dict[str, Tensor]]:
    """Read the pixels of several lists of patches, with one call of the reader if all lists have the same reader.

    One call for two lists has half the fixed cost of two calls, and its threads divide all patches among them.

    Args:
        wanted: For each list of patches, its reader and the store rows.

    Returns:
        For each list, its pixels [n, bands, height, width] by name of the band group.
    """
    readers = [reader for reader, _ in wanted]
    if len(wanted) < 2 or any(reader is not readers[0] for reader in readers):
        return [reader.read(rows) for reader, rows in wanted]
    sizes = [len(rows) for _, rows in wanted]
    whole = readers[0].read(np.concatenate([rows for _, rows in wanted]))
    parts = {name: torch.split(array, sizes) for name, array in whole.items()}
    return [{name: parts[name][number] for name in parts} for number in range(len(wanted))]


class Loader:
    """Load the patches that this training process (rank) needs in each step, from all streams."""

    def __init__(
        self,
        sources: Mapping[Stream, StreamSource],
        draw: Drawer,
        views: Callable[[int], Collection[View]],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Set up the loading for one training process, which gets contiguous rows of the batch of all processes.

        Args:
            sources: Sources of the patches of each stream: one for labeled and one for unlabeled patches.
            draw: Makes the random choices for augmentation.
            views: Function that takes the number of a step and returns the views that the step uses. A stream without
                a view in a step is not read.
            rank: Number of this process, counted from 0.
            world: Number of processes.
        """
        self.sources, self.draw, self.views, self.ranks = sources, draw, views, (rank, world)

    def load(self, step: int) -> RawBatch:
        """Read and return the patches of step `step`, by stream, in the calling thread."""
        streams = list(self._streams(step))
        chosen = [source.choose(step, self.ranks) for _, source, _ in streams]
        pixels = read_together([(source.reader, own.rows) for (_, source, _), own in zip(streams, chosen, strict=True)])
        return {
            stream: source.complete(own, arrays, views, self.draw)
            for (stream, source, views), own, arrays in zip(streams, chosen, pixels, strict=True)
        }

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Return the store rows that all training processes together use in step `step`, by name of the stream."""
        return {stream.value: source.global_rows(step) for stream, source, _ in self._streams(step)}

    def rows_at(self, step: int) -> int:
        """Return how many patches, of all streams, all training processes together read in step `step`."""
        return sum(source.sampler.batch for _, source, _ in self._streams(step))

    def _streams(self, step: int) -> Iterator[tuple[Stream, StreamSource, list[View]]]:
        """Yield each stream (labeled, unlabeled) that step `step` uses, with its source of patches and its views."""
        wanted = self.views(step)
        for stream, source in self.sources.items():
            if views := [view for view in wanted if view.stream is stream]:
                yield stream, source, views

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawBatch]:
        """Yield the patches of each step from `start` to before `stop`, by stream.

        A thread reads up to `ahead` steps in advance. If the patches of a step cannot be read, raise the error at this
        step.

        Args:
            start: First step.
            stop: The step after the last one.
            ahead: Number of steps to read in advance.
        """
        yield from prefetch((partial(self.load, step) for step in range(start, stop)), ahead)


def prefetch(jobs: Iterator[Callable[[], Result]], ahead: int) -> Generator[Result, None, None]:
    """Run jobs in a background thread, up to `ahead` jobs in advance. Yield their results in the jobs' sequence.

    Args:
        jobs: Functions without arguments.
        ahead: Number of jobs to run in advance.
    """
    # One thread is enough: reading releases Python's global lock (GIL), so it overlaps with the step.
    pool = ThreadPoolExecutor(1, "stssl-loader")
    try:
        running = deque(pool.submit(job) for job in islice(jobs, ahead))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    finally:
        # Cancel the jobs that have not begun: if training ends early (an error, SIGTERM), they would delay the end.
        pool.shutdown(cancel_futures=True)


def metadata_table(lat: ColumnArray, lon: ColumnArray, day: ColumnArray, time: ColumnArray) -> Tensor:
    """Return place and time of N patches as one table for the networks. A missing value becomes NaN.

    Args:
        lat: [N] degrees north; NaN if missing.
        lon: [N] degrees east; NaN if missing.
        day: [N] day of year 1..366; below 1 if missing.
        time: [N] seconds since 1970-01-01 UTC; the smallest int64 if missing.

    Returns:
        [N, 4] float32: latitude, longitude, day of the year, hour of the day in UTC.
    """
    # The smallest int64 stands for a missing time. Do not divide it: the remainder would look like a valid hour.
    known = time != np.iinfo(np.int64).min
    hour = np.where(known, (np.where(known, time, 0) % 86400) / 3600, np.nan)
    date = np.where(day >= 1, day, np.nan)
    columns = {MetadataColumn.LAT: lat, MetadataColumn.LON: lon, MetadataColumn.DAY: date, MetadataColumn.HOUR: hour}
    return torch.from_numpy(np.stack([columns[column] for column in MetadataColumn], 1).astype(np.float32))
