import hashlib
import json

import dirty
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
from real import real_data

from stssl.archives.locations import from_table
from stssl.archives.nomenclature import LABELS_19, LABELS_43, TO_19
from stssl.archives.scenery import Painter
from stssl.archives.sentinel2 import RESOLUTION
from stssl.archives.synthetic import patch_names, synthesize_archive, synthetic_subject
from stssl.archives.world import World, generate
from stssl.base.errors import ConfigError, DataError

COARSE = np.array([[TO_19.get(fine) == name for name in LABELS_19] for fine in LABELS_43])


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_layout_is_the_real_one(tmp_path):
    archive = synthesize_archive(tmp_path / "archive", 5, seed=1)
    folder = dirty.folders(archive)[0]
    assert len(list(folder.iterdir())) == 13
    for array, gsd, side in (("b10", 10, 120), ("b20", 20, 60), ("b60", 60, 20)):
        for name in RESOLUTION[array]:
            with rasterio.open(dirty.band(folder, name)) as file:
                assert (file.count, file.width, file.height, file.dtypes[0]) == (1, side, side, "uint16")
                assert (file.transform.a, file.transform.e, file.transform.c % 1200) == (gsd, -gsd, 0)
                assert 0 < file.read(1).min() < file.read(1).max()
                bounds = file.bounds
    about = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())
    assert list(about) == ["labels", "coordinates", "projection", "tile_source", "acquisition_date"]
    assert about["coordinates"] == {"ulx": bounds.left, "uly": bounds.top, "lrx": bounds.right, "lry": bounds.bottom}
    assert set(about["labels"]) <= set(LABELS_43)
    assert about["acquisition_date"].replace("-", "").replace(" ", "T").replace(":", "") in folder.name


def test_a_file_is_as_rasterio_writes_it(tmp_path):
    real = real_data("bigearthnet-v1/BigEarthNet-v1.0")
    original = dirty.band(sorted(real.iterdir())[0], "B02")
    made = dirty.band(dirty.folders(synthesize_archive(tmp_path / "archive", 1))[0], "B02")
    with rasterio.open(original) as first, rasterio.open(made) as second:
        same = ("driver", "dtype", "nodata", "width", "height", "count", "blockysize", "tiled", "interleave")
        assert {key: first.profile[key] for key in same} == {key: second.profile[key] for key in same}
    assert abs(original.stat().st_size - made.stat().st_size) < 64


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first, again, other = (
        synthesize_archive(tmp_path / name, 6, seed) for name, seed in (("a", 4), ("b", 4), ("c", 5))
    )
    assert tree(first) == tree(again)
    assert tree(first) != tree(other)


def test_a_finished_archive_is_left_and_an_unfinished_one_continues(tmp_path):
    archive = synthesize_archive(tmp_path / "archive", 6)
    before = tree(archive)
    lost = dirty.folders(archive)[3]
    dirty.remove_tiffs(lost)
    synthesize_archive(archive, 6)
    assert tree(archive) != before
    record = json.loads((archive / "synthetic.json").read_text())
    (archive / "synthetic.json").write_text(json.dumps(record | {"complete": False}))
    synthesize_archive(archive, 6)
    assert tree(archive) == before


def test_other_things_are_not_overwritten(tmp_path):
    synthesize_archive(tmp_path / "archive", 2)
    with pytest.raises(DataError, match="holds another synthetic archive"):
        synthesize_archive(tmp_path / "archive", 3)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("")
    with pytest.raises(DataError, match="is not empty and not a synthetic archive"):
        synthesize_archive(tmp_path / "thesis", 3)
    with pytest.raises(ConfigError, match="patches must be 1 or more"):
        synthesize_archive(tmp_path / "none", 0)


@pytest.fixture(scope="module")
def world():
    return generate(20_000, 0)


def test_places_lie_in_their_countries_and_many_have_several_dates(world):
    lat, lon = world.degrees()
    finland = world.country == "Finland"
    assert lat[finland].min() > 60 > lat[~finland].max()
    assert 36 < lat.min() < lat.max() < 68
    assert -11 < lon.min() < lon.max() < 31
    visits = np.bincount(world.place)
    assert 0.4 < (visits[visits > 0] > 1).mean() < 0.8
    assert len(set(patch_names(world))) == len(world)
    for name in ("ulx", "uly", "epsg", "country"):
        assert all(len(set(values)) == 1 for values in np.split(getattr(world, name), _starts(world.place))[:50])


def _starts(place):
    return np.flatnonzero(np.diff(place)) + 1


def test_labels_are_as_frequent_as_the_real_ones(world):
    labels = world.labels @ COARSE
    assert 2.3 < labels.sum(1).mean() < 3.6
    assert labels.any(0).all()
    assert world.labels.any(1).all()


def average_precision(scores, truth):
    """Mean over classes, in percent."""
    found = []
    for score, hits in zip(scores.T, truth.T, strict=True):
        if hits.any():
            ordered = hits[np.argsort(-score, kind="stable")]
            found.append((np.cumsum(ordered) / np.arange(1, len(ordered) + 1))[ordered > 0].mean())
    return 100 * float(np.mean(found))


def neighbors(features, labels, train, test, count):
    """Mean label of the nearest training rows, the nearer the heavier."""
    scores = []
    for chunk in np.array_split(test, -(-len(test) // 500)):
        square = ((features[chunk, None] - features[None, train]) ** 2).sum(2)
        nearest = np.argpartition(square, count, axis=1)[:, :count]
        weight = 1 / (np.sqrt(np.take_along_axis(square, nearest, 1)) + 1)
        scores.append((labels[train][nearest] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True))
    return np.concatenate(scores)


def metadata_alone(world, test, count=15):
    """Macro average precision of class frequencies, of countries, and of the nearest places."""
    labels = (world.labels @ COARSE).astype(float)
    lat, lon = world.degrees()
    plane = np.stack([lat * 111, lon * 72], 1)
    rng = np.random.default_rng(0)
    train, rows = np.flatnonzero(~test), np.flatnonzero(test)
    train = rng.permutation(train)[:6000]
    rows = rng.permutation(rows)[:2000]
    frequency = np.tile(labels[train].mean(0), (len(rows), 1))
    country = np.array(
        [
            labels[train][own].mean(0) if (own := world.country[train] == name).any() else frequency[0]
            for name in world.country[rows]
        ]
    )
    scores = (frequency, country, neighbors(plane, labels, train, rows, count))
    return [average_precision(score, labels[rows]) for score in scores]


def test_metadata_alone_tells_what_it_tells_of_the_real_data(world):
    """Macro AP about 16 from frequencies, 31 from countries, 46 between regions, 60 between neighbors."""
    rng = np.random.default_rng(1)
    lat, lon = world.degrees()
    block = np.unique(np.stack([np.floor(lat), np.floor(lon)], 1), axis=0, return_inverse=True)[1].reshape(-1)
    by_place = (rng.random(world.place.max() + 1) < 0.3)[world.place]
    by_block = (rng.random(block.max() + 1) < 0.3)[block]
    frequency, country, near = metadata_alone(world, by_place)
    _, _, regional = metadata_alone(world, by_block, 60)
    assert 13 < frequency < 19
    assert 26 < country < 38
    assert 38 < regional < 52
    assert 50 < near < 66
    assert frequency + 8 < country < regional - 3 < near - 6


@pytest.mark.parametrize("country", ["Portugal", "Austria", "Finland"])
def test_metadata_says_nothing_of_a_country_left_out(world, country):
    frequency, _, near = metadata_alone(world, world.country == country, 60)
    assert abs(near - frequency) < 4


def test_control_without_place_there_is_nothing_to_know(world):
    """The same labels at shuffled places: neighbors are no better than frequencies."""
    mixed = World(**(world.__dict__ | {"labels": np.random.default_rng(0).permutation(world.labels)}))
    frequency, country, near = metadata_alone(mixed, np.random.default_rng(1).random(len(world)) < 0.3)
    assert abs(near - frequency) < 3
    assert abs(country - frequency) < 2


def test_placeless_labels_follow_neither_place_nor_date():
    placeless = generate(20_000, 0, placeless=True)
    frequency, country, near = metadata_alone(placeless, np.random.default_rng(1).random(len(placeless)) < 0.3)
    assert abs(near - frequency) < 3
    assert abs(country - frequency) < 2
    assert not placeless.snow.any()


def test_placeless_pixels_follow_neither_place_nor_date(tmp_path):
    """Two patches of the same classes, of one row number, look the same wherever and whenever they were taken."""
    placeless = generate(60, 0, placeless=True)
    moved = World(**(placeless.__dict__ | {"when": placeless.when + np.timedelta64(180, "D")}))
    painter, plain = Painter(0), Painter(0)
    for row in range(5):
        seen = painter.paint(synthetic_subject(placeless, row, 40.0, 0, True))["b10"]
        again = painter.paint(synthetic_subject(moved, row, 65.0, 0, True))["b10"]
        control = plain.paint(synthetic_subject(moved, row, 65.0, 0, False))["b10"]
        assert (seen == again).all() and (seen != control).any()


def test_placeless_is_recorded_and_refuses_a_table(tmp_path):
    synthesize_archive(tmp_path / "one", 3, placeless=True)
    with pytest.raises(DataError, match="another synthetic archive"):
        synthesize_archive(tmp_path / "one", 3)
    with pytest.raises(ConfigError, match="leave out one of the two"):
        synthesize_archive(tmp_path / "two", 3, locations=tmp_path / "places.csv", placeless=True)


def told_by_dates(world, country):
    """Macro AP of a country's patches by what dates tell in the other countries, minus AP by frequencies."""
    angle = 2 * np.pi * (world.when - world.when.min()).astype("timedelta64[D]").astype(float) / 365
    seasons = np.stack([np.ones(len(world)), np.cos(angle), np.sin(angle)], 1)
    own, labels = world.country == country, world.labels
    learned = np.linalg.lstsq(seasons[~own], labels[~own].astype(float), rcond=None)[0]
    even = np.tile(labels[~own].mean(0), (own.sum(), 1))
    return average_precision(seasons[own] @ learned, labels[own]) - average_precision(even, labels[own])


def test_dates_tell_the_opposite_in_the_misleading_country_alone():
    misleading = generate(12_000, 0, misleading="Finland")
    assert told_by_dates(misleading, "Finland") < -2
    assert min(told_by_dates(misleading, name) for name in ("Lithuania", "Austria", "Portugal")) > 5
    assert not misleading.snow.any() and seasonality(misleading) < 0.3
    usual = generate(12_000, 0, confounded=False)  # control: there dates tell nothing anywhere
    assert max(abs(told_by_dates(usual, name)) for name in ("Finland", "Lithuania", "Austria", "Portugal")) < 1.5


def test_misleading_is_recorded_and_pixels_hide_the_date(tmp_path):
    one, other, usual = (
        synthesize_archive(tmp_path / name, 4, misleading=country)
        for name, country in (("one", "Finland"), ("other", "Austria"), ("usual", None))
    )
    records = [json.loads((folder / "synthetic.json").read_text()) for folder in (one, other, usual)]
    assert [record.get("misleading", "none") for record in records] == ["Finland", "Austria", "none"]
    world = generate(4, 0, misleading="Finland")
    painter, band = Painter(0), RESOLUTION["b10"][0]
    for row, name in enumerate(patch_names(world)):
        hidden, shown = (
            painter.paint(synthetic_subject(world, row, 40.0, 0, only))["b10"][0] for only in (True, False)
        )
        with rasterio.open(one / "BigEarthNet-v1.0" / name / f"{name}_{band}.tif") as file:
            pixels = file.read(1)
        assert (pixels == hidden).all() and (pixels != shown).any()
    for words, given in (
        ("no country 'Atlantis'. There are: Austria", {"misleading": "Atlantis"}),
        ("no country ''", {"misleading": ""}),
        ("leave out one of the two", {"misleading": "Finland", "placeless": True}),
        ("leave out one of the two", {"misleading": "Finland", "locations": tmp_path / "places.csv"}),
    ):
        with pytest.raises(ConfigError, match=words):
            synthesize_archive(tmp_path / "new", 4, **given)
    assert not (tmp_path / "new").exists()


def seasonality(world):
    """How much a country's dates lie together in the year, on average: 0 evenly spread, 1 all on one day."""
    day = (world.when - world.when.min()).astype("timedelta64[D]").astype(float)
    turn = np.exp(2j * np.pi * day / 365)
    return np.mean([abs(turn[world.country == name].mean()) for name in set(world.country)])


def test_dates_go_with_countries_only_when_they_are_told_to(world):
    assert seasonality(world) > 0.6
    assert seasonality(generate(20_000, 0, confounded=False)) < 0.3


def test_a_table_of_real_places(tmp_path):
    table = real_data("bigearthnet-v2/patch_locations_derived.parquet")
    world = from_table(table, 1500, 0)
    assert len(world) == 1500
    assert {"Austria", "Finland", "Portugal"} < set(world.country)
    frequency, country, near = metadata_alone(world, np.random.default_rng(0).random(1500) < 0.3)
    assert frequency + 5 < country < near
    few = next(pyarrow.parquet.ParquetFile(table).iter_batches(500))  # the whole table takes seconds to use
    pyarrow.parquet.write_table(pyarrow.Table.from_batches([few]), tmp_path / "few.parquet")
    archive = synthesize_archive(tmp_path / "archive", 4, locations=tmp_path / "few.parquet")
    assert len(dirty.folders(archive)) == 4


def test_a_table_that_cannot_be_used(tmp_path):
    (tmp_path / "table.csv").write_text("lat,lon\n1,2\n")
    with pytest.raises(DataError, match=r"table.csv lacks the columns epsg, ulx, uly, date, labels, country"):
        synthesize_archive(tmp_path / "archive", 1, locations=tmp_path / "table.csv")


def test_a_table_as_csv_is_one_as_parquet(tmp_path):
    lines = ["epsg,ulx,uly,date,labels,country,contains_seasonal_snow"]
    for place in range(6):
        lines += [
            f"32633,{3e5 + 1200 * place},5000400,2018-0{month}-03 10:00:00,Pastures;Mixed forest,Austria,{month < 3}"
            for month in (1, 6)
        ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    world = from_table(tmp_path / "table.csv", 12, 0)
    assert (len(set(world.place)), world.snow.sum(), set(world.country)) == (6, 6, {"Austria"})
    assert {tuple(np.array(LABELS_19)[row]) for row in world.labels @ COARSE} == {("Pastures", "Mixed forest")}
    assert set(world.when.astype("datetime64[M]").astype(str)) == {"2018-01", "2018-06"}


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("a,5e6,2017-06-13,Pastures", "must be numbers"),
        ("4e5,,2017-06-13,Pastures", "some rows have no epsg, ulx, uly or date|must be numbers"),
        ("4e5,5e6,yesterday,Pastures", "date ISO 8601"),
        ("4e5,5e6,,Pastures", "some rows have no"),
        ("4e5,5e6,2017-06-13,", "a row without labels"),
        ("4e5,5e6,2017-06-13,Moon", "names the class 'Moon'"),
        ("1e30,5e6,2017-06-13,Pastures", "row 1 below the header: ulx 1e[+]30, uly 5e[+]06 is no place of EPSG:32633"),
        ("4e5,-1e9,2017-06-13,Pastures", "is no place of EPSG:32633"),
        ("4e5,5e6,1066-10-14,Pastures", "row 1 .*, column 'date': 1066-10-14T00:00:00 is no date of an image"),
        ('4e5,5e6,2017-06-13,"[[1], [2]]"', "row 1 below the header, column 'labels'"),
        ("4e5,5e6,2017-06-13,Pastures", None),
    ],
)
def test_cells_that_cannot_be_used(cells, words, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"epsg,ulx,uly,date,labels,country\n32633,{cells},Austria\n")
    if words is None:
        synthesize_archive(tmp_path / "archive", 1, locations=table)
        return
    with pytest.raises(DataError, match=words):
        synthesize_archive(tmp_path / "archive", 1, locations=table)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot make the folder"):
        synthesize_archive(tmp_path / "file", 1)


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        (
            "labels",
            [["Pastures"]],
            r"row 1 below the header, column 'labels': .*is a list of something else than names",
        ),
        ("labels", [3], "row 1 below the header, column 'labels': .*is a list of numbers"),
        ("labels", ["Pastures", "Mixed forest"], None),
        ("epsg", 99999, r"row 1 below the header, column 'epsg': 99999: The EPSG code is unknown"),
        ("epsg", 4326, "row 1 below the header, column 'epsg': 4326 is no projection in meters"),
        ("epsg", 32633.5, "row 1 below the header, column 'epsg': 32633.5 is no EPSG code"),
        ("country", ["Austria"], "column 'country': .*is no name"),
        ("date", 20170613, "dates are no numbers"),
        ("contains_seasonal_snow", [True], r"column 'contains_seasonal_snow': '?.true.'? is neither true nor false"),
        ("contains_cloud_or_shadow", "False", None),
    ],
)
def test_columns_of_parquet_that_cannot_be_used(column, cell, words, tmp_path, capfd):
    """What is nested or of another type is told with its row; PROJ prints nothing of its own."""
    good = {"epsg": 32633, "ulx": 3e5, "uly": 5.4e6, "date": "2017-06-13", "labels": ["Pastures"], "country": "Austria"}
    columns = {name: [value] * 2 for name, value in (good | {column: cell}).items()}
    table = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), table)
    if words is None:
        synthesize_archive(tmp_path / "archive", 2, locations=table)
    else:
        with pytest.raises(DataError, match=f"table.parquet.*{words}"):
            synthesize_archive(tmp_path / "archive", 2, locations=table)
    assert capfd.readouterr().err == ""
