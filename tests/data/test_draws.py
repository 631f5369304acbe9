import json
from pathlib import Path

import numpy as np
import pytest

from stssl.base.errors import DataError
from stssl.data.draws import LabelsConfig, _cover, _fill, draw_labeled

N = 600


@pytest.fixture
def multi():
    rng = np.random.default_rng(1)
    targets = (rng.random((N, 6)) < [0.5, 0.4, 0.2, 0.1, 0.01, 0.0]).astype(np.int64)
    targets[:3, 4] = 1
    return targets


def test_every_class_keeps_a_label(multi):
    rows = np.arange(N)
    drawn = draw_labeled(multi, rows, LabelsConfig(fraction=0.01))
    assert multi[drawn].any(0).tolist() == [True] * 5 + [False]
    assert len(drawn) == max(round(0.01 * multi[rows].any(1).sum()), len(drawn))
    plain = np.random.default_rng(0).permutation(rows)[: len(drawn)]
    assert not multi[plain][:, 4].any()


def test_draws_follow_their_seed_and_sizes(multi):
    rows = np.arange(N)
    one = draw_labeled(multi, rows, LabelsConfig(fraction=0.1, seed=1))
    assert np.array_equal(one, draw_labeled(multi, rows, LabelsConfig(fraction=0.1, seed=1)))
    assert not np.array_equal(one, draw_labeled(multi, rows, LabelsConfig(fraction=0.1, seed=2)))
    assert len(one) == round(0.1 * multi.any(1).sum())
    assert len(draw_labeled(multi, rows, LabelsConfig())) == multi.any(1).sum()


def test_single_label_draws_are_balanced():
    targets = np.eye(5, dtype=np.int64)[np.arange(N) % 5]
    rows = np.arange(100, N)
    per_class = draw_labeled(targets, rows, LabelsConfig(per_class=20))
    assert targets[per_class].sum(0).tolist() == [20] * 5 and per_class.min() >= 100
    assert targets[draw_labeled(targets, rows, LabelsConfig(total=15))].sum(0).tolist() == [3] * 5
    uneven = targets[draw_labeled(targets, rows, LabelsConfig(total=12))].sum(0)
    assert uneven.sum() == 12 and uneven.min() >= 2
    with pytest.raises(DataError, match="5 classes occur"):
        draw_labeled(targets, rows, LabelsConfig(total=3))


def covered_one_by_one(hits, times):
    """Walk through the patches for each class, the rarest first, and choose until it has enough."""
    chosen = set()
    for label in sorted(range(hits.shape[1]), key=lambda label: hits[:, label].sum()):
        for patch in range(len(hits)):
            if hits[patch, label] and sum(hits[one, label] for one in chosen) < times:
                chosen.add(patch)
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_draws_equal_those_of_a_plain_walk(seed):
    rng = np.random.default_rng(seed)
    hits = rng.random((60, 5)) < rng.random(5) ** 2
    hits[np.arange(5), np.arange(5)] = True
    rounds = [covered_one_by_one(hits, times) for times in range(1, 61)]
    for times in (1, 2, 5, 60):
        assert set(_cover(hits, times).tolist()) == rounds[times - 1]
    for total in (5, 9, 23, 60):
        if total < len(rounds[0]):
            continue
        right = set(rounds[0])
        for more in rounds[1:]:
            right |= set(sorted(more - right)[: total - len(right)])
        assert set(_fill(hits, total).tolist()) == right
        assert len(right) == min(total, hits.any(1).sum())


def test_one_rule_only():
    with pytest.raises(ValueError, match="give one of"):
        LabelsConfig(fraction=0.1, total=10)


def test_listed_patches_keep_their_label_where_they_train(tmp_path, caplog):
    (tmp_path / "labels.txt").write_text("p0\np1")
    names, targets = np.array([f"p{i}" for i in range(N)]), np.ones((N, 2), np.int64)
    chosen = LabelsConfig(list=str(tmp_path / "labels.txt"))
    assert draw_labeled(targets, np.arange(9), chosen, names).tolist() == [0, 1] and not caplog.records
    assert draw_labeled(targets, np.arange(1, 9), chosen, names).tolist() == [1]
    assert "1 of its 2 patches are not in the training part" in caplog.text
    with pytest.raises(DataError, match=r"none of the patches that labels.list .* is in the training part"):
        draw_labeled(targets, np.arange(5, 9), chosen, names)


DRAWS = json.loads((Path(__file__).parent / "eurosat_labeled_draws.json").read_text())


@pytest.fixture(scope="module")
def eurosat():
    """EuroSAT's names as a store sorts them, their classes, and the 21,600 training rows of the public code."""
    sizes = [round(count / 0.8) for count in DRAWS["trainval_per_class"]]
    named = [
        (f"{name}_{i}", label)
        for label, (name, size) in enumerate(zip(DRAWS["classes"], sizes, strict=True))
        for i in range(1, size + 1)
    ]
    names, labels = (np.array(column) for column in zip(*sorted(named), strict=True))
    rows = np.concatenate([np.flatnonzero(labels == c)[: DRAWS["trainval_per_class"][c]] for c in range(10)])
    return names, np.eye(10, dtype=np.int64)[labels], rows


def stems(files):
    return sorted(name.removesuffix(".jpg") for name in files)


@pytest.mark.parametrize("seed", range(5))
def test_the_public_codes_draws_are_repeated(eurosat, seed):
    names, targets, rows = eurosat
    assert len(rows) == DRAWS["trainval"]
    for total in (10, 20, 40, 80):
        right = stems(DRAWS["draws"][f"seed{seed}_labels{total}"])
        chosen = draw_labeled(targets, rows, LabelsConfig(total=total, seed=seed, seed_rule="usb"), names)
        assert sorted(names[chosen]) == right and (np.diff(chosen) > 0).all()
        per_class = LabelsConfig(per_class=total // 10, seed=seed, seed_rule="usb")
        assert sorted(names[draw_labeled(targets, rows[::-1], per_class, names)]) == right
    for other in ({"seed": seed + 1, "seed_rule": "usb"}, {"seed": seed}):  # the controls
        assert sorted(names[draw_labeled(targets, rows, LabelsConfig(total=80, **other), names)]) != right


def test_a_draw_of_the_public_code_needs_what_it_needed(eurosat):
    names, targets, rows = eurosat
    for total, words in ((45, "multiple of 10"), (5, "multiple of 10"), (21_600, "one class has only 1600")):
        with pytest.raises(DataError, match=words):
            draw_labeled(targets, rows, LabelsConfig(total=total, seed_rule="usb"), names)
    with pytest.raises(DataError, match="one class each"):
        draw_labeled(np.ones((9, 2), np.int64), np.arange(9), LabelsConfig(total=2, seed_rule="usb"), names[:9])
    with pytest.raises(ValueError, match="give total or per_class with it"):
        LabelsConfig(fraction=0.1, seed_rule="usb")
