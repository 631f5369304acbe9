"""Predictions that were made up: what a comparison over runs and blocks finds, and how sure it is."""

import numpy as np
import pytest
import torch

from stssl.base.labels import LabelSpace
from stssl.scoring.paired_scores import PredictionPair, _over_runs, compare_predictions, holm_corrected


def without_widening(drawn, seed):
    """The usual bootstrap over runs."""
    runs, draws = drawn.shape
    chosen = np.random.default_rng((seed, 2)).integers(0, runs, (runs, draws))
    return np.take_along_axis(drawn, chosen, 0).mean(0)


@pytest.mark.parametrize(("over_runs", "low", "high"), [(_over_runs, 0.93, 1.0), (without_widening, 0.5, 0.85)])
def test_few_runs_give_intervals_that_hold_the_truth(over_runs, low, high):
    rng, held = np.random.default_rng(0), 0
    for number in range(400):
        drawn = rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.1, (3, 200))
        ends = np.quantile(over_runs(drawn, number), (0.025, 0.975))
        held += ends[0] <= 0 <= ends[1]
    assert low <= held / 400 <= high


def test_a_clear_difference_is_found():
    rng, space = np.random.default_rng(0), LabelSpace(("a", "b"), False)
    targets, blocks = torch.from_numpy(rng.integers(0, 2, (400, 1))), np.arange(400) // 10
    pairs = []
    for _ in range(3):
        noise = [torch.from_numpy(rng.normal(size=(400, 2))) for _ in range(2)]
        better, worse = (one + gain * space.positives(targets) for one, gain in zip(noise, (3, 1), strict=True))
        pairs.append(PredictionPair(better, worse, targets, blocks))
    clear = compare_predictions(pairs, space, "accuracy", draws=100)
    assert clear.low > 0 and clear.p < 0.05 and clear.difference > 0.1


def test_holm_keeps_the_order():
    assert holm_corrected([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
