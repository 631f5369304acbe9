import json
import math

import numpy as np
import pytest
import torch

from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace
from stssl.scoring.evaluation import without_nan
from stssl.scoring.metrics import diverged, headline, score

MULTI = LabelSpace(("a", "b", "c", "d"), True)
SINGLE = LabelSpace(("a", "b", "c"), False)


def average_precision(scores, positives):
    """Restated: mean precision at each positive, ties taken together."""
    total = 0.0
    for threshold in np.unique(scores[positives])[::-1]:
        chosen = scores >= threshold
        total += positives[chosen].mean() * (positives & (scores == threshold)).sum()
    return total / positives.sum()


@pytest.fixture
def multi():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator)
    targets = (torch.rand(60, 4, generator=generator) < 0.4).long()
    targets[:, 3] = 0
    return logits, targets


def test_average_precision_leaves_out_classes_without_positives(multi):
    logits, targets = multi
    scores, classes = score(logits, targets, MULTI)
    expected = [average_precision(logits[:, c].numpy(), targets[:, c].numpy() == 1) for c in range(3)]
    assert scores["mAP"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert [classes[c]["AP"] for c in "abc"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(classes["d"]["AP"]) and classes["d"]["count"] == 0


def test_f1_thresholds_the_probability_at_one_half(multi):
    logits, targets = multi
    chosen, truth = (logits >= 0).numpy(), targets.numpy() == 1
    hits, wrong = (chosen & truth).sum(), (chosen != truth).sum()
    micro = score(logits, targets, MULTI)[0]["F1_micro"]
    assert micro == pytest.approx(2 * hits / (2 * hits + wrong), abs=1e-6)
    at_half_logit = (logits >= 0.5).numpy()
    hits, wrong = (at_half_logit & truth).sum(), (at_half_logit != truth).sum()
    assert micro != pytest.approx(2 * hits / (2 * hits + wrong), abs=1e-6)


def test_unknown_labels_do_not_count(multi):
    logits, targets = multi
    unknown = targets.clone()
    unknown[10:20] = IGNORED
    assert score(logits, unknown, MULTI)[0] == pytest.approx(
        score(torch.cat([logits[:10], logits[20:]]), torch.cat([targets[:10], targets[20:]]), MULTI)[0], nan_ok=True
    )
    assert score(logits, unknown, MULTI)[0] != pytest.approx(score(logits, targets, MULTI)[0])


def test_single_label_scores():
    logits = torch.eye(3)[[0, 0, 1, 1, 2, 0]] * 4.0
    targets = torch.tensor([0, 0, 1, 0, 1, 0])[:, None]
    scores, classes = score(logits, targets, SINGLE)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert classes["c"]["count"] == 0 and np.isnan(classes["c"]["recall"])
    confidence = torch.softmax(logits, 1).max(1).values[0].item()
    assert scores["calibration_error"] == pytest.approx(confidence - 4 / 6, abs=1e-6)


def test_headlines():
    assert (headline(MULTI), headline(SINGLE)) == ("mAP", "accuracy")


def test_means_over_classes_are_over_those_that_occur(multi):
    _, targets = multi
    scores, classes = score(20.0 * (2 * targets - 1), targets, MULTI)
    assert scores["mAP"] == scores["F1"] == 1 and np.isnan(classes["d"]["F1"])
    truth = torch.tensor([0, 0, 1, 1])
    scores, classes = score(torch.eye(3)[[0, 2, 1, 1]], truth[:, None], SINGLE)
    assert scores["recall"] == scores["balanced_accuracy"] == 0.75
    assert scores["precision"] == 1 and np.isnan(classes["c"]["F1"])


def test_a_class_that_nobody_labeled_has_no_score(multi):
    logits, targets = multi
    without = targets.clone()
    without[:, 2] = IGNORED
    scores, classes = score(logits, without, MULTI)
    known, _ = score(logits[:, [0, 1, 3]], targets[:, [0, 1, 3]], LabelSpace(("a", "b", "d"), True))
    assert np.isnan(classes["c"]["AP"])
    for name in ("mAP", "mAP_micro", "F1_micro", "calibration_error"):
        assert scores[name] == pytest.approx(known[name], abs=1e-9)


def test_a_task_of_one_class_is_scored():
    space, targets = LabelSpace(("only",), True), torch.tensor([[1], [0], [1], [IGNORED]])
    scores, classes = score(torch.tensor([[2.0], [-1.0], [-3.0], [5.0]]), targets, space)
    assert classes["only"]["F1"] == scores["F1"] == scores["F1_micro"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("space", [MULTI, SINGLE])
def test_predictions_that_are_not_finite_have_no_score(bad, space):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(30, len(space.classes), generator=generator)
    targets = torch.randint(0, 2, (30, space.groups), generator=generator)
    assert not diverged(score(logits, targets, space)[0])
    for rows in (slice(None), slice(0, 15), slice(3, 4)):
        broken = logits.clone()
        broken[rows] = bad
        scores, classes = score(broken, targets, space)
        assert diverged(scores) and all(np.isnan(value) for value in scores.values())
        assert {name: one["count"] for name, one in classes.items()} == {
            name: one["count"] for name, one in score(logits, targets, space)[1].items()
        }
        assert all(np.isnan(value) for one in classes.values() for key, value in one.items() if key != "count")
    unknown = targets.clone()
    unknown[:15] = IGNORED
    logits[:15] = bad
    assert not diverged(score(logits, unknown, space)[0])


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 60.0, 3000.0])
def test_classes_are_ranked_by_logits_however_large(kind, size):
    from sklearn.metrics import average_precision_score

    generator = torch.Generator().manual_seed(2)
    targets = (torch.rand(200, 4, generator=generator) < 0.4).long()
    logits = (size * (2 + 0.3 * (torch.randn(200, 4, generator=generator) + targets))).to(kind)
    scores, classes = score(logits, targets, MULTI)
    exact = logits.double().numpy()
    expected = [average_precision_score(targets[:, c], exact[:, c]) for c in range(4)]
    assert [one["AP"] for one in classes.values()] == pytest.approx(expected, abs=1e-6)
    assert scores["mAP"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert scores["mAP_micro"] == pytest.approx(average_precision_score(targets.ravel(), exact.ravel()), abs=1e-6)
    if size == 60.0:  # control: probabilities cannot tell these apart
        tied = average_precision_score(targets.ravel(), logits.double().sigmoid().numpy().ravel())
        assert scores["mAP_micro"] > tied + 0.02


def test_decisions_are_made_on_logits():
    small = torch.tensor([[1e-20, 2e-20, 0.0], [3e-20, 0.0, 0.0]], dtype=torch.float64)
    assert len(small.softmax(1).unique()) == 1  # control: the probabilities are equal
    assert score(small, torch.tensor([[1], [0]]), SINGLE)[0]["accuracy"] == 1
    assert score(small[:1], torch.tensor([[1, 1, 0]]), LabelSpace(("a", "b", "c"), True))[0]["F1_micro"] == 1


def test_a_single_label_task_of_one_class_is_scored():
    scores, classes = score(torch.randn(4, 1), torch.zeros(4, 1, dtype=torch.long), LabelSpace(("only",), False))
    assert scores["accuracy"] == scores["F1"] == 1 and scores["loss"] == 0 and list(classes) == ["only"]


def test_json_gets_no_number_that_is_not_finite_at_any_depth():
    given = {"a": math.nan, "rows": [{"b": math.inf, "c": 1.5}, [math.nan, 2]], "pair": (-math.inf, "nan"), "n": 3}
    wanted = {"a": None, "rows": [{"b": None, "c": 1.5}, [None, 2]], "pair": [None, "nan"], "n": 3}
    assert without_nan(given) == wanted
    assert json.loads(json.dumps(without_nan(given), allow_nan=False)) == wanted
    with pytest.raises(ValueError, match="JSON"):  # control
        json.dumps(given, allow_nan=False)
