"""Choose how patches are shuffled: one by one for a local disk, by groups of shards for an object store.

Patches drawn at random from an object store would fetch a shard for nearly every patch. So such a stream mixes the
patches of a few shards at a time. A cache on disk holds these shards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stssl.base.arrays import Ints
from stssl.base.distributed import ranks_here
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.data.sampler import ShardSampler, StreamSampler
from stssl.store.reader import StoreReader

SHARDS_AHEAD = 2


class Sampler(Protocol):
    """Define the methods of a sampler: which patches are in the batch of each step. Epochs repeat without end."""

    @property
    def batch(self) -> int:
        """Return the number of patches in a global batch."""
        ...

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        ...

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return which patches stand in some rows of the global batch of a step: their positions and epochs.

        A position is a place in the stream's list of patches.

        Args:
            step: Number of the step.
            rows: Wanted rows of the global batch.
        """
        ...

    def whole(self, step: int) -> Ints:
        """Return the positions (places in the stream's list) of all patches of a step. Download nothing."""
        ...


@dataclass(frozen=True)
class ShardOrder:
    """Set how training reads an object store: it mixes the patches of a few shards at a time.

    Attributes:
        shard: Number of patches in a shard.
        mix: Number of shards that are mixed.
        fetch: Function that downloads the shards of some rows into the cache. Its second argument is True to wait for
            them. None if memory holds all patches.
    """

    shard: int
    mix: int
    fetch: Callable[[Ints, bool], None] | None

    def about(self, world: int) -> str:
        """Describe the settings that decide the sequence of patches, for the record of a run."""
        return (
            f"the unlabeled stream comes by shards of {self.shard} patches, mixed {self.mix} at a time and dealt out "
            f"to {world} ranks: with another number of ranks it comes in another order"
        )


class FetchingSampler:
    """Shuffle patches by shards, and download the shards.

    A call for the rows of a step downloads the shards of this step and of a later one.
    """

    def __init__(self, order: ShardSampler, stored: Ints, shard_order: ShardOrder) -> None:
        """Take the positions of patches from the sampler `order`, and download the shards that have these patches.

        Args:
            order: Sampler of positions.
            stored: [size] store row of each position.
            shard_order: Size of a shard, number of mixed shards, and function that fetches shards.
        """
        self.order, self.stored, self.shard_order, self.batch = order, stored, shard_order, order.batch
        self.seed = order.seed

    def whole(self, step: int) -> Ints:
        """Return the positions [batch] (places in the stream's list) of all patches of a step. Download nothing."""
        return self.order.whole(step)

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return positions and epochs of the patches in some rows of a batch. First wait until the cache has them.

        Args:
            step: Number of the step.
            rows: Wanted rows of the global batch.
        """
        positions, epochs = self.order.rows(step, rows)
        if self.shard_order.fetch is not None:
            ahead = math.ceil(SHARDS_AHEAD * self.shard_order.shard / len(positions))
            # Wait for the shards of this step. Download those of a later step in the background, during the training.
            self.shard_order.fetch(self.stored[positions], True)
            self.shard_order.fetch(self.stored[self.order.rows(step + ahead, rows)[0]], False)
        return positions, epochs


def make_order(
    stored: Ints, batch: int, seed: int, stream: RandomStream, *, shard_order: ShardOrder | None, world: int
) -> StreamSampler | FetchingSampler:
    """Make the sampler, which shuffles the patches of a stream (labeled or unlabeled) into batches.

    Args:
        stored: [size] store rows of the stream.
        batch: Number of patches in a global batch.
        seed: Seed of the run.
        stream: Use of random numbers for the shuffle.
        shard_order: Groups of shards if the store is fetched shard by shard; else None.
        world: Number of ranks.

    Raises:
        ConfigError: The stream has fewer shards than the run has ranks.
    """
    if shard_order is None:
        return StreamSampler(len(stored), batch, seed, stream)
    order = ShardSampler(stored, shard_order.shard, batch, seed, stream, mix=shard_order.mix, world=world)
    return FetchingSampler(order, stored, shard_order)


def shard_order_of(reader: StoreReader, mix: int, limit: int, held: bool, tell: bool) -> ShardOrder | None:
    """Choose how training shuffles, if the reader downloads shards to a disk cache. Return None for other readers.

    Args:
        reader: Reader of the store.
        mix: Number of shards that are mixed.
        limit: Size of the cache in bytes.
        held: True if memory holds all patches. If so, training fetches nothing.
        tell: True to warn if the cache is too small for the mixed shards.
    """
    if reader.shard is None:
        return None
    if tell and not held:
        # The cache holds the mixed shards, the shard that enters the mix, and the shards fetched ahead, all at once.
        # All ranks of a node share the cache.
        shards = (mix + 1 + SHARDS_AHEAD) * ranks_here()
        needed = shards * reader.shard_bytes()
        if needed > limit:
            LOG.warning(
                "data.cache_bytes is %s, and the %d shards that the ranks of a node (%d) mix and fetch ahead take "
                "about %s: shards will be fetched again and again. Raise data.cache_bytes, or lower "
                "data.shuffle_shards.",
                f"{limit:,}",
                shards,
                ranks_here(),
                f"{needed:,}",
            )
    return ShardOrder(reader.shard, mix, None if held else reader.fetch)
