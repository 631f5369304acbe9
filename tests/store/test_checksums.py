"""Stores that lost bytes or whose bytes changed: nothing of them is delivered in silence."""

import json
import logging
import shutil

import dirty
import google_crc32c
import numpy as np
import pytest
import zarr

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.base.errors import ConfigError, DataError
from stssl.recipes.run_data import open_pixels
from stssl.recipes.sections import DataConfig
from stssl.store import store as stores
from stssl.store.description import describe_store
from stssl.store.encode import SHARD_CHECKSUMS, shard_checksum, tail_bytes
from stssl.store.store import Store
from stssl.store.writer import Writer

ROWS = np.arange(24)
COLUMNS = ("lat", "time", "patch_id", "labels_19", "content_hash", "error_code", "location_id", "valid_bands")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = dirty.clean(tmp_path_factory.mktemp("checksums") / "archive", 24)
    dirty.band(dirty.folders(folder)[5], "B03").unlink()
    return folder


@pytest.fixture(scope="module", params=["lz4", "none"])
def whole(archive, request):
    path = archive.parent / f"{request.param}.zarr"
    convert_archive("bigearthnet-v1", archive, path, Options(workers=0, shard=8, codec=request.param))
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy.zarr")


def shard_of(store, number, array="b10"):
    return store / array / "c" / str(number) / "0" / "0" / "0"


def index_of(path, capacity=8):
    return np.frombuffer(path.read_bytes()[-4 - 16 * capacity : -4], "<u8").reshape(-1, 2)


def read(store, bands=None):
    opened = Store.open(store)
    return opened.reader(bands or opened.bands).read(ROWS)


def rewrite(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flipped(place):
    def change(data):
        data[place] ^= 1

    return change


@pytest.mark.parametrize("name", COLUMNS)
def test_a_lost_column_is_an_error_and_not_missing_values(name, copy):
    if not (copy / name / "c").exists():
        pytest.skip("nothing but missing values: no chunk")
    Store.open(copy).column(name)
    shutil.rmtree(copy / name / "c")
    with pytest.raises(DataError, match=f"copy.zarr/{name} is not the column that was converted"):
        Store.open(copy).column(name)
    assert any(name in problem for problem in verify_store(copy).problems)


def test_lost_columns_end_what_uses_them(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "copy.zarr")
    config = DataConfig(store=str(copy), labels="label", scale="bytes")
    open_pixels(config)
    shutil.rmtree(copy / "lat" / "c")
    with pytest.raises(DataError, match="lat is not the column that was converted"):
        open_pixels(config)


def test_a_lost_array_is_named(copy):
    group = json.loads((copy / "zarr.json").read_text())
    del group["consolidated_metadata"]["metadata"]["lon"]
    (copy / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(DataError, match="has lost its array lon"):
        Store.open(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pixel_arrays", "b10"),
        ("pixel_arrays", []),
        ("pixel_arrays", ["b10", "b10"]),
        ("label_sets", [["labels_19"]]),
        ("splits", {"official": 1}),
        ("maps", 7),
        ("patches", True),
        ("patches", 24.0),
        ("patches", 10**30),
        ("patches", -1),
        ("column_hashes", ["lat"]),
        ("column_hashes", {"lat": 3}),
    ],
)
def test_an_attribute_of_another_type_is_named(key, value, copy):
    group = json.loads((copy / "zarr.json").read_text())
    group["attributes"][key] = value
    (copy / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(DataError, match=f"copy.zarr/zarr.json: attributes.{key} must be"):
        Store.open(copy)


def test_plain_zarr_reads_and_checks_the_store(copy):
    found = zarr.open_array(str(copy), path="b10", mode="r")[:]
    np.testing.assert_array_equal(found, read(copy)["b10"])
    rewrite(shard_of(copy, 1), flipped(int(index_of(shard_of(copy, 1))[2, 0]) + 50))
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(str(copy), path="b10", mode="r")[:]


@pytest.mark.parametrize("where", [0, 1, -5, -1])
@pytest.mark.parametrize("bands", [("B04",), ("B02", "B08"), None])
def test_a_flipped_bit_of_a_patch_is_found_at_every_read(where, bands, copy):
    start, size = (int(value) for value in index_of(shard_of(copy, 1))[2])
    rewrite(shard_of(copy, 1), flipped(start + where % size))
    with pytest.raises(DataError, match=r"patch 10 in .*copy.zarr/b10/c/1/0/0/0 .*fails its checksum"):
        read(copy, bands)
    problems = verify_store(copy).problems
    assert len(problems) == 1 and "checksum" in problems[0]


def test_every_byte_of_the_end_of_a_shard_counts(copy):
    path = shard_of(copy, 0)
    data = path.read_bytes()
    for place in range(-tail_bytes(8), 0, 7):
        rewrite(path, flipped(place))
        with pytest.raises(DataError, match="c/0/0/0/0 is"):
            read(copy, ("B04",))
        path.write_bytes(data)
    read(copy, ("B04",))


def exchange(one, other):
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def test_shards_of_another_place_array_or_store_are_found(copy, archive, tmp_path):
    other = tmp_path / "other.zarr"
    source = dirty.clean(tmp_path / "archive", 24, seed=9)
    codec = json.loads((copy / "zarr.json").read_text())["attributes"]["conversion"]["options"]["codec"]
    convert_archive("bigearthnet-v1", source, other, Options(workers=0, shard=8, codec=codec))
    for one, two in (
        (shard_of(copy, 0), shard_of(copy, 1)),
        (shard_of(copy, 0), shard_of(other, 0)),
        (shard_of(copy, 0), shard_of(copy, 0, "b20")),
    ):
        exchange(one, two)
        with pytest.raises(DataError, match="b10/c/0/0/0/0 is not the file that was converted"):
            read(copy, ("B04",))
        assert verify_store(copy).problems
        exchange(one, two)
    read(copy)


def test_patches_that_changed_places_within_a_shard_are_found(copy):
    """Each whole, with its own checksum, and of equal size: their index is the one that was written."""
    path = shard_of(copy, 1)
    index, data = index_of(path), bytearray(path.read_bytes())
    sizes = index[:, 1].tolist()
    pairs = [(i, j) for i in range(8) for j in range(i) if sizes[i] == sizes[j]]
    if not pairs:
        pytest.skip("no two compressed patches have one size")
    (i, j) = pairs[0]
    one, two = (slice(int(index[k, 0]), int(index[k].sum())) for k in (i, j))
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    with pytest.raises(DataError, match="it is another patch"):
        read(copy, ("B04",))


def test_a_patch_that_its_index_has_lost_is_not_zeros(copy):
    """The bad patch has no pixels at all, and no chunk; every other one has."""
    path = shard_of(copy, 1)
    data = bytearray(path.read_bytes())
    data[-4 - 16 * 8 : -4 - 16 * 7] = b"\xff" * 16
    data[-4:] = google_crc32c.value(bytes(data[-4 - 16 * 8 : -4])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not the file that was converted"):
        read(copy, ("B04",))


def test_bad_patches_stay_zeros(copy):
    row = next(i for i, name in enumerate(Store.open(copy).column("error_code")) if name)
    assert not any(block[row, bands].any() for block, bands in [(read(copy)["b10"], slice(1, 2))])


def old(store, *, columns=True):
    """The store as earlier versions wrote it: no checksums."""
    group = json.loads((store / "zarr.json").read_text())
    for about in group["consolidated_metadata"]["metadata"].values():
        about.get("attributes", {}).pop(SHARD_CHECKSUMS, None)
    del group["attributes"]["description_hashes"]
    if columns:
        del group["attributes"]["column_hashes"]
    (store / "zarr.json").write_text(json.dumps(group))
    for name in group["attributes"]["pixel_arrays"]:
        array = json.loads((store / name / "zarr.json").read_text())
        del array["attributes"][SHARD_CHECKSUMS]
        (store / name / "zarr.json").write_text(json.dumps(array))


@pytest.mark.parametrize("columns", [True, False])
def test_older_stores_open_with_one_warning(columns, copy, whole, caplog):
    caplog.set_level(logging.WARNING, "stssl")
    old(copy, columns=columns)
    for name, block in read(copy).items():
        np.testing.assert_array_equal(block, read(whole)[name])
    Store.open(copy).column("lat")
    assert [record.message for record in caplog.records if "checksums" in record.message] == [caplog.records[0].message]
    assert len(caplog.records) == 1
    assert "checksums none" in describe_store(Store.open(copy)) and "of columns, patches" in describe_store(
        Store.open(whole)
    )
    assert str(whole) not in stores._TOLD


def test_a_shard_that_changes_before_the_end_of_a_conversion_is_written_again(archive, whole, tmp_path, monkeypatch):
    store, finish = tmp_path / "again.zarr", Writer.finish
    options = Options(workers=0, shard=8, codec=whole.stem)

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_archive("bigearthnet-v1", archive, store, options)
    rewrite(shard_of(store, 1), flipped(-30))
    rewrite(shard_of(store, 2, "b20"), lambda data: data.__delitem__(slice(40, None)))
    monkeypatch.setattr(Writer, "finish", finish)
    assert convert_archive("bigearthnet-v1", archive, store, options).converted == 2
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert all((store / path).read_bytes() == (whole / path).read_bytes() for path in files)


def test_a_conversion_that_an_older_version_began_begins_again(archive, whole, tmp_path, monkeypatch):
    store = tmp_path / "again.zarr"
    options = Options(workers=0, shard=8, codec=whole.stem)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_archive("bigearthnet-v1", archive, store, options)
    array = json.loads((store / "b10" / "zarr.json").read_text())
    array["codecs"][0]["configuration"]["codecs"].pop()
    (store / "b10" / "zarr.json").write_text(json.dumps(array))
    assert convert_archive("bigearthnet-v1", archive, store, options).converted == 3
    assert verify_store(store).problems == ()


def test_what_the_attributes_list_is_the_end_of_each_shard(whole):
    listed = json.loads((whole / "b20" / "zarr.json").read_text())["attributes"][SHARD_CHECKSUMS]
    assert listed == [shard_checksum(shard_of(whole, i, "b20").read_bytes()[-tail_bytes(8) :]) for i in range(3)]


def test_equal_problems_of_many_patches_are_one_line(copy):
    shard_of(copy, 1).unlink()
    findings = verify_store(copy)
    (line,) = findings.lines()
    assert len(findings.problems) == 8 and line.startswith("8 patches, the first ") and "b10/c/1/0/0/0" in line


def test_sixteen_bits_are_not_scaled_as_bytes(whole, store):
    with pytest.raises(ConfigError, match=r"data.scale: bytes divides by 255, and .* stores B04, B02 as uint16"):
        open_pixels(
            DataConfig(store=str(whole), bands=("B04", "B02"), labels="labels_19", scale="bytes", split="blocks")
        )
    open_pixels(DataConfig(store=str(store), labels="label", scale="bytes"))
