"""Load pairs of patches for pretraining: a patch, and a partner from the same place if there is one.

The patch gives a query, and the partner its key. A thread reads pairs in advance.
"""

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
    """Hold one rank's n pairs of patches in host memory, with pixel values as the store has them.

    Attributes:
        arrays: [m, bands, height, width] pixels of each band group. The n queries come first. With partners, m is 2n
            and the n keys follow; without partners, m is n.
        metadata: [n, 4] places and dates of the queries.
        true_pairs: [n] booleans: true if the key is another patch, false if it is the query's own patch.
        rows: [n] store rows of the queries, for messages.
        draws: Random choices (crop, flip, colors) by which the queries are augmented, and those for the keys.
    """

    arrays: dict[str, Tensor]
    metadata: Tensor
    true_pairs: Tensor
    rows: Tensor
    draws: tuple[ViewDraw, ViewDraw]


@dataclass(frozen=True)
class PairSource:
    """Read training patches for pretraining, each with a partner from the same place if one exists.

    Attributes:
        reader: Reader of pixels.
        rows: [size] store rows of the training patches.
        metadata: [store rows, 4] places and dates of all patches in the store.
        sampler: Sampler that orders the positions in `rows`, 0..size-1.
        positives: Finder of partners; None makes each patch its own partner.
        views: Strength of the views.
        bands: Number of bands that are read.
    """

    reader: PatchReader
    rows: Ints
    metadata: Tensor
    sampler: Sampler
    positives: Positives | None
    views: PretrainViewsConfig
    bands: int

    def global_rows(self, step: int) -> list[int]:
        """Return the store rows of the queries that all ranks together read in step `step`.

        A query is the first patch of a pair.
        """
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def load(self, step: int, ranks: tuple[int, int]) -> RawPairs:
        """Read and return the pairs of patches of one rank in a step.

        Args:
            step: Number of the step.
            ranks: The rank, and the number of all ranks.
        """
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
    """Deliver one rank's pairs of patches for each step of pretraining."""

    def __init__(self, source: PairSource, rank: int = 0, world: int = 1) -> None:
        """Prepare to load the pairs of one rank (training process). Read nothing yet.

        Args:
            source: Reads pairs of patches.
            rank: Number of the rank, counted from 0.
            world: Number of all ranks.
        """
        self.sources, self.ranks = {Stream.UNLABELED: source}, (rank, world)

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """Return the store rows of the queries (first patches of the pairs) of all ranks in step `step`.

        They are in a dict, under the name of their source (`unlabeled`).
        """
        return {stream.value: source.global_rows(step) for stream, source in self.sources.items()}

    def rows_at(self, step: int) -> int:
        """Return how many pairs all ranks together read in a step. It is the same for each step."""
        return sum(source.sampler.batch for source in self.sources.values())

    def batches(self, start: int, stop: int, ahead: int = 2) -> Iterator[RawPairs]:
        """Yield this rank's pairs of patches for each step from `start` to before `stop`.

        A thread reads them in advance.

        Args:
            start: First step.
            stop: Step after the last step.
            ahead: Number of steps to read ahead.
        """
        (source,) = self.sources.values()
        yield from prefetch((partial(source.load, step, self.ranks) for step in range(start, stop)), ahead)
