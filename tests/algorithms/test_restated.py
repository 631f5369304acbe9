"""Test algorithms without recorded values of a public implementation against slow formulas in float64."""

import math

import numpy as np
import pytest
import torch
from small import MULTILABEL, SINGLELABEL, make_algorithm

from stssl.algorithms import LabelerOutputs
from stssl.base.batch import Progress, View

SPACES = pytest.mark.parametrize("space", [MULTILABEL, SINGLELABEL], ids=["multi", "single"])


def probabilities(logits):
    """Compute probabilities [B][G][K] of outputs [B, C] in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def draw(space, rows, seed, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return space.grouped(scale * torch.randn(rows, len(space.classes), generator=generator))


def show(space, step, rows=12, labeled=5, samples=9):
    """Draw the labeler's logits of a step; samples come again, also within a batch."""
    generator = torch.Generator().manual_seed(100 + step)
    index = torch.randint(0, samples, (rows,), generator=generator)
    views = {View.UNLABELED_WEAK: draw(space, rows, step), View.LABELED_WEAK: draw(space, labeled, 50 + step)}
    return LabelerOutputs(views, {}, index)


@SPACES
@pytest.mark.parametrize("count_unused", [False, True])
def test_flexmatch(space, count_unused):
    threshold, samples = 0.8, 9
    algorithm = make_algorithm("flexmatch", space, count=samples, threshold=threshold, count_unused=count_unused)
    last: dict[tuple[int, int], int] = {}
    for step in range(6):
        outputs = show(space, step, samples=samples)
        algorithm.observe(outputs, Progress(step, 10))
        [term] = algorithm.terms(outputs, Progress(step, 10))
        p = probabilities(outputs.labeler[View.UNLABELED_WEAK])
        for row, sample in enumerate(outputs.index.tolist()):
            for group in range(space.groups):
                if p[row, group].max() >= threshold:
                    last[sample, group] = int(p[row, group].argmax())
        for group in range(space.groups):
            counts = [sum(way == k for (_, g), way in last.items() if g == group) for k in range(space.choices)]
            most = max(*counts, samples - sum(counts)) if count_unused else max(counts)
            assert algorithm.counts[group].tolist() == counts
            for row in range(len(p)):
                way = int(p[row, group].argmax())
                status = counts[way] / most if most else 0.0
                chosen = p[row, group].max() >= threshold * status / (2 - status)
                assert term.weight[row, group] == float(chosen)
                assert term.target[row, group] == way
    assert 0 < term.weight.mean() < 1


def test_flexmatch_takes_the_last_of_a_sample_that_stands_twice_in_a_batch():
    algorithm = make_algorithm("flexmatch", SINGLELABEL, count=3, threshold=0.9)
    logits = torch.zeros(3, 1, 4)
    logits[0, 0, 1] = logits[1, 0, 2] = 10.0
    algorithm.observe(LabelerOutputs({View.UNLABELED_WEAK: logits}, {}, torch.tensor([2, 2, 2])), Progress(0, 1))
    assert algorithm.last[:, 0].tolist() == [-1, -1, 2]
    assert algorithm.counts[0].tolist() == [0, 0, 1, 0]


@SPACES
@pytest.mark.parametrize("ramp_up", [0, 4])
def test_mean_teacher(space, ramp_up):
    algorithm = make_algorithm("mean_teacher", space, ramp_up=ramp_up)
    for step in range(6):
        outputs = show(space, step)
        [term] = algorithm.terms(outputs, Progress(step, 10))
        weight = math.exp(-5 * (1 - step / ramp_up) ** 2) if step < ramp_up else 1.0
        target = probabilities(outputs.labeler[View.UNLABELED_WEAK])
        strong = draw(space, len(target), 200 + step)
        loss = np.mean((probabilities(strong) - target) ** 2) * weight
        ours = (algorithm.unlabeled_loss(strong, term.target) * term.weight).mean()
        assert float(ours) == pytest.approx(loss, rel=1e-5)


@SPACES
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_adamatch(space, decay):
    threshold = 0.9
    algorithm = make_algorithm("adamatch", space, threshold=threshold, ema_decay=decay)
    means: dict[str, np.ndarray] = {}
    for step in range(5):
        outputs = show(space, step)
        algorithm.observe(outputs, Progress(step, 10))
        [term] = algorithm.terms(outputs, Progress(step, 10))
        labeled, p = (probabilities(outputs.labeler[view]) for view in (View.LABELED_WEAK, View.UNLABELED_WEAK))
        new = {"labeled": labeled.mean(0), "unlabeled": p.mean(0), "confidence": confidences(space, labeled)}
        means = {key: decay * means.get(key, value) + (1 - decay) * value for key, value in new.items()}
        for row in range(len(p)):
            for group in range(space.groups):
                scaled = p[row, group] * means["labeled"][group] / means["unlabeled"][group]
                scaled = scaled / scaled.sum()
                way = int(scaled.argmax())
                bar = threshold * means["confidence"][group][way if space.multilabel else 0]
                assert term.target[row, group] == way
                assert abs(scaled.max() - bar) > 1e-5, "too close to call"
                assert term.weight[row, group] == float(scaled.max() >= bar)
    assert 0 < term.weight.mean() < 1


def confidences(space, labeled):
    """Compute the mean confidence of each group; of multi-label classes apart for absent and present."""
    table = np.zeros((space.groups, 2 if space.multilabel else 1))
    for group in range(space.groups):
        top = labeled[:, group].max(-1)
        for side in range(table.shape[1]):
            members = labeled[:, group].argmax(-1) == side if space.multilabel else np.ones(len(top), bool)
            table[group, side] = top[members].mean() if members.any() else top.mean()
    return table


def test_softmatch_without_memory_counts_labels_that_are_all_equally_sure():
    """Their variance is 0, and 0 / 0 would end the run."""
    algorithm = make_algorithm("softmatch", SINGLELABEL, ema_decay=0.0, align=False, target="labeled")
    sure = 100 * torch.nn.functional.one_hot(torch.zeros(6, 1, dtype=torch.long), SINGLELABEL.choices).float()
    outputs = LabelerOutputs({View.UNLABELED_WEAK: sure}, {}, torch.arange(6))
    algorithm.observe(outputs, Progress(0, 10))
    assert (algorithm.terms(outputs, Progress(0, 10))[0].weight == 1).all()
