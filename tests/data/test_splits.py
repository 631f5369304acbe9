import bz2
import gzip
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

from stssl.base.errors import ConfigError, DataError
from stssl.data.splits import BlockSplit, LeaveOutSplit, ListSplit, RandomSplit, make_split, shares_asked

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


def test_a_random_split_needs_no_places_and_mixes_neighbors():
    table = Table()
    split = make_split(table, "random")
    assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(N))
    assert (len(split.validation), len(split.test)) == (N // 10, N // 5)
    assert shares_asked("random") == shares_asked("blocks") == {"validation": 0.1, "test": 0.2}
    assert cells(table, split.train) & cells(table, split.test)  # the control: blocks put no square into two parts
    larger = make_split(table, RandomSplit(name="random", test=0.5))
    assert len(larger.test) == N // 2 and len(larger.validation) == N // 10
    table.columns["lat"][:] = np.nan
    assert np.array_equal(make_split(table, "random").test, split.test)
    assert not np.array_equal(make_split(table, RandomSplit(name="random", seed=1)).test, split.test)


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
    with pytest.raises(ConfigError, match=r"no split 'rounds'. It has: official, random, blocks"):
        make_split(Table(), "rounds")
    table = Table()
    table.columns["split_official"][:] = 0
    with pytest.raises(DataError, match="no patch for validation"):
        make_split(table, "official")


def write_lists(folder, ending=".txt", pack=bytes, **parts):
    for part, lines in parts.items():
        (folder / f"{part}{ending}").write_bytes(pack("\n".join(lines).encode()))
    paths = {part: str(folder / f"{part}{ending}") for part in ("train", "validation", "test")}
    return ListSplit(name="lists", **paths)


@pytest.mark.parametrize(("ending", "pack"), [(".txt", bytes), (".csv.bz2", bz2.compress), (".csv.gz", gzip.compress)])
def test_lists_of_any_kind_lose_no_name(ending, pack, tmp_path, caplog):
    """A byte order mark, quotes and further columns stand in lists that spreadsheets write."""
    parts = {"train": ["\ufeffp0", '"p1"', "p2, x"], "validation": ["p3", ""], "test": ["p4"]}
    split = make_split(Table(), write_lists(tmp_path, ending, pack, **parts))
    assert (split.train.tolist(), split.validation.tolist(), split.test.tolist()) == ([0, 1, 2], [3], [4])
    assert not caplog.records
    make_split(Table(), write_lists(tmp_path, ending, pack, **(parts | {"test": ["p4", "stranger", "other"]})))
    assert "2 of its 3 names are not in demo.zarr" in caplog.text


def test_lists_that_overlap_or_name_nobody(tmp_path):
    lists = write_lists(tmp_path, train=["p0", "p1"], validation=["p2"], test=["p1", "p3"])
    with pytest.raises(DataError, match=r"test.txt names 1 patches that another part has too .the first: p1."):
        make_split(Table(), lists)
    with pytest.raises(DataError, match=r"names 0 patches and demo.zarr has none"):
        make_split(Table(), write_lists(tmp_path, test=[""]))
    (tmp_path / "train.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(20))
    with pytest.raises(DataError, match=r"cannot read .*train.gz"):
        make_split(Table(), ListSplit(**(lists.model_dump() | {"train": str(tmp_path / "train.gz")})))


def test_patches_without_a_place_and_flags_that_are_never_set_are_told(caplog):
    table = Table()
    table.columns["lat"][:7] = np.nan
    make_split(table, "blocks", ("seasonal_snow",))
    assert "7 of 600 patches have no place" in caplog.text and "leaves out nothing" not in caplog.text
    table.columns["seasonal_snow"][:] = False
    make_split(table, "official", ("seasonal_snow",))
    assert "no patch of demo.zarr has seasonal_snow set" in caplog.text


def test_columns_that_cannot_be_used():
    table = Table({"labels_19": np.ones((N, 19), np.uint8)})
    for column in ("labels_19", "country"):
        with pytest.raises(ConfigError, match=f"{column} of demo.zarr is no column of flags"):
            make_split(table, "official", (column,))
    with pytest.raises(ConfigError, match="labels_19 has many values a patch"):
        make_split(table, LeaveOutSplit(name="leave_out", column="labels_19", values=("1",)))


def test_a_split_without_validation_is_for_runs_that_need_none():
    table = Table()
    table.columns["split_official"][:] = np.arange(N) % 2 * 2
    with pytest.raises(DataError, match=r"no patch for validation.*evaluation\.checkpoint=last"):
        make_split(table, "official")
    split = make_split(table, "official", validated=False)
    assert (len(split.train), len(split.validation), len(split.test)) == (300, 0, 300)
    table.columns["split_official"][:] = 2
    with pytest.raises(DataError, match="no patch for train"):
        make_split(table, "official", validated=False)


NEW = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
OLD = "S2A_MSIL2A_20170613T101031_87_48"


def test_lists_of_another_version_pickles_and_tables(tmp_path, caplog):
    table = Table({"patch_id": np.array([f"{OLD[:-2]}{i}" for i in range(N)])})
    own = [f"{OLD[:-2]}{i}" for i in range(4)]
    lists = write_lists(tmp_path, train=[NEW], validation=own[2:3], test=own[3:])
    with pytest.raises(DataError, match=r"none of them.*of BigEarthNet v2\.0, and these are of v1\.0.*s2v1_name"):
        make_split(table, lists)
    make_split(table, write_lists(tmp_path, train=[*own[:2], NEW], validation=own[2:3], test=own[3:]))
    assert "1 of its 3 names are not in" in caplog.text and "v2.0" in caplog.text and NEW in caplog.text
    caplog.clear()
    make_split(table, write_lists(tmp_path, train=[*own[:2], "x"], validation=own[2:3], test=own[3:]))
    assert "such as x" in caplog.text and "v2.0" not in caplog.text
    whole = ['"",patch,labels', f'0,{own[0]},"[0 1', ' 0]"', f"1,{own[1]},[1]"]  # as pandas writes a frame
    split = make_split(table, write_lists(tmp_path, ".csv", train=whole, validation=own[2:3], test=["patch", own[3]]))
    assert [len(split.part(part)) for part in ("train", "validation", "test")] == [2, 1, 1]
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(own))
    (tmp_path / "train.txt").write_bytes(pickle.dumps(own))
    for name in ("train.pkl", "train.txt"):
        with pytest.raises(
            DataError, match=r"is a pickle.*read_pickle\('train\....'\)\['patch'\]\.to_csv\('train.csv'"
        ):
            make_split(table, ListSplit(**(lists.model_dump() | {"train": str(tmp_path / name)})))
