import numpy as np

from stssl.base.distributed import rows_of
from stssl.base.randomness import permutation, uniforms
from stssl.data.sampler import StreamSampler


def test_each_epoch_shows_every_patch_once():
    sampler = StreamSampler(size=10, batch=4, seed=3, stream="labeled")
    drawn = [sampler.rows(step, slice(0, 4)) for step in range(5)]
    positions, epochs = (np.concatenate([pair[i] for pair in drawn]) for i in (0, 1))
    for epoch in (0, 1):
        assert sorted(positions[epochs == epoch]) == list(range(10))
    assert list(positions[:10]) != list(positions[10:])


def test_ranks_share_the_global_batch():
    sampler = StreamSampler(size=11, batch=7, seed=0, stream="unlabeled")
    whole = sampler.rows(5, slice(0, 7))[0]
    for world in (1, 2, 3, 4):
        parts = [sampler.rows(5, rows_of(7, rank, world))[0] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_batch_larger_than_the_stream_crosses_epochs():
    positions, epochs = StreamSampler(size=3, batch=8, seed=0, stream="labeled").rows(1, slice(0, 8))
    assert list(epochs) == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(positions[1:4]) == [0, 1, 2]


def test_order_depends_on_seed_stream_and_epoch():
    base = permutation(50, 0, "labeled", 0)
    assert np.array_equal(base, permutation(50, 0, "labeled", 0))
    for other in (
        permutation(50, 1, "labeled", 0),
        permutation(50, 0, "unlabeled", 0),
        permutation(50, 0, "labeled", 1),
    ):
        assert not np.array_equal(base, other)


def test_uniforms_depend_on_the_key_alone():
    rows = np.arange(1000)
    one = uniforms((7, "crop", rows * 0, rows), 5)
    assert np.array_equal(one[10:20], uniforms((7, "crop", rows[10:20] * 0, rows[10:20]), 5))
    for other in ((8, "crop", rows * 0, rows), (7, "flip", rows * 0, rows), (7, "crop", rows * 0 + 1, rows)):
        assert not np.array_equal(one, uniforms(other, 5))


def test_uniforms_are_uniform_and_uncorrelated():
    rows = np.arange(20_000)
    numbers = uniforms((0, "test", rows), 4).astype(np.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / numbers.size - 0.05).max() < 0.003
    correlation = np.corrcoef(np.concatenate([numbers[:-1].T, numbers[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.03
