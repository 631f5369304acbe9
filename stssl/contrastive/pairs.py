"""Load pairs of patches for pretraining: each patch and its partner, read before the step needs them."""

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
    """Hold this rank's pairs as they come from the store, in host memory.

    Attributes:
        arrays: For each band group [m, bands, height, width], as stored. The n queries come first; the n keys follow if
            partners are used.
        metadata: [n, 4] metadata of the queries.
        true_pairs: [n] true where the key is another acquisition of the query's place.
        rows: [n] store rows of the queries, for messages.
        draws: Random choices for the query's view and for the key's view.
    """

    arrays: dict[str, Tensor]
    metadata: Tensor
    true_pairs: Tensor
    rows: Tensor
    draws: tuple[ViewDraw, ViewDraw]


@dataclass(frozen=True)
class PairSource:
    """Deliver all training patches for pretraining, each with a partner if there is one.

    Attributes:
        reader: Reader of pixels.
        rows: [size] store rows of the training patches.
        metadata: [N, 4] metadata of all store rows.
        sampler: Order over positions 0..size-1.
        positives: Partners of each patch; None makes each patch its own partner.
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
        """List the store rows of all ranks' queries in a step."""
        rows: list[int] = self.rows[self.sampler.whole(step)].tolist()
        return rows

    def load(self, step: int, ranks: tuple[int, int]) -> RawPairs:
        """Read a rank's pairs of a step's global batch; `ranks` is the rank and the number of ranks."""
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
    """Iterate over this rank's part of the global batches, in the order of steps."""

    def __init__(self, source: PairSource, rank: int = 0, world: int = 1) -> None:
        """Load the contiguous rows of each global batch that belong to rank `rank` of `world` ranks."""
        self.sources, self.ranks = {Stream.UNLABELED: source}, (rank, world)

    def global_rows(self, step: int) -> dict[str, list[int]]:
        """List the store rows of all ranks' queries in a step, by the name of their stream."""
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
