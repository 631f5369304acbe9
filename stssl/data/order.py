"""Choose the order of a stream: any patches from a local disk, groups of shards from an object store.

From an object store, patches in random order would fetch a shard for nearly every patch. So such a stream goes through
a few shards at a time, which a cache on disk holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stssl.base.arrays import Ints
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.data.sampler import ShardSampler, StreamSampler
from stssl.store.reader import StoreReader

SHARDS_AHEAD = 2


class Sampler(Protocol):
    """Order a stream without end, and cut it into global batches."""

    @property
    def batch(self) -> int:
        """Return the number of patches in a global batch."""
        ...

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        ...

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return positions and epochs of some rows of a step's global batch.

        Args:
            step: Number of the step.
            rows: Rows of the global batch that are wanted.
        """
        ...

    def whole(self, step: int) -> Ints:
        """Return the positions of a step's global batch, without fetching anything."""
        ...


@dataclass(frozen=True)
class ShardOrder:
    """Describe an order that goes through a store by groups of shards.

    Attributes:
        shard: Patches in a shard.
        mix: Shards that are mixed.
        fetch: Brings the shards of rows into the cache, at once or in the background; None if all is held in memory.
    """

    shard: int
    mix: int
    fetch: Callable[[Ints, bool], None] | None

    def about(self, world: int) -> str:
        """Say for a run's record what the order depends on."""
        return (
            f"the unlabeled stream comes by shards of {self.shard} patches, mixed {self.mix} at a time and dealt out "
            f"to {world} ranks: with another number of ranks it comes in another order"
        )


class FetchingSampler:
    """Order patches by shards, and fetch the shards of a step and of later steps when its rows are asked for."""

    def __init__(self, order: ShardSampler, stored: Ints, shard_order: ShardOrder) -> None:
        """Order the store rows `stored`, which the positions of `order` refer to.

        Args:
            order: Order of positions.
            stored: [size] store row of each position.
            shard_order: Size and number of mixed shards, and how to fetch them.
        """
        self.order, self.stored, self.shard_order, self.batch = order, stored, shard_order, order.batch
        self.seed = order.seed

    def whole(self, step: int) -> Ints:
        """Return the positions [batch] of a step's global batch, without fetching anything."""
        return self.order.whole(step)

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return positions and epochs of rows of a step's global batch, once their shards are in the cache."""
        positions, epochs = self.order.rows(step, rows)
        if self.shard_order.fetch is not None:
            ahead = math.ceil(SHARDS_AHEAD * self.shard_order.shard / len(positions))
            # Wait for this step's shards; those of later steps come in the background while it trains.
            self.shard_order.fetch(self.stored[positions], True)
            self.shard_order.fetch(self.stored[self.order.rows(step + ahead, rows)[0]], False)
        return positions, epochs


def make_order(
    stored: Ints, batch: int, seed: int, stream: RandomStream, *, shard_order: ShardOrder | None, world: int
) -> StreamSampler | FetchingSampler:
    """Make the order of a stream.

    Args:
        stored: [size] store rows of the stream.
        batch: Patches in a global batch.
        seed: Seed of the run.
        stream: Use of random numbers that shuffles it.
        shard_order: Groups of shards, if the store is fetched shard by shard.
        world: Number of ranks.

    Raises:
        ConfigError: There are fewer shards than ranks.
    """
    if shard_order is None:
        return StreamSampler(len(stored), batch, seed, stream)
    order = ShardSampler(stored, shard_order.shard, batch, seed, stream, mix=shard_order.mix, world=world)
    return FetchingSampler(order, stored, shard_order)


def shard_order_of(reader: StoreReader, mix: int, limit: int, held: bool, tell: bool) -> ShardOrder | None:
    """Choose groups of shards for a reader that reads through a cache on disk; return None for other readers.

    Args:
        reader: Reader of the store.
        mix: Number of shards that are mixed.
        limit: Size of the cache in bytes.
        held: True if all patches are held in memory, so that nothing needs to be fetched.
        tell: True to warn if the cache is smaller than the shards that are mixed.
    """
    if reader.shard is None:
        return None
    if tell and not held:
        # The shards that are mixed, the one that enters the mix, and those fetched ahead are in use at one time.
        needed = (mix + 1 + SHARDS_AHEAD) * reader.shard_bytes()
        if needed > limit:
            LOG.warning(
                "data.cache_bytes is %s, and the %d shards that a rank mixes and fetches ahead take about %s: shards "
                "will be fetched again and again. Raise data.cache_bytes, or lower data.shuffle_shards.",
                f"{limit:,}",
                mix + 1 + SHARDS_AHEAD,
                f"{needed:,}",
            )
    return ShardOrder(reader.shard, mix, None if held else reader.fetch)
