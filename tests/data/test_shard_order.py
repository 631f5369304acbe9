"""The order of a stream that is fetched shard by shard."""

import numpy as np
import pytest

from stssl.base.distributed import rows_of
from stssl.base.errors import ConfigError
from stssl.base.randomness import RandomStream
from stssl.data.sampler import ShardSampler

SHARD = 16
ROWS = np.flatnonzero(np.arange(160) % 5 != 0)  # Of each shard some patches are in other parts of the split.


def sampler(mix=3, world=1, seed=0, batch=12, rows=ROWS):
    return ShardSampler(rows, SHARD, batch, seed, RandomStream.UNLABELED, mix=mix, world=world)


def drawn(order, rank=0, world=1, steps=range(30)):
    """Positions and epochs of a rank in many steps, one after the other."""
    parts = [order.rows(step, rows_of(order.batch, rank, world)) for step in steps]
    return tuple(np.concatenate([part[i] for part in parts]) for i in (0, 1))


def test_each_epoch_shows_every_patch_once():
    positions, epochs = drawn(sampler())
    for epoch in (0, 1):
        assert sorted(positions[epochs == epoch]) == list(range(len(ROWS)))
    assert list(positions[epochs == 0]) != list(positions[epochs == 1])


def test_ranks_divide_the_shards_of_an_epoch():
    order = sampler(world=3)
    parts = [drawn(order, rank, 3, range(60)) for rank in range(3)]
    first = [positions[epochs == 0] for positions, epochs in parts]
    assert sorted(np.concatenate(first)) == list(range(len(ROWS)))
    shards = [set(ROWS[positions] // SHARD) for positions in first]
    assert not shards[0] & shards[1] and not shards[1] & shards[2] and not shards[0] & shards[2]


def test_a_rank_reads_its_block_of_the_global_batch():
    for world in (1, 2, 5):
        order = sampler(world=world)
        whole = order.rows(7, slice(0, 12))[0]
        parts = [sampler(world=world).rows(7, rows_of(12, rank, world))[0] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_resumed_order_is_the_unbroken_one():
    unbroken = drawn(sampler(world=2), 1, 2)
    resumed = drawn(sampler(world=2), 1, 2, range(17, 30))
    for one, other in zip(unbroken, resumed, strict=True):
        assert np.array_equal(one[-len(other) :], other)


def test_another_number_of_ranks_has_another_order():
    one, other = sampler(world=1), sampler(world=2)
    assert not np.array_equal(one.rows(0, slice(0, 12))[0], other.rows(0, slice(0, 12))[0])


def spread(mix):
    """Different shards in a batch, on average, once the buffer is full; and the most shards touched at a time."""
    positions, _ = drawn(sampler(mix=mix), steps=range(3, 9))
    shards = ROWS[positions] // SHARD
    return np.mean([len(set(shards[start : start + 12])) for start in range(0, len(shards), 12)])


def test_the_buffer_mixes_shards():
    assert spread(4) > 3.5


def test_control_without_the_buffer_shards_come_one_after_the_other():
    assert spread(0) < 2.5
    positions, epochs = drawn(sampler(mix=0))
    shards = ROWS[positions[epochs == 0]] // SHARD
    assert np.count_nonzero(np.diff(shards)) == 9
    assert not np.array_equal(drawn(sampler(mix=0))[0], drawn(sampler(mix=3))[0])


def test_a_patch_waits_for_at_most_the_buffer():
    """So that the shards to keep are those of the buffer, and no more."""
    for mix in (1, 3):
        positions, epochs = drawn(sampler(mix=mix))
        shards = ROWS[positions[epochs == 0]] // SHARD
        first = {shard: np.flatnonzero(shards == shard)[0] for shard in set(shards)}
        last = {shard: np.flatnonzero(shards == shard)[-1] for shard in set(shards)}
        open_at_once = [sum(first[s] <= place <= last[s] for s in first) for place in range(len(shards))]
        assert max(open_at_once) <= mix + 2


def test_orders_depend_on_the_seed():
    assert not np.array_equal(drawn(sampler(seed=0))[0], drawn(sampler(seed=1))[0])


def test_fewer_shards_than_ranks_is_an_error():
    with pytest.raises(ConfigError, match="lie in 2 shards, fewer than 3 ranks"):
        sampler(world=3, rows=np.arange(30))
