"""Choose how patches are shuffled: one by one for a local disk, by groups of shards for an object store.

A shard is a file with many patches. To read patches from an object store in a fully random sequence, training would
download a shard for nearly every patch. So it mixes the patches of a few shards at a time, which a cache on disk holds.
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
    """Define the methods of a sampler. It tells which patches of a stream are in the batch of any step.

    A stream (labeled or unlabeled) is read epoch after epoch without end.
    """

    @property
    def batch(self) -> int:
        """Return the number of patches in a global batch."""
        ...

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        ...

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return which patches lie in some rows of a step's global batch: their positions [rows] and epochs [rows].

        A position is the index of a patch in the stream's list of patches.

        Args:
            step: Number of the step.
            rows: Wanted rows of the global batch.
        """
        ...

    def whole(self, step: int) -> Ints:
        """Return all patches of the global batch of step `step`, as positions [batch] in the stream's list.

        Download nothing.
        """
        ...


@dataclass(frozen=True)
class ShardOrder:
    """Set how training reads an object store: it mixes the patches of a few shards (files of many patches) at a time.

    Attributes:
        shard: Number of patches in a shard.
        mix: Number of shards whose patches are mixed.
        fetch: Function that downloads the shards of some store rows into the cache. Its second argument is True to
            wait for them. None if memory holds all patches.
    """

    shard: int
    mix: int
    fetch: Callable[[Ints, bool], None] | None

    def about(self, world: int) -> str:
        """Return a sentence about the settings that decide the sequence of patches, for the record of a run.

        Args:
            world: Number of ranks (training processes).
        """
        return (
            f"the unlabeled stream comes by shards of {self.shard} patches, mixed {self.mix} at a time and dealt out "
            f"to {world} ranks: with another number of ranks it comes in another order"
        )


class FetchingSampler:
    """Tell which patches are in the batch of any step, and download their shards (files of patches) into the cache.

    A `ShardSampler` chooses the patches. A call of `rows` waits for the shards of its step. It also starts the download
    of the shards of a later step.
    """

    def __init__(self, order: ShardSampler, stored: Ints, shard_order: ShardOrder) -> None:
        """Set the sampler to ask, the store rows of its patches, and the function that downloads shards.

        Args:
            order: Sampler that returns the positions of patches in the stream's list.
            stored: [size] store row of each position.
            shard_order: Size of a shard, number of mixed shards, and function that downloads shards.
        """
        self.order, self.stored, self.shard_order, self.batch = order, stored, shard_order, order.batch
        self.seed = order.seed

    def whole(self, step: int) -> Ints:
        """Return all patches of the global batch of step `step`, as positions [batch] in the stream's list.

        Download nothing.
        """
        return self.order.whole(step)

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return which patches lie in some rows of a step's global batch: their positions [rows] and epochs [rows].

        A position is the index of a patch in the stream's list of patches. First wait until the cache has the shards of
        these patches.

        Args:
            step: Number of the step.
            rows: Wanted rows of the global batch.
        """
        positions, epochs = self.order.rows(step, rows)
        if self.shard_order.fetch is not None:
            ahead = math.ceil(SHARDS_AHEAD * self.shard_order.shard / len(positions))
            # Only wait for the shards of this step. Let those of a later step come in the background, so that training
            # need not wait for them then.
            self.shard_order.fetch(self.stored[positions], True)
            self.shard_order.fetch(self.stored[self.order.rows(step + ahead, rows)[0]], False)
        return positions, epochs


def make_order(
    stored: Ints, batch: int, seed: int, stream: RandomStream, *, shard_order: ShardOrder | None, world: int
) -> StreamSampler | FetchingSampler:
    """Return the sampler that shuffles the patches of a stream (labeled or unlabeled) and cuts them into batches.

    Args:
        stored: [size] store rows of the stream.
        batch: Number of patches in a global batch.
        seed: Seed of the run.
        stream: Name of the random numbers for the shuffle. Other names give independent numbers.
        shard_order: How to mix shards if the store is downloaded shard by shard; else None.
        world: Number of ranks (training processes).

    Raises:
        ConfigError: The stream has fewer shards than the run has ranks.
    """
    if shard_order is None:
        return StreamSampler(len(stored), batch, seed, stream)
    order = ShardSampler(stored, shard_order.shard, batch, seed, stream, mix=shard_order.mix, world=world)
    return FetchingSampler(order, stored, shard_order)


def shard_order_of(reader: StoreReader, mix: int, limit: int, held: bool, tell: bool) -> ShardOrder | None:
    """Return how training mixes shards if `reader` downloads them to a disk cache; None for other readers.

    Args:
        reader: Reader of the store.
        mix: Number of shards whose patches are mixed.
        limit: Largest size of the cache in bytes.
        held: True if memory holds all patches. If so, training downloads nothing.
        tell: True to log a warning if the cache is too small for the mixed shards.
    """
    if reader.shard is None:
        return None
    if tell and not held:
        # The cache must have room for the mixed shards, the shard that is mixed in next, and the shards downloaded
        # ahead, all at once and for all ranks of a node, since they share the cache.
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
