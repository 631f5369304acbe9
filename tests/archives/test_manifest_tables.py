"""Tables that name images: however they are written, read right or refused by file, line and column."""

import gzip
import pickle
from datetime import date, datetime

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from stssl.api.progress import conversion_summary
from stssl.archives.base import SlicedArchive
from stssl.archives.cells import first_rows, image_path, place_of, split_of, time_of
from stssl.archives.conversion import Options, convert_archive
from stssl.archives.manifest import Manifest
from stssl.archives.tables import ABOUT, choose_columns, read_table
from stssl.base import textfiles
from stssl.base.errors import ConfigError, DataError
from stssl.base.textfiles import read_names
from stssl.recipes.build import check_recipe
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import labels_of
from stssl.store.description import describe_store
from stssl.store.schema import BadPatchError
from stssl.store.store import Store

HERE = Options(workers=0, shard=64)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"i{number}.png")
    return tmp_path


def written(folder, content, name="table.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def store_of(table):
    summary = convert_archive(
        "manifest", table, table.with_name(f"{'s' if table.stem == 'table' else table.stem}.zarr"), HERE
    )
    return summary, Store.open(summary.store)


@pytest.mark.parametrize(
    "content",
    [
        "path,label\ni0.png,park\ni1.png,zoo\n",
        "path;label\ni0.png;park\ni1.png;zoo\n",
        "path\tlabel\r\ni0.png\tpark\r\ni1.png\tzoo\r\n",
        "path|label\ni0.png|park\ni1.png|zoo\n",
        "sep=;\npath;label\ni0.png;park\ni1.png;zoo\n",
        "\ufeff Path , Label \ni0.png, park\n\n,\ni1.png,zoo",
        '\ufeff"path","\u00a0label"\n"i0.png","park"\n"i1.png","zoo"\n',
        ",path,label\n0,i0.png,park\n1,i1.png,zoo\n",
        "path,category\ni0.png,park\ni1.png,zoo\n",
        "File Name,class-name\ni0.png,park\ni1.png,zoo\n",
        "path,label\ni0.png,park\ni1.png,zoo\n".encode("utf-16"),
    ],
)
def test_tables_of_text_in_every_common_form(content, images):
    summary, store = store_of(written(images, content))
    assert summary.errors == {} and store.classes("label") == ("park", "zoo")
    assert store.column("label").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\ni0.png,a\ni1.png,b,c\n", "line 3 has 3 cells, and the first line names 2 columns"),
        ("path,label\ni0.png\n", "line 2 has 1 cells"),
        ('path,label\ni0.png,"a\nb",c\n', "line 3 has 3 cells"),
        ('path,label\ni0.png,"a\ni1.png,b\n', "lines 2 to 3"),
        ("path,label,label\ni0.png,a,b\n", "columns 2 and 3 are both called 'label'"),
        ("path,label, Label\ni0.png,a,b\n", "the columns 'label' and 'Label' are one"),
        ("path,lat, lat,lon\ni0.png,1,1,2\n", "both called 'lat'"),
        ("i0.png,a\ni1.png,b\n", "needs a column 'path'.*It has: i0.png, a"),
        ("path,label\n", "at least one row"),
        ("", "It is empty"),
        (b"path,label\ni0.png,caf\xe9\n", "line 2 is not UTF-8"),
        (b"path,label\ni0.png,a\0b\n", "line 2 has a NUL"),
        ("path,label\n".encode("utf-16-le"), "line 1 has a NUL"),
        ('[{"path": "i0.png"}]', "is JSON, not a table: a table is"),
        (b"PK\x03\x04aaaa", "is a zip archive or spreadsheet, not a table"),
        (b"II*\0aaaa", "is a TIFF image, not a table: .*path,label"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG image, not a table"),
    ],
)
def test_what_is_no_table_or_a_broken_one_is_said_with_its_line(content, words, images):
    with pytest.raises(DataError, match=words) as caught:
        Manifest(written(images, content))
    assert "\n" not in str(caught.value) and str(images / "table.csv") in str(caught.value)


def test_a_folder_and_a_false_parquet_are_no_tables(images):
    (images / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        convert_archive("manifest", images / "empty", images / "s.zarr", HERE)
    for content in (b"PAR1", b"PAR1" + b"x" * 50 + b"PAR1", b"path\ni0.png"):
        with pytest.raises(DataError, match="cannot read the table"):
            read_table(written(images, content, "t.parquet"))
    whole = pyarrow.table({"path": ["i0.png"], "label": ["a"]})
    pyarrow.parquet.write_table(whole, images / "table.csv")
    assert read_table(images / "table.csv").equals(whole)


def test_bombs_are_bounded_before_they_unpack(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "MOST_BYTES", 100_000)
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"a" * 100_001))
    with pytest.raises(DataError, match="holds more than 100,000 bytes"):
        read_names(tmp_path / "list.csv.gz")
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b'a;1\nb,2\n"c,d",3\n'))
    assert read_names(tmp_path / "list.csv.gz") == {"a", "b", "c,d"}


def test_columns_that_are_read_and_passed_over_are_said(images):
    header = "path, label,class,latitude_wgs84,longitude_wgs84,acquired,lat"
    summary, _ = store_of(written(images, f"{header}\ni0.png,a,b,48,11,2020-06-01,\n"))
    text = conversion_summary(summary)
    assert "columns used: path, lat, label, time from 'acquired'\n" in text
    assert "columns not used: class, latitude_wgs84, longitude_wgs84\n" in text
    assert "label is read from 'label', not from 'class'" in text
    assert "lat is of no use without a column lon" in text
    chosen = choose_columns(["Path", "DATE"], {"path": ("path",)} | ABOUT, images)
    assert chosen.words() == ("columns used: path from 'Path', time from 'DATE'",)


def test_bad_values_cost_their_own_column_only(images):
    rows = ["path,label,split,lat,lon,time,location_id"]
    rows += [f"i{n}.png,{'ab'[n % 2]},train,48,11,2020-06-01T10:00Z,7" for n in range(8)]
    rows[1] = rows[1].replace("2020-06-01T10:00Z", "01/06/2020")
    rows[2] = rows[2].replace("train", "holdout")
    rows[3] = rows[3].replace(",48,", ',"48,1",')
    rows[4] = rows[4].replace(",7", ",7.0")
    rows[5] = rows[5].replace(",a,", ",nan,")
    summary, store = store_of(written(images, "\n".join(rows)))
    assert summary.errors == {"bad_coordinates": 1, "bad_split": 1, "bad_time": 1}
    assert "decimal comma: write 48.1" in summary.examples["bad_coordinates"]
    assert store.column("split_official").tolist() == [0, 255, 0, 0, 0, 0, 0, 0]
    assert store.column("label").tolist() == [0, 1, 0, 1, -1, 1, 0, 1]
    assert (store.column("day_of_year") == 153).tolist() == [False] + [True] * 7
    assert np.isfinite(store.column("lat")).tolist() == [True, True, False] + [True] * 5
    assert set(store.column("location_id")) == {0}
    assert store.column("error_code")[4] == 0 and "1  (unlabeled)" in describe_store(store)
    assert "label: 1 of 8 rows are unlabeled (among them 'nan' 1 times)" in conversion_summary(summary)


def test_one_image_under_several_names_is_a_duplicate(images):
    (images / "link.png").symlink_to(images / "i0.png")
    (images / "sub").symlink_to(images, target_is_directory=True)
    same = ["./i0.png", "sub/../i0.png", str(images / "i0.png"), "link.png", "sub/i0.png", f"file://{images}/i0.png"]
    names = ["i0.png", *same, "i1.png", ".\\i1.png"]
    assert first_rows(images, names) == [0] * 7 + [7, 7]
    summary, store = store_of(written(images, "\n".join(["path,label", *(f"{name},a" for name in names)])))
    assert summary.errors == {"duplicate": 7} and (store.column("error_code") == 0).sum() == 2


@pytest.mark.parametrize(
    "name", ["http://h/i0.png", "s3://b/i0.png", "a\0b", "C:\\i0.png", "~nobody-here/i0.png", "nan"]
)
def test_names_that_are_no_paths_lose_their_row_in_words(name, images):
    with pytest.raises(BadPatchError):
        image_path(images, name)


def test_a_name_that_is_too_long_costs_its_row_only(images):
    summary, store = store_of(written(images, f"path,label\n{'9' * 5000},a\ni1.png,b\n"))
    assert summary.errors == {"no_pixels": 1} and "too long" in summary.examples["no_pixels"]
    assert store.column("label").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cell", "second"),
    [
        ("2020-06-01", 1590969600),
        ("2020-06-01T02:00:00+02:00", 1590969600),
        ("2020-06-01T00:00:00Z", 1590969600),
        ("2020-06-01T00:00:00.000Z", 1590969600),
        ("20200601T000000Z", 1590969600),
        (" 2020/6/1 ", 1590969600),
        (date(2020, 6, 1), 1590969600),
        (datetime(2020, 6, 1), 1590969600),
    ],
)
def test_times(cell, second):
    assert time_of(cell)["time"] == second and time_of(cell)["day_of_year"] == 153


@pytest.mark.parametrize(
    "cell",
    ["01/06/2020", "1.6.2020", "06-01-2020", "1590969600", "1590969600000", 1590969600, 1.5e9, True, "2020", "June", []]
    + ["0001-01-01T00:00:00+23:00", "0020-06-01", "2020-13-01", "9999-12-31T23:59:59-23:00"],
)
def test_times_that_could_be_another_are_refused(cell):
    with pytest.raises(BadPatchError, match="time"):
        time_of(cell)


def test_places_and_splits():
    assert place_of(" 48.5", "1e1", 0) == {"lat": 48.5, "lon": 10}
    assert place_of(None, float("nan"), 0) == place_of("", "NaN", 0) == {}
    for lat, lon, words in (
        ("48,1", "11", "row 1 .*column lat: '48,1' has a decimal comma"),
        ("48", "", "has no lon"),
        ("1_0", "11", "latitude 1_0"),
        ("48", "200", "run from -180"),
        ("120", "45", "swapped"),
        (True, 1.0, "latitude True"),
        ("48N", "11E", "latitude 48N"),
    ):
        with pytest.raises(BadPatchError, match=words):
            place_of(lat, lon, 0)
    assert [split_of(cell).get("split_official") for cell in ("Train", "val", " TEST ", "", None)] == [
        0,
        1,
        2,
        None,
        None,
    ]


def test_a_recipe_with_metadata_needs_some(images):
    """Else the teacher trains on nothing but missing values, and nobody is told."""
    rows = [f"i{n}.png,{'ab'[n % 2]},{['train', 'train', 'val', 'test'][n // 2]}" for n in range(8)]
    without = store_of(written(images, "\n".join(["path,label,split", *rows])))[0].store
    (images / "s.zarr").rename(images / "without.zarr")
    with_places = written(images, "\n".join(["path,label,split,lat,lon", *(f"{row},48,11" for row in rows)]))
    tree = {
        "name": "run",
        "data": {"labels": "label"},
        "labels": {"per_class": 1},
        "model": {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "image_size": 16},
        "algorithm": {"name": "fixmatch"},
        "batch": {"labeled": 2, "unlabeled_ratio": 1},
        "schedule": {"steps": 4, "warmup": 0},
    }
    assert without.endswith("s.zarr")

    def recipe(store, metadata):
        model = tree["model"] | {"metadata": metadata, "injection": {"name": "none" if metadata == "none" else "late"}}
        return Recipe.model_validate(tree | {"data": tree["data"] | {"store": str(store)}, "model": model})

    for metadata in ("teacher", "direct"):
        with pytest.raises(ConfigError, match=r"model.metadata: .* has either. Set model.metadata=none"):
            check_recipe(recipe(images / "without.zarr", metadata))
    check_recipe(recipe(images / "without.zarr", "none"))
    check_recipe(recipe(store_of(with_places)[0].store, "teacher"))


def test_a_mistyped_column_is_said_with_the_right_name(images):
    summary, store = store_of(written(images, "path,clas,acqired,latitud,note\ni0.png,a,2020-06-01,48,x\n"))
    text = conversion_summary(summary)
    assert "no labels: no column is called label (or class). Not used: 'clas': did you mean class?" in text
    assert "no time: not used is the column 'acqired': did you mean acquired?" in text
    assert "no lat: not used is the column 'latitud': did you mean latitude?" in text
    with pytest.raises(ConfigError, match="has no labels at all"):
        labels_of(store, "label")
    right, _ = store_of(written(images, "path,class,acquired,id\ni1.png,a,2020-06-01,7\n", "t2.csv"))
    assert "did you mean" not in conversion_summary(right) and "no labels" not in conversion_summary(right)
    assert "time from 'acquired'" in conversion_summary(right)


def test_images_in_another_folder_are_found_and_can_be_given(images, tmp_path):
    (images / "patches").mkdir()
    (images / "i0.png").rename(images / "patches" / "i0.png")
    table = written(images, "path,label\ni0.png,a\n")
    with pytest.raises(DataError, match=r"i0.png is found in patches/: add this folder .*--images .*patches"):
        Manifest(table)
    assert Manifest(table, images=images / "patches").read(0).problems == []
    with pytest.raises(ConfigError, match=r"--images .*there is no such folder"):
        Manifest(table, images=images / "pictures")
    inside = written(images / "patches", "path\ni1.png\n")
    with pytest.raises(DataError, match=r"is found in .*: give --images"):
        Manifest(inside)
    with pytest.raises(DataError) as caught:
        Manifest(written(images, "path\nnowhere.png\n", "n.csv"))
    assert "--images" not in str(caught.value)


def test_a_store_made_otherwise_is_said_in_words(images):
    table = written(images, "path\ni0.png\n")
    store = images / "s.zarr"
    convert_archive("manifest", table, store, HERE)
    with pytest.raises(DataError, match=r"something else: other --band-names\. Give another path, or delete the store"):
        convert_archive("manifest", table, store, HERE, band_names="1,2,3")
    written(images, "path\ni1.png\n")
    with pytest.raises(DataError, match=r"something else: another \(or a changed\) table or archive, other patches"):
        convert_archive("manifest", table, store, HERE)


def test_a_manifest_that_is_cut_to_rows_reads_them_as_the_whole_does_and_is_small(tmp_path):
    """Each Ray task of a conversion gets the rows of its shard, not the listing of all images."""
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    lines = ["path,label,lat,lon,country,location_id,split"]
    for row in range(600):
        if row < 8:
            image.save(tmp_path / f"{row}.png")
        name = "3.png" if row == 5 else f"{row}.png"
        lines.append(f"{name},{'abc'[row % 3]},{row / 10},{row / 20},Chile,place {row % 7},train")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    whole = Manifest(tmp_path / "table.csv")
    part = pickle.loads(pickle.dumps(whole.of_rows(range(4, 8))))
    for row in range(4, 8):
        mine, theirs = part.read(row), whole.read(row)
        assert part.names[row] == whole.names[row] and mine.problems == theirs.problems
        assert mine.values.keys() == theirs.values.keys()
        assert all(np.array_equal(value, theirs.values[name]) for name, value in mine.values.items())
        assert all(np.array_equal(pixels, theirs.arrays[name]) for name, pixels in mine.arrays.items())
    assert part.read(5).problems and not part.read(4).problems  # row 5 names the image of row 3
    for row in (3, 8, -1):
        with pytest.raises(IndexError):
            part.read(row)
    assert len(pickle.dumps(part)) < len(pickle.dumps(whole)) / 5
    assert isinstance(whole, SlicedArchive)
