import numpy as np
import pytest
import torch

from stssl.batch import IGNORED
from stssl.labels import LabelSpace
from stssl.metrics import headline, score

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
