import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from test_splits import N, Table

from stssl.archives.split_lists import listed_splits
from stssl.base.errors import ConfigError, DataError
from stssl.data.known_splits import LongitudeSplit, RebenSplit
from stssl.data.splits import make_split


def test_longitude_trains_in_the_west_and_tests_in_the_east():
    table = Table()
    table.columns["error_code"][:100] = 2  # unreadable patches count in no share
    split, lon = make_split(table, "longitude"), table.columns["lon"]
    assert [len(split.part(part)) for part in ("train", "validation", "test")] == [300, 100, 100]
    assert lon[split.train].max() <= lon[split.validation].min()
    assert lon[split.validation].max() <= lon[split.test].min()
    assert len(make_split(table, LongitudeSplit(name="longitude", test=0.5)).test) == 250


def test_eurosat_gets_the_documented_counts():
    lon = np.random.default_rng(0).permutation(27_000) / 1000.0
    table = Table({"lon": lon, "lat": lon, "error_code": np.zeros(27_000, np.uint8)}, size=27_000)
    split = make_split(table, "longitude")
    assert [len(split.part(part)) for part in ("train", "validation", "test")] == [16_200, 5_400, 5_400]


def test_longitude_needs_places_and_shares_below_one():
    table = Table()
    table.columns["lon"] = np.full(N, np.nan)
    with pytest.raises(DataError, match="has no coordinates"):
        make_split(table, "longitude")
    with pytest.raises(ValueError, match="nothing is left for training"):
        LongitudeSplit(name="longitude", validation=0.6, test=0.4)
    with pytest.raises(ConfigError, match="blocks, longitude"):
        make_split(Table(), "latitude")


V1 = [f"S2A_MSIL2A_20170613T101031_87_{number}" for number in range(N)]


def metadata(folder, **changes):
    v2 = [f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_{number}" for number in range(N)]
    columns = {"patch_id": v2, "s2v1_name": V1, "split": ["train", "validation", "test"] * (N // 3)} | changes
    path = folder / "metadata.parquet"
    pyarrow.parquet.write_table(pyarrow.table({name: cells for name, cells in columns.items() if cells}), path)
    return path


def test_v1_patches_get_the_part_of_their_v2_patch(tmp_path, caplog):
    table, path = Table({"patch_id": np.array(V1)}), metadata(tmp_path)
    split = make_split(table, RebenSplit(name="reben", metadata=str(path)))
    assert split.train.tolist() == list(range(0, N, 3))
    assert split.test.tolist() == list(range(2, N, 3))
    assert not caplog.text
    codes = listed_splits(tuple(V1), {"reben": path})["reben"]
    assert codes.tolist() == [0, 1, 2] * (N // 3)


def test_patches_that_v2_left_out_get_no_part(tmp_path, caplog):
    path = metadata(tmp_path, s2v1_name=[None if number < 6 else name for number, name in enumerate(V1)])
    split = make_split(Table({"patch_id": np.array(V1)}), RebenSplit(name="reben", metadata=str(path)))
    assert split.train.min() == 6
    assert "no part for 6 of the 600" in caplog.text


def test_tables_that_are_not_rebens(tmp_path):
    table = Table({"patch_id": np.array(V1)})
    for changes, words in (
        ({"s2v1_name": None}, "lacks s2v1_name"),
        ({"s2v1_name": ["x"] * N}, "neither s2v1_name nor patch_id fits"),
        ({"split": ["west"] * N}, "column split has west"),
    ):
        with pytest.raises(DataError, match=words):
            make_split(table, RebenSplit(name="reben", metadata=str(metadata(tmp_path, **changes))))
    (tmp_path / "metadata.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot read"):
        make_split(table, RebenSplit(name="reben", metadata=str(tmp_path / "metadata.parquet")))
