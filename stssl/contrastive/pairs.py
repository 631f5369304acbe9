"""Pairs of views: which patches a step sees, with which partner, read ahead of the step."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import Stream
from stssl.base.distributed import rows_of
from stssl.base.randomness import RandomStream, uniforms
from stssl.contrastive.positives import Positives
from stssl.contrastive.views import PretrainViewsConfig, ViewDraw, draw_pretrain_view, pretrain_numbers_needed
from stssl.data.loader import PatchReader, prefetch
from stssl.data.order import Sampler


@dataclass(frozen=True)
class RawPairs:
    """This rank's pairs as they come from the store, in host memory.

    Attributes:
        arrays: For each band group [m, bands, height, width], as stored: queries, then keys that are other patches.
        metadata: [n, 4] of the queries.
        true_pairs: [n] whether the key is another acquisition of the place.
        rows: [n] store rows of the queries, for messages.
        draws: Of the query's and the key's view.
    """

    arrays: dict[str, Tensor]
    metadata: Tensor
    true_pairs: Tensor
    rows: Tensor
    draws: tuple[ViewDraw, ViewDraw]


@dataclass(frozen=True)
class PairSource:
    """The one stream of pretraining: all training patches, each with a partner where there is one.

    Attributes:
        reader: Delivers pixels of store rows.
        rows: [size] store rows.
        metadata: [N, 4] of all store rows.
        sampler: The order over positions 0..size-1.
        positives: Who may be whose partner; None makes each patch its own.
        views: Strength of the views.
        bands: Number of bands.
    """

    reader: PatchReader
    rows: Ints
    metadata: Tensor
    sampler: Sampler
    positives: Positives | None
    views: PretrainViewsConfig
    bands: int

    def global_rows(self, step: int) -> list[int]:
        """Store rows of all ranks' queries in a step."""
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def load(self, step: int, ranks: tuple[int, int]) -> RawPairs:
        """This rank's rows of a step's global batch."""
        positions, epochs = self.sampler.rows(step, rows_of(self.sampler.batch, *ranks))
        rows, seed = self.rows[positions], self.sampler.seed
        partners = rows if self.positives is None else self.positives.draw(rows, epochs, seed)
        wanted = rows if self.positives is None else np.concatenate([rows, partners])
        query, key = (
            draw_pretrain_view(
                uniforms((seed, stream, epochs, rows), pretrain_numbers_needed(self.bands)), self.views, self.bands
            )
            for stream in (RandomStream.QUERY_VIEW, RandomStream.KEY_VIEW)
        )
        chosen = torch.from_numpy(rows)
        arrays = self.reader.read(wanted)
        return RawPairs(arrays, self.metadata[chosen], torch.from_numpy(partners != rows), chosen, (query, key))


class PairLoader:
    """Iterates over this rank's part of the global batches `start`..`stop`-1, in order."""

    def __init__(self, source: PairSource, rank: int = 0, world: int = 1) -> None:
        """Load rank `rank`'s contiguous rows of each global batch."""
        self.sources, self.ranks = {Stream.UNLABELED: source}, (rank, world)

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Store rows of all ranks' queries in a step, by the name of their stream."""
        return {stream.value: source.global_rows(step) for stream, source in self.sources.items()}

    def rows_at(self, step: int) -> int:
        """Count the queries that all ranks together read in a step."""
        return sum(source.sampler.batch for source in self.sources.values())

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawPairs]:
        """Yield the rows of each step, read by a thread up to `ahead` steps before they are needed.

        Args:
            start: First step.
            stop: Step to stop before.
            ahead: Steps to read ahead.
        """
        (source,) = self.sources.values()
        yield from prefetch((partial(source.load, step, self.ranks) for step in range(start, stop)), ahead)
