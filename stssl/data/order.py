"""In which order a stream comes: patch by patch from a disk, by groups of shards from an object store."""

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
    """An infinite order, cut into global batches."""

    @property
    def batch(self) -> int:
        """Patches of a global batch."""
        ...

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        ...

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Positions and epochs of some rows of the global batch of a step."""
        ...

    def whole(self, step: int) -> Ints:
        """Positions of a step's global batch, without fetching anything."""
        ...


@dataclass(frozen=True)
class ShardOrder:
    """Go through a store in groups of shards.

    Attributes:
        shard: Patches a shard.
        mix: Shards that are mixed.
        fetch: Brings the shards of rows near, now or in the background; None where all is held in memory.
    """

    shard: int
    mix: int
    fetch: Callable[[Ints, bool], None] | None

    def about(self, world: int) -> str:
        """For a run's record: what the order depends on."""
        return (
            f"the unlabeled stream comes by shards of {self.shard} patches, mixed {self.mix} at a time and dealt out "
            f"to {world} ranks: with another number of ranks it comes in another order"
        )


class FetchingSampler:
    """An order by shards that brings the shards of a step near when its rows are asked for, and those to come."""

    def __init__(self, order: ShardSampler, stored: Ints, shard_order: ShardOrder) -> None:
        """Say which store rows the order's positions are."""
        self.order, self.stored, self.shard_order, self.batch = order, stored, shard_order, order.batch
        self.seed = order.seed

    def whole(self, step: int) -> Ints:
        """[batch] positions of a step's global batch, without fetching anything."""
        return self.order.whole(step)

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Positions and epochs of some rows of the global batch of a step."""
        positions, epochs = self.order.rows(step, rows)
        if self.shard_order.fetch is not None:
            ahead = math.ceil(SHARDS_AHEAD * self.shard_order.shard / len(positions))
            self.shard_order.fetch(self.stored[positions], True)
            self.shard_order.fetch(self.stored[self.order.rows(step + ahead, rows)[0]], False)
        return positions, epochs


def make_order(
    stored: Ints, batch: int, seed: int, stream: RandomStream, *, shard_order: ShardOrder | None, world: int
) -> StreamSampler | FetchingSampler:
    """The order of a stream.

    Args:
        stored: [size] store rows of the stream.
        batch: Patches of a global batch.
        seed: Of the run.
        stream: Names the order.
        shard_order: Where the store is fetched in shards.
        world: Number of ranks.

    Raises:
        ConfigError: There are fewer shards than ranks.
    """
    if shard_order is None:
        return StreamSampler(len(stored), batch, seed, stream)
    order = ShardSampler(stored, shard_order.shard, batch, seed, stream, mix=shard_order.mix, world=world)
    return FetchingSampler(order, stored, shard_order)


def shard_order_of(reader: StoreReader, mix: int, limit: int, held: bool, tell: bool) -> ShardOrder | None:
    """Choose the order for a reader: groups of shards if it reads through a cache on disk, else None.

    Args:
        reader: Of the store.
        mix: Shards that are mixed.
        limit: Bytes of the cache.
        held: All patches are held in memory, so that nothing needs to be fetched.
        tell: Warn where the cache does not hold the shards that are mixed.
    """
    if reader.shard is None:
        return None
    if tell and not held:
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
