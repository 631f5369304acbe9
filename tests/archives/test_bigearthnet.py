import bz2
import csv
import json
import pickle
import re
from datetime import UTC, datetime

import dirty
import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.warp import transform
from real import real_data

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.nomenclature import LABELS_19, LABELS_43, TO_19
from stssl.archives.split_lists import listed_splits, split_notes
from stssl.base.errors import ConfigError, DataError
from stssl.store.schema import ERRORS, UNUSABLE
from stssl.store.store import Store

HERE = Options(workers=0, shard=8)


def converted(archive, tmp_path, source="bigearthnet-v1", options=HERE, **about):
    return convert_archive(source, archive, tmp_path / "store.zarr", options, **about), Store.open(
        tmp_path / "store.zarr"
    )


def check_against_rasterio(store, folder, row):
    """Pixels, labels, coordinates and time of a patch equal what rasterio and json read."""
    blocks = store.reader(store.bands).read(np.array([row]))
    for group in store.groups.values():
        for place, name in enumerate(group.bands):
            with rasterio.open(dirty.band(folder, name)) as file:
                np.testing.assert_array_equal(blocks[group.name][0, place], file.read(1))
                crs, bounds = file.crs, file.bounds
    about = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
    assert {LABELS_43[i] for i in np.flatnonzero(store.column("labels_43")[row])} == set(about["labels"])
    coarse = {TO_19[label] for label in about["labels"] if label in TO_19}
    assert {LABELS_19[i] for i in np.flatnonzero(store.column("labels_19")[row])} == coarse
    x, y = (bounds.left + bounds.right) / 2, (bounds.top + bounds.bottom) / 2
    (lon,), (lat,) = transform(crs, CRS.from_epsg(4326), [x], [y])
    np.testing.assert_allclose([store.column("lat")[row], store.column("lon")[row]], [lat, lon], atol=1e-9)
    when = datetime.strptime(about["acquisition_date"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert store.column("time")[row] == when.timestamp()
    assert store.column("day_of_year")[row] == when.timetuple().tm_yday
    assert (store.column("ulx")[row], store.column("uly")[row]) == (bounds.left, bounds.top)
    assert store.column("utm_epsg")[row] == crs.to_epsg()


def test_a_clean_archive_converts_as_it_is(tmp_path):
    archive = dirty.clean(tmp_path / "archive")
    summary, store = converted(archive, tmp_path)
    assert (summary.patches, summary.errors) == (24, {})
    for row, folder in enumerate(dirty.folders(archive)):
        assert store.column("patch_id")[row] == folder.name
        check_against_rasterio(store, folder, row)
    assert store.column("valid_bands").tolist() == [0xFFF] * 24


def test_lists_beside_the_archive_become_columns(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 60)
    _, store = converted(archive, tmp_path)
    names = store.column("patch_id").astype(str)
    for code, name in enumerate(("train", "val", "test")):
        listed = (archive / f"{name}.csv").read_text().split()
        assert sorted(names[store.column("split_official") == code]) == sorted(listed)
        assert listed
    country = dict(list(csv.reader((archive / "countries.csv").open()))[1:])
    assert [country[name] for name in names] == store.column("country").tolist()
    assert set(store.column("season")) <= {"winter", "spring", "summer", "autumn"}
    unlisted = store.column("seasonal_snow") | store.column("cloud_or_shadow")
    assert (store.column("split_official")[unlisted] == 255).all()


def test_more_splits_from_lists_of_any_kind(tmp_path):
    archive = dirty.clean(tmp_path / "archive")
    names = [folder.name for folder in dirty.folders(archive)]
    lists = tmp_path / "seco"
    lists.mkdir()
    (lists / "train.txt").write_text("\n".join(names[:3]))
    (lists / "val.csv").write_text("".join(f"{name},ignored\r\n" for name in names[3:5]))
    (lists / "test.csv.bz2").write_bytes(bz2.compress("\n".join(names[5:6]).encode()))
    _, store = converted(archive, tmp_path, splits={"seco": lists})
    assert store.split_names == ("official", "seco")
    assert store.column("split_seco").tolist() == [0, 0, 0, 1, 1, 2] + [255] * 18
    (lists / "test.csv.bz2").unlink()
    with pytest.raises(DataError, match=r"has train.txt, val.csv, but no list for test"):
        convert_archive("bigearthnet-v1", archive, tmp_path / "other.zarr", HERE, splits={"seco": lists})


def test_places_with_several_dates_share_a_number(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 60)
    _, store = converted(archive, tmp_path)
    corner = list(zip(*(store.column(name) for name in ("utm_epsg", "ulx", "uly")), strict=True))
    location = store.column("location_id")
    for row, other in np.ndindex(60, 60):
        assert (location[row] == location[other]) == (corner[row] == corner[other])
    assert len(set(location)) < 60


def test_rgb_alone(tmp_path):
    archive = dirty.clean(tmp_path / "archive")
    dirty.band(dirty.folders(archive)[2], "B11").unlink()
    summary, store = converted(archive, tmp_path, bands="rgb")
    assert (store.bands, summary.errors) == (("B04", "B03", "B02"), {})
    assert store.groups["b10"].height == 120


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    """The store of twelve clean patches."""
    folder = tmp_path_factory.mktemp("unspoilt")
    return converted(dirty.clean(folder / "archive", 12), folder)[1]


@pytest.mark.parametrize("kind", dirty.DIRT)
def test_each_kind_of_dirt_is_reported(kind, unspoilt, tmp_path):
    """By name, with an error code, without pixels or a split where they are lost, and other patches as before."""
    archive = dirty.clean(tmp_path / "archive", 12)
    spoil, error, words = dirty.DIRT[kind]
    victim = dirty.folders(archive)[5]
    spoil(victim)
    summary, store = converted(archive, tmp_path)
    assert set(summary.errors) == {error}
    rows = list(csv.DictReader((tmp_path / "store.zarr.errors.csv").open()))
    assert {row["error"] for row in rows} == {error}
    assert any(re.search(words, row["details"]) for row in rows), rows
    names, codes = store.column("patch_id").astype(str), store.column("error_code")
    (bad,) = np.flatnonzero(codes)
    assert rows[0]["patch"] == names[bad]
    assert codes[bad] == ERRORS[error]
    assert str(tmp_path) not in str(rows)
    pixels = store.reader(store.bands).read(np.arange(store.size))
    if error in ("missing_band", "unreadable", "wrong_size", "no_pixels", "duplicate", "foreign"):
        assert not any(block[bad].any() for block in pixels.values())
        assert store.column("valid_bands")[bad] == 0
    if codes[bad] in UNUSABLE:
        assert store.column("split_official")[bad] == 255
    if error == "bad_coordinates":
        assert np.isnan([store.column(name)[bad] for name in ("lat", "lon")]).all()
    others = np.delete(np.arange(store.size), bad)
    kept = unspoilt.reader(unspoilt.bands).read(np.searchsorted(unspoilt.column("patch_id").astype(str), names[others]))
    for name, block in pixels.items():
        np.testing.assert_array_equal(block[others], kept[name])


def test_control_a_clean_archive_reports_nothing(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 12)
    converted(archive, tmp_path)
    assert (tmp_path / "store.zarr.errors.csv").read_text() == "patch,error,details\n"


def test_all_dirt_at_once_stops_nothing(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 2 * len(dirty.DIRT))
    folders = dirty.folders(archive)
    for victim, (spoil, _, _) in zip(folders[::2], dirty.DIRT.values(), strict=True):
        spoil(victim)
    summary, store = converted(archive, tmp_path)
    assert summary.patches == 2 * len(dirty.DIRT) + 2
    assert set(summary.errors) == {error for _, error, _ in dirty.DIRT.values()}
    assert (store.column("error_code") > 0).sum() == len(dirty.DIRT)


def test_strict_stops_at_the_first_bad_patch(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 12)
    victim = dirty.folders(archive)[5]
    dirty.band(victim, "B09").unlink()
    with pytest.raises(DataError, match=rf"patch {victim.name}: missing_band: .*B09.tif is missing"):
        converted(archive, tmp_path, options=Options(workers=0, strict=True))
    with pytest.raises(DataError, match=r"was not finished"):
        Store.open(tmp_path / "store.zarr")


def test_a_garbled_name_takes_its_time_from_the_json(tmp_path):
    archive = dirty.clean(tmp_path / "archive", 12)
    victim = dirty.folders(archive)[5]
    short = victim.with_name(re.sub(r"T(\d{6})", "T94161", victim.name))
    victim.rename(short)
    for path in short.iterdir():
        path.rename(short / path.name.replace(victim.name, short.name))
    _, store = converted(archive, tmp_path)
    row = store.column("patch_id").tolist().index(short.name)
    check_against_rasterio(store, short, row)


@pytest.mark.parametrize(
    ("about", "error", "words"),
    [
        ({"bands": "swir"}, ConfigError, "bands must be one of all, rgb, not 'swir'"),
        ({"coordinates": "x.csv"}, ConfigError, r"bigearthnet-v1 has no option coordinates. It has: bands, metadata"),
        ({"metadata": "nowhere.csv"}, DataError, "there is no table nowhere.csv"),
    ],
)
def test_impossible_options(about, error, words, tmp_path):
    archive = dirty.clean(tmp_path / "archive", 2)
    about = {key: tmp_path.joinpath(value) if key == "metadata" else value for key, value in about.items()}
    with pytest.raises(error, match=words.replace("nowhere.csv", ".*nowhere.csv")):
        converted(archive, tmp_path, **about)


def test_no_archive_there(tmp_path):
    with pytest.raises(DataError, match="there is no archive at"):
        converted(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no patches of BigEarthNet v1.0"):
        converted(tmp_path / "empty", tmp_path)


def test_the_real_patches(tmp_path):
    archive = real_data("bigearthnet-v1")
    summary, store = converted(archive, tmp_path, metadata=archive.parent / "bigearthnet-v2")
    assert store.column("country").tolist() == ["Austria", "Ireland", "Ireland", "Portugal", "Finland", "Finland"]
    assert (summary.patches, summary.errors) == (6, {})
    folders = dirty.folders(archive)
    for row, folder in enumerate(folders):
        check_against_rasterio(store, folder, row)
    parts = ("train", "val", "test")
    listed = {part: bz2.decompress((archive / f"{part}.csv.bz2").read_bytes()).decode().split() for part in parts}
    for folder, code in zip(folders, store.column("split_official"), strict=True):
        found = [number for number, name in enumerate(parts) if folder.name in listed[name]]
        assert found == [code] or (not found and code == 255)
    snow = bz2.decompress((archive / "patches_with_seasonal_snow.csv.bz2").read_bytes()).decode().split()
    assert store.column("seasonal_snow").tolist() == [folder.name in snow for folder in folders]


def test_splits_of_the_public_code_and_tables_of_parts(tmp_path):
    """Lists as the documented command writes them; labeled and unlabeled patches together are the training part."""
    archive = dirty.clean(tmp_path / "archive")
    names = [folder.name for folder in dirty.folders(archive)]
    lists = tmp_path / "paper"
    lists.mkdir()
    parts = {"train0.01_lb_43": names[:2], "train0.01_ulb_43": names[1:5], "val": names[5:7], "test": names[7:8]}
    for stem, listed in parts.items():
        (lists / f"{stem}.csv").write_text("\n".join(["patch", *listed]))
    codes = listed_splits(tuple(names), {"paper": lists})["paper"]
    assert codes.tolist() == [0] * 5 + [1] * 2 + [2] + [255] * (len(names) - 8)
    notes = split_notes(tuple(names), {"paper": lists})
    assert notes[0] == "split paper: 5 train, 2 validation, 1 test" and "are in none of its lists" in notes[1]
    table = tmp_path / "parts.csv"
    table.write_text("\n".join(["patch,split", *(f"{n},{'train' if i < 5 else 'val'}" for i, n in enumerate(names))]))
    assert listed_splits(tuple(names), {"mine": table})["mine"].tolist() == [0] * 5 + [1] * (len(names) - 5)
    both = lists / "val.csv"
    both.write_text("\n".join(["patch", *names[4:6]]))
    with pytest.raises(DataError, match=r"train and validation .* share 1 patches"):
        listed_splits(tuple(names), {"paper": lists})
    both.unlink()
    (lists / "val.pkl").write_bytes(pickle.dumps(names))
    with pytest.raises(DataError, match=r"val\.pkl is a pickle.*to_csv\('val\.csv', index=False\)"):
        listed_splits(tuple(names), {"paper": lists})
    (lists / "val.csv").write_text("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57")
    notes = " ".join(split_notes(tuple(names), {"paper": lists}))
    assert "are no patches of the archive" in notes and "BigEarthNet v2.0" in notes
    for text, words in (
        ("patch\na", "needs the columns patch and split"),
        ("patch,split\na,dev", "'dev'"),
        ("patch,split\na,train\n,test", r"row 2 .* has the split test, but no patch"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=words):
            listed_splits(tuple(names), {"mine": table})
