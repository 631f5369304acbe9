"""Test losses against their definitions."""

import pytest
import torch
from small import MULTILABEL, SINGLELABEL

from stssl.algorithms.losses import cross_entropy, distance, divergence, squared_error
from stssl.base.batch import IGNORED


def test_one_formula_is_cross_entropy_for_one_label_and_binary_cross_entropy_for_many():
    logits = torch.randn(7, 4)
    classes = torch.randint(0, 4, (7,))
    single = cross_entropy(SINGLELABEL.grouped(logits), classes[:, None])[:, 0]
    torch.testing.assert_close(single, torch.nn.functional.cross_entropy(logits, classes, reduction="none"))
    logits, present = torch.randn(7, 5), torch.randint(0, 2, (7, 5))
    many = cross_entropy(MULTILABEL.grouped(logits), present)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, present.float(), reduction="none")
    torch.testing.assert_close(many, expected)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_way_ids_are_distributions_that_are_certain(loss):
    logits, ids = torch.randn(6, 2, 3), torch.randint(0, 3, (6, 2))
    torch.testing.assert_close(loss(logits, ids), loss(logits, torch.nn.functional.one_hot(ids, 3).float()))


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_ignored_targets_add_nothing_and_have_no_gradient(loss):
    logits = torch.randn(3, 2, 4, requires_grad=True)
    target = torch.tensor([[0, IGNORED], [IGNORED, IGNORED], [3, 1]])
    values = loss(logits, target)
    values.sum().backward()
    assert (values[target == IGNORED] == 0).all() and (logits.grad[target == IGNORED] == 0).all()
    assert (values[target != IGNORED] > 0).all()


@pytest.mark.parametrize("kind", ["mse", "mae", "cosine"])
def test_a_distance_moves_the_student_only(kind):
    student, teacher = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    total, count = distance(kind, student, teacher)
    (total / count).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_divergence_is_zero_between_equals_and_that_of_torch():
    one, other = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    assert divergence(one, one, 2.0)[0] == pytest.approx(0, abs=1e-6)
    total, count = divergence(one, other, 2.0)
    logs = [(logits / 2).log_softmax(-1).flatten(0, 1) for logits in (one, other)]
    expected = torch.nn.functional.kl_div(*logs, reduction="batchmean", log_target=True) * 4
    torch.testing.assert_close(total / count, expected)
