import numpy as np
import pytest

from stssl.base.errors import DataError
from stssl.data.draws import LabelsConfig, draw_labeled

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
