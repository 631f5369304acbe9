import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score

from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace
from stssl.scoring import metrics
from stssl.scoring.block_scores import BlockScores, RankedRows, draw_blocks, percentiles
from stssl.scoring.metrics import score

N, BLOCKS = 400, 25


def task(multilabel, seed=0, unknown=True):
    rng = np.random.default_rng(seed)
    space = LabelSpace(("a", "b", "c", "d"), multilabel)
    logits = torch.from_numpy(np.round(rng.normal(size=(N, 4)) * 2, 1))  # rounded: many rows tie
    targets = rng.integers(0, 2, (N, 4)) if multilabel else rng.integers(0, 4, (N, 1))
    if unknown:
        targets[rng.random(targets.shape) < 0.1] = IGNORED
    return space, logits, torch.from_numpy(targets), rng.integers(0, BLOCKS, N)


@pytest.mark.parametrize("multilabel", [True, False])
def test_each_block_once_gives_the_scores_of_the_part(multilabel):
    space, logits, targets, blocks = task(multilabel)
    found = BlockScores(logits, targets, space, blocks).scores(np.ones((1, BLOCKS), np.uint16))
    expected = score(logits, targets, space).scores
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values[0] == pytest.approx(expected[name], abs=1e-6), name


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_draw_gives_the_scores_of_the_repeated_patches(multilabel):
    space, logits, targets, blocks = task(multilabel)
    draws = draw_blocks(BLOCKS, 3, 0)
    found = BlockScores(logits, targets, space, blocks).scores(draws)
    for number, draw in enumerate(draws):
        rows = np.repeat(np.arange(N), draw[blocks])
        expected = score(logits[rows], targets[rows], space).scores
        for name, values in found.items():
            assert values[number] == pytest.approx(expected[name], abs=1e-6), name


@pytest.mark.parametrize("multilabel", [True, False])
def test_a_new_metric_needs_one_registration_for_intervals_too(multilabel, monkeypatch):
    """The same function under a new name has no fast way here, and the same values."""
    space, logits, targets, blocks = task(multilabel)
    table, known = (metrics.MULTILABEL, "mAP") if multilabel else (metrics.SINGLE_LABEL, "balanced_accuracy")
    draws, made = draw_blocks(BLOCKS, 5, 0), BlockScores(logits, targets, space, blocks)
    assert "new" not in made.scores(draws)
    monkeypatch.setitem(table, "new", table[known])
    found = made.scores(draws)
    np.testing.assert_allclose(found["new"], found[known], atol=1e-6)
    assert "new" not in made.scores(draws, known) and "new" in made.scores(draws, "new")
    nothing = made.scores(np.zeros((1, BLOCKS), np.uint16), "new")
    assert np.isnan(nothing["new"]).all()


def test_scores_are_those_of_scikit_learn():
    space, logits, targets, blocks = task(False, unknown=False)
    once = np.ones((1, BLOCKS), np.uint16)
    found, truth, choice = BlockScores(logits, targets, space, blocks).scores(once), targets[:, 0], logits.argmax(1)
    assert found["accuracy"][0] == pytest.approx(accuracy_score(truth, choice))
    assert found["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(truth, choice))
    assert found["F1"][0] == pytest.approx(f1_score(truth, choice, average="macro"))
    space, logits, targets, blocks = task(True, unknown=False)
    found = BlockScores(logits, targets, space, blocks).scores(once)
    assert found["mAP"][0] == pytest.approx(average_precision_score(targets, logits))
    assert found["mAP_micro"][0] == pytest.approx(average_precision_score(targets, logits, average="micro"))
    draw = draw_blocks(BLOCKS, 1, 1)
    weighted = average_precision_score(targets, logits, sample_weight=draw[0][blocks])
    assert BlockScores(logits, targets, space, blocks).scores(draw)["mAP"][0] == pytest.approx(weighted)


def test_a_class_that_a_draw_lacks_is_left_out():
    ranked = RankedRows.of(np.array([3.0, 2.0, 1.0]), np.array([True, False, False]), np.array([0, 1, 1], np.int32))
    found = ranked.average_precision(np.array([[0, 2], [1, 1]], np.int32))
    assert np.isnan(found[0]) and found[1] == 1


def coverage(by_block, simulations=1000, blocks=100, patches=4):
    """How often the 95 % interval of the accuracy holds the true accuracy, over simulated test parts.

    The patches of a block are right or wrong together: each follows its block's own accuracy, 0.7 on average.
    """
    rng = np.random.default_rng(0)
    space, hits, of_patch = LabelSpace(("a", "b"), False), 0, np.repeat(np.arange(blocks), patches)
    unit = of_patch if by_block else np.arange(len(of_patch))
    draws = draw_blocks(unit.max() + 1, 250, 0)
    for _ in range(simulations):
        right = rng.random(len(of_patch)) < rng.beta(0.7, 0.3, blocks)[of_patch]
        targets = torch.zeros(len(right), 1, dtype=torch.long)
        logits = torch.from_numpy(np.stack([right, ~right], 1).astype(float))
        low, high = percentiles(BlockScores(logits, targets, space, unit).scores(draws)["accuracy"])
        hits += low <= 0.7 <= high
    return hits / simulations


def test_intervals_hold_the_truth_as_often_as_they_say():
    assert 0.93 <= coverage(by_block=True) <= 0.97


def test_control_intervals_over_single_patches_are_too_short():
    assert coverage(by_block=False, simulations=100) < 0.85
