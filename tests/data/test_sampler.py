import numpy as np

from stssl.base.batch import Stream, View
from stssl.base.distributed import rows_of
from stssl.base.randomness import RandomStream, permutation, uniforms
from stssl.data.sampler import StreamSampler


def test_each_epoch_shows_every_patch_once():
    sampler = StreamSampler(size=10, batch=4, seed=3, stream=RandomStream.LABELED)
    drawn = [sampler.rows(step, slice(0, 4)) for step in range(5)]
    positions, epochs = (np.concatenate([pair[i] for pair in drawn]) for i in (0, 1))
    for epoch in (0, 1):
        assert sorted(positions[epochs == epoch]) == list(range(10))
    assert list(positions[:10]) != list(positions[10:])


def test_ranks_share_the_global_batch():
    sampler = StreamSampler(size=11, batch=7, seed=0, stream=RandomStream.UNLABELED)
    whole = sampler.rows(5, slice(0, 7))[0]
    for world in (1, 2, 3, 4):
        parts = [sampler.rows(5, rows_of(7, rank, world))[0] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_batch_larger_than_the_stream_crosses_epochs():
    positions, epochs = StreamSampler(size=3, batch=8, seed=0, stream=RandomStream.LABELED).rows(1, slice(0, 8))
    assert list(epochs) == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(positions[1:4]) == [0, 1, 2]


def test_order_depends_on_seed_stream_and_epoch():
    base = permutation(50, 0, RandomStream.LABELED, 0)
    assert np.array_equal(base, permutation(50, 0, RandomStream.LABELED, 0))
    for other in (
        permutation(50, 1, RandomStream.LABELED, 0),
        permutation(50, 0, RandomStream.UNLABELED, 0),
        permutation(50, 0, RandomStream.LABELED, 1),
    ):
        assert not np.array_equal(base, other)


def test_uniforms_depend_on_the_key_alone():
    rows = np.arange(1000)
    one = uniforms((7, RandomStream.QUERY_VIEW, rows * 0, rows), 5)
    assert np.array_equal(one[10:20], uniforms((7, RandomStream.QUERY_VIEW, rows[10:20] * 0, rows[10:20]), 5))
    for other in (
        (8, RandomStream.QUERY_VIEW, rows * 0, rows),
        (7, RandomStream.KEY_VIEW, rows * 0, rows),
        (7, RandomStream.QUERY_VIEW, rows * 0 + 1, rows),
    ):
        assert not np.array_equal(one, uniforms(other, 5))


def test_uniforms_are_uniform_and_uncorrelated():
    rows = np.arange(20_000)
    numbers = uniforms((0, RandomStream.PROBE, rows), 4).astype(np.float64)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / numbers.size - 0.05).max() < 0.003
    correlation = np.corrcoef(np.concatenate([numbers[:-1].T, numbers[1:].T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_each_stream_of_random_numbers_has_words_of_its_own():
    assert all(isinstance(source.randomness, RandomStream) for source in (*Stream, *View))
    words = [tuple(stream.value.split()) for stream in RandomStream]
    assert all(len(word.encode()) <= 8 for own in words for word in own)
    assert len(set(words)) == len(words)


def test_a_seed_gives_the_numbers_it_always_gave():
    rows = np.arange(2)
    view = uniforms((3, RandomStream.UNLABELED_STRONG, rows, rows), 2)
    dropout = uniforms((3, RandomStream.METADATA_DROPOUT, RandomStream.UNLABELED, rows, rows), 1)
    np.testing.assert_allclose(view, [[0.90575784, 0.59487826], [0.89519876, 0.25623548]], rtol=1e-7)
    np.testing.assert_allclose(dropout, [[0.80912304], [0.30494952]], rtol=1e-7)
    assert permutation(5, 3, RandomStream.PAIRS, 1).tolist() == [3, 0, 2, 1, 4]
