from dataclasses import dataclass, field

import numpy as np
import pytest

from stssl.data.splits import BlockSplit, LabelsConfig, LeaveOutSplit, ListSplit, draw_labeled, make_split
from stssl.errors import ConfigError, DataError

N = 600


@dataclass
class Table:
    """A store's columns."""

    columns: dict = field(default_factory=dict)
    path: str = "demo.zarr"
    size: int = N
    split_names: tuple = ("official",)

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.columns = {
            "lat": rng.uniform(40, 50, N),
            "lon": rng.uniform(0, 10, N),
            "error_code": np.zeros(N, np.uint8),
            "split_official": rng.integers(0, 3, N).astype(np.uint8),
            "seasonal_snow": rng.random(N) < 0.1,
            "country": rng.choice(["Austria", "Portugal", "Serbia"], N),
            "patch_id": np.array([f"p{i}" for i in range(N)]),
        } | self.columns

    def column(self, name):
        return self.columns[name]

    def has_column(self, name):
        return name in self.columns


def cells(table, rows, degrees=1.0):
    return {tuple(np.floor([table.columns["lat"][r] / degrees, table.columns["lon"][r] / degrees])) for r in rows}


def test_stored_split_leaves_out_bad_and_excluded_rows():
    table = Table()
    table.columns["error_code"][5] = 3
    split = make_split(table, "official", ("seasonal_snow",))
    every = np.concatenate([split.train, split.validation, split.test])
    assert 5 not in every and not table.columns["seasonal_snow"][every].any()
    assert len(np.unique(every)) == len(every)
    assert table.columns["seasonal_snow"][make_split(table, "official").train].any()


def test_blocks_lie_in_one_part_each():
    table = Table()
    split = make_split(table, "blocks")
    train, test = cells(table, split.train), cells(table, split.test)
    assert not train & test and not train & cells(table, split.validation)
    assert 0.1 < len(split.test) / N < 0.3
    by_chance = make_split(table, "official")
    assert cells(table, by_chance.train) & cells(table, by_chance.test)


def test_blocks_follow_their_seed_and_need_places():
    table = Table()
    same, other = (make_split(table, BlockSplit(name="blocks", seed=seed)) for seed in (0, 1))
    assert np.array_equal(same.test, make_split(table, "blocks").test)
    assert not np.array_equal(same.test, other.test)
    table.columns["lat"][:] = np.nan
    with pytest.raises(DataError, match="no coordinates"):
        make_split(table, "blocks")


def test_leave_out_tests_on_the_named_values():
    table = Table()
    split = make_split(table, LeaveOutSplit(name="leave_out", column="country", values=("Portugal",)))
    assert set(table.columns["country"][split.test]) == {"Portugal"}
    assert "Portugal" not in table.columns["country"][np.concatenate([split.train, split.validation])]
    with pytest.raises(ConfigError, match=r"never Spain.*Austria"):
        make_split(table, LeaveOutSplit(name="leave_out", column="country", values=("Spain",)))


def test_lists_name_patches(tmp_path):
    for part, names in {"train": "p0\np1\n", "validation": "p2,x\n", "test": "p3\nunknown\n"}.items():
        (tmp_path / part).write_text(names)
    lists = ListSplit(name="lists", **{part: str(tmp_path / part) for part in ("train", "validation", "test")})
    split = make_split(Table(), lists)
    assert [list(split.train), list(split.validation), list(split.test)] == [[0, 1], [2], [3]]
    (tmp_path / "test").write_text("other\n")
    with pytest.raises(DataError, match="has none of them"):
        make_split(Table(), lists)


def test_unknown_split_and_empty_part():
    with pytest.raises(ConfigError, match=r"no split 'random'. It has: official, blocks"):
        make_split(Table(), "random")
    table = Table()
    table.columns["split_official"][:] = 0
    with pytest.raises(DataError, match="no patch for validation"):
        make_split(table, "official")


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
