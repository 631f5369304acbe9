import csv
import shutil
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
import tiny
from dirty import band, clean, folders, write_tiff
from PIL import Image
from real import real_data

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.archives.eurosat import MS_ORDER
from stssl.archives.nomenclature import LABELS_19
from stssl.base.errors import ConfigError, DataError
from stssl.store.description import describe_store
from stssl.store.store import Store

HERE = Options(workers=0, shard=8)
PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


def converted(source, archive, tmp_path, **about):
    summary = convert_archive(source, archive, tmp_path / "store.zarr", HERE, **about)
    return summary, Store.open(tmp_path / "store.zarr")


@pytest.fixture
def reben(tmp_path):
    """Four patches in BigEarthNet v2.0's layout, with reference maps of three of them and both tables."""
    made = folders(clean(tmp_path / "v1", 4))
    root, rows = tmp_path / "v2", []
    for number, folder in enumerate(made):
        name = f"{PRODUCT}_{number}_{40 + number}"
        target = root / "BigEarthNet-S2" / PRODUCT / name
        target.mkdir(parents=True)
        for path in folder.glob("*.tif"):
            shutil.copy(path, target / path.name.replace(folder.name, name))
        row = {
            "patch_id": name,
            "labels": ["Pastures", LABELS_19[number]],
            "split": ["train", "validation"][number % 2],
        }
        rows.append(
            row | {"country": "Austria", "contains_seasonal_snow": number == 3, "contains_cloud_or_shadow": False}
        )
        if number:
            reference = root / "Reference_Maps" / PRODUCT / name
            reference.mkdir(parents=True)
            pixels = np.full((1, 120, 120), 231 + number, np.uint16)
            write_tiff(reference / f"{name}_reference_map.tif", pixels, compress="deflate")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), root / "metadata.parquet")
    other = root / "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[3:]), other)
    return root


def test_reben_with_lists_and_with_maps_elsewhere(reben, tmp_path):
    names = [f"{PRODUCT}_{number}_{40 + number}" for number in range(4)]
    lists = tmp_path / "lists"
    lists.mkdir()
    for part, chosen in (("train", names[2:]), ("val", names[:1]), ("test", names[1:2])):
        (lists / f"{part}.txt").write_text("\n".join(chosen))
    maps = (reben / "Reference_Maps").rename(tmp_path / "maps")
    _, store = converted("bigearthnet-v2", reben, tmp_path, splits={"mine": lists}, reference_maps=maps)
    assert store.split_names == ("official", "mine")
    assert store.column("split_mine").tolist() == [1, 2, 0, 0]
    assert store.column("split_official").tolist() == [0, 1, 0, 1]
    assert store.attrs["maps"] == ["reference_map"]
    convert_archive("bigearthnet-v2", reben, tmp_path / "without.zarr", HERE)
    assert not Store.open(tmp_path / "without.zarr").attrs["maps"]


def test_reben(reben, tmp_path):
    summary, store = converted("bigearthnet-v2", reben, tmp_path)
    assert (summary.patches, summary.errors) == (4, {})
    assert store.column("split_official").tolist() == [0, 1, 0, 1]
    assert store.column("seasonal_snow").tolist() == [False, False, False, True]
    assert store.column("season").tolist() == ["summer"] * 4
    labels = store.column("labels_19")
    for row, folder in enumerate(sorted((reben / "BigEarthNet-S2" / PRODUCT).iterdir())):
        assert {LABELS_19[i] for i in np.flatnonzero(labels[row])} == {"Pastures", LABELS_19[row]}
        with rasterio.open(band(folder, "B02")) as file:
            assert (store.column("ulx")[row], store.column("uly")[row]) == (file.bounds.left, file.bounds.top)
            np.testing.assert_array_equal(store.reader(["B02"]).read(np.array([row]))["b10"][0, 0], file.read(1))
    maps = store.map_reader().read(np.arange(4))["reference_map"]
    assert maps.max((1, 2, 3)).tolist() == [0, 232, 233, 234]
    assert "reference_map" not in store.groups
    assert not store.has_column("reference_map")
    assert verify_store(tmp_path / "store.zarr", reben).problems == ()


@pytest.mark.parametrize("damage", ["index", "pixels", "archive"])
def test_verify_looks_at_maps_too(damage, reben, tmp_path):
    converted("bigearthnet-v2", reben, tmp_path)
    path = tmp_path / "store.zarr" / "reference_map" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[{"index": -10, "pixels": 4, "archive": 4}[damage]] ^= 255
    if damage == "archive":
        (changed,) = (reben / "Reference_Maps").rglob("*_2_42_reference_map.tif")
        write_tiff(changed, np.full((1, 120, 120), 7, np.uint16))
        assert verify_store(tmp_path / "store.zarr").problems == ()
        problems = verify_store(tmp_path / "store.zarr", reben).problems
        assert problems == (f"{PRODUCT}_2_42: its reference_map differs from the archive's",)
        return
    path.write_bytes(data)
    problems = verify_store(tmp_path / "store.zarr").problems
    assert len(problems) == (4 if damage == "index" else 1) and "reference_map" in problems[0]


def test_reben_dirt(reben, tmp_path):
    product = reben / "BigEarthNet-S2" / PRODUCT
    first, second = sorted(product.iterdir())[:2]
    (reben / "BigEarthNet-S2" / "copy").mkdir()
    shutil.copytree(first, reben / "BigEarthNet-S2" / "copy" / first.name)
    second.rename(product / f"{PRODUCT}_88_88")
    for path in (product / f"{PRODUCT}_88_88").iterdir():
        path.rename(path.with_name(path.name.replace(second.name, f"{PRODUCT}_88_88")))
    shutil.copytree(folders(tmp_path / "v1")[0], reben / "BigEarthNet-S2" / folders(tmp_path / "v1")[0].name)
    summary, store = converted("bigearthnet-v2", reben, tmp_path)
    assert summary.errors == {"duplicate": 1, "foreign": 1, "no_metadata": 1}
    assert store.size == 6


@pytest.mark.parametrize("damage", [b"", b"II*\0 and nothing more", None])
def test_a_damaged_reference_map_costs_the_map_alone(damage, reben, tmp_path, capfd):
    (path,) = (reben / "Reference_Maps").rglob("*_2_42_reference_map.tif")
    if damage is None:
        write_tiff(path, np.full((1, 60, 60), 7, np.uint16))
    else:
        path.write_bytes(damage)
    summary, store = converted("bigearthnet-v2", reben, tmp_path)
    assert summary.errors == {"bad_map": 1} and list(summary.examples) == ["bad_map"]
    assert "_2_42_reference_map.tif" in summary.examples["bad_map"]
    row = store.column("patch_id").tolist().index(f"{PRODUCT}_2_42")
    assert store.column("split_official").tolist() == [0, 1, 0, 1]
    assert store.column("error_code").tolist() == [15 if i == row else 0 for i in range(4)]
    assert store.column("labels_19")[row].any() and store.reader(["B02"]).read(np.array([row]))["b10"].any()
    assert not store.map_reader().read(np.array([row]))["reference_map"].any()
    assert "errors    1 bad_map" in describe_store(store)
    assert verify_store(tmp_path / "store.zarr", reben).problems == ()
    assert capfd.readouterr().err == ""


def test_errors_of_images_are_the_same_at_every_run(tmp_path):
    for kind in ("whole", "cut"):
        write_tiff(tmp_path / f"{kind}.tif", np.arange(192, dtype=np.uint8).reshape(3, 8, 8))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:200])
    (tmp_path / "m.csv").write_text("path,label\nwhole.tif,a\ncut.tif,b\n")
    reports = []
    for number in range(2):
        summary = convert_archive("manifest", tmp_path / "m.csv", tmp_path / f"{number}.zarr", HERE)
        assert summary.errors == {"unreadable": 1}
        reports.append((tmp_path / f"{number}.zarr.errors.csv").read_text())
    assert reports[0] == reports[1] and 'cut.tif,unreadable,"cut.tif: TIFFReadDirectory' in reports[0]


def test_reben_without_tables_says_what_is_missing(reben, tmp_path):
    for table in reben.glob("*.parquet"):
        table.unlink()
    with pytest.raises(DataError, match=r"there is no metadata.parquet beside .*v2. Give it with --metadata"):
        converted("bigearthnet-v2", reben, tmp_path)


def test_the_real_reben_patch(tmp_path):
    archive = real_data("bigearthnet-v2")
    summary, store = converted("bigearthnet-v2", archive, tmp_path)
    assert (summary.patches, summary.errors) == (1, {})
    (path,) = (archive / "BigEarthNet-S2").rglob("*_B8A.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(store.reader(["B8A"]).read(np.array([0]))["b20"][0, 0], file.read(1))
    locations = pyarrow.parquet.read_table(archive / "patch_locations_derived.parquet")
    row = locations["patch_id"].to_pylist().index(store.column("patch_id")[0])
    truth = {name: locations[name][row].as_py() for name in ("lat", "lon", "ulx", "uly", "country", "labels", "date")}
    np.testing.assert_allclose(
        [store.column("lat")[0], store.column("lon")[0]], [truth["lat"], truth["lon"]], atol=1e-7
    )
    assert (store.column("ulx")[0], store.column("uly")[0]) == (truth["ulx"], truth["uly"])
    assert {LABELS_19[i] for i in np.flatnonzero(store.column("labels_19")[0])} == set(truth["labels"])
    assert store.column("time")[0] == (truth["date"].timestamp() if truth["date"].tzinfo else _utc(truth["date"]))


def _utc(when):
    return int(np.datetime64(when, "s").astype(np.int64))


def write_multispectral(folder, per_class=5):
    for number, name in enumerate(("Forest", "River")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = (
                np.arange(13, dtype=np.uint16)[:, None, None] * 100 + np.full((13, 64, 64), number + i, np.uint16) + 1
            )
            write_tiff(folder / name / f"{name}_{i + 1}.tif", pixels)


@pytest.mark.parametrize("packed", [False, True])
def test_multispectral_eurosat_puts_bands_in_their_places(packed, tmp_path):
    write_multispectral(tmp_path / "ms")
    archive = tmp_path / "ms"
    if packed:
        archive = tmp_path / "ms.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in (tmp_path / "ms").rglob("*.tif"):
                file.write(path, f"EuroSATallBands/{path.parent.name}/{path.name}")
    summary, store = converted("eurosat-ms", archive, tmp_path)
    assert (summary.patches, summary.errors) == (10, {})
    assert sorted(store.bands) == sorted(MS_ORDER)
    for name, block in store.reader(store.bands).read(np.arange(10)).items():
        for place, own in enumerate(store.groups[name].bands):
            assert (block[:, place, 0, 0] // 100 == MS_ORDER.index(own)).all()
    assert np.isfinite(store.column("lat")).all()


def test_the_real_multispectral_images(tmp_path):
    archive = real_data("eurosat-ms-sample")
    summary, store = converted("eurosat-ms", archive, tmp_path)
    assert (summary.patches, summary.errors) == (3, {})
    blocks = store.reader(store.bands).read(np.arange(3))
    for row, path in enumerate(sorted(archive.rglob("*.tif"))):
        with rasterio.open(path) as file:
            for name, group in store.groups.items():
                for place, own in enumerate(group.bands):
                    np.testing.assert_array_equal(blocks[name][row, place], file.read(MS_ORDER.index(own) + 1))


def test_eurosat_dirt(tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=3)
    (archive / "Forest" / "Forest_1.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    Image.new("RGB", (63, 64)).save(archive / "River" / "River_2.jpg")
    (tmp_path / "2750" / "EuroSAT_RGB" / "Pasture").mkdir(parents=True)
    shutil.copy(archive / "Pasture" / "Pasture_1.jpg", archive / "EuroSAT_RGB" / "Pasture" / "Pasture_1.jpg")
    rows = list(csv.DictReader(table.open()))
    rows[0]["latitude"], rows[0]["longitude"] = rows[0]["longitude"], rows[0]["latitude"]
    rows[1]["latitude"] = "nan"
    rows = [row for row in rows if "SeaLake_3" not in row["filepath"]]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    summary, store = converted("eurosat", archive, tmp_path, coordinates=table)
    assert summary.errors == {"bad_coordinates": 3, "duplicate": 1, "unreadable": 1, "wrong_size": 1}
    assert store.size == 31


def test_real_eurosat_in_its_zip(tmp_path):
    archive = real_data("eurosat/EuroSAT.zip")
    options = Options(workers=0, limit=40)
    convert_archive("eurosat", archive, tmp_path / "s", options, coordinates=archive.parent / "eurosat_latlon.csv")
    store = Store.open(tmp_path / "s")
    block = store.reader(store.bands).read(np.arange(40))["rgb"]
    with zipfile.ZipFile(archive) as file:
        for row, name in enumerate(store.column("patch_id")):
            with Image.open(file.open(f"2750/AnnualCrop/{name}.jpg")) as image:
                np.testing.assert_array_equal(block[row], np.asarray(image).transpose(2, 0, 1))
    assert np.isfinite(store.column("lat")).all()


def write_manifest(folder, rows, name="images.csv"):
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def pictures(folder, count=4, size=16):
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{number}.png")


def test_a_manifest_of_pictures(tmp_path):
    pictures(tmp_path)
    rows = [
        {
            "path": "0.png",
            "label": "park",
            "lat": "48.5",
            "lon": "9",
            "time": "2017-06-13T12:10:31+02:00",
            "split": "train",
        },
        {"path": "1.png", "label": "airport", "lat": "-33", "lon": "151", "time": "2018-01-02", "split": "val"},
        {"path": "2.png", "label": "park", "location_id": "x7", "split": "test"},
        {"path": "3.png", "label": "zoo", "location_id": "x7", "split": ""},
    ]
    rows[0]["time"] = "2017-06-13T12:10:31+02:00"
    summary, store = converted("manifest", write_manifest(tmp_path, rows), tmp_path)
    assert summary.errors == {}
    assert store.classes("label") == ("airport", "park", "zoo")
    assert store.column("label").tolist() == [1, 0, 1, 2]
    assert store.column("split_official").tolist() == [0, 1, 2, 255]
    assert store.column("location_id").tolist() == [-1, -1, 0, 0]
    assert store.column("time")[0] == _utc("2017-06-13T10:10:31")
    assert store.column("time")[2] == -(2**63)
    np.testing.assert_array_equal(store.column("lat"), [48.5, -33, np.nan, np.nan])
    for row, block in enumerate(store.reader(store.bands).read(np.arange(4))["rgb"]):
        np.testing.assert_array_equal(block, np.asarray(Image.open(tmp_path / f"{row}.png")).transpose(2, 0, 1))
    assert "4 patches" in describe_store(store)


def test_a_manifest_of_georeferenced_images_of_many_bands(tmp_path):
    for number in range(2):
        write_tiff(tmp_path / f"{number}.tif", np.full((5, 20, 20), number + 1, np.uint16))
    rows = [{"path": f"{number}.tif", "labels": labels} for number, labels in enumerate(("wood;water", "water"))]
    table = write_manifest(tmp_path, rows)
    _, store = converted("manifest", table, tmp_path, size=10, band_names="a,b,c,d,e")
    assert store.groups["image"].bands == ("a", "b", "c", "d", "e")
    assert store.column("labels").tolist() == [[1, 1], [1, 0]]
    assert np.isfinite(store.column("lat")).all()
    block = store.reader(["b", "e"]).read(np.array([1, 0]))["image"]
    assert block.shape == (2, 2, 10, 10)
    assert (block[0] == 2).all()
    assert (block[1] == 1).all()


def test_manifest_dirt(tmp_path):
    pictures(tmp_path, 10)
    Image.new("RGB", (15, 16)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG broken")
    rows = [{"path": f"{n}.png", "label": "a", "lat": "1", "lon": "2", "split": "train", "time": ""} for n in range(10)]
    rows[3]["path"] = "nowhere.png"
    rows[4]["path"] = "0.png"
    rows[5] |= {"lat": "120", "lon": "45"}
    rows[6]["label"] = ""
    rows[7]["split"] = "holdout"
    rows[8]["time"] = "yesterday"
    rows[9]["lat"] = "north"
    summary, store = converted("manifest", write_manifest(tmp_path, rows), tmp_path)
    names = {code: name for name, code in store.attrs["error_codes"].items()}
    assert [names[code] for code in store.column("error_code")] == [
        "ok",
        "wrong_size",
        "unreadable",
        "no_pixels",
        "duplicate",
        "bad_coordinates",
        "ok",
        "bad_split",
        "bad_time",
        "bad_coordinates",
    ]
    assert sum(summary.errors.values()) == 8
    assert store.column("split_official").tolist() == [0, 255, 255, 255, 255, 0, 0, 255, 0, 0]
    assert store.column("label").tolist()[5:] == [0, -1, 0, 0, 0]
    assert "label: 1 of 10 rows are unlabeled" in summary.notes
    assert "swapped?" in (tmp_path / "store.zarr.errors.csv").read_text()


@pytest.mark.parametrize(
    ("rows", "about", "error", "words"),
    [
        ([{"image_id": "7"}], {}, DataError, r"needs a column 'path'"),
        ([{"path": "nowhere.png"}], {}, DataError, r"none of the first 16 images can be read .nowhere.png is missing"),
        ([{"path": "0.png"}], {"band_names": "a,b"}, ConfigError, r"2 band names are given, and the images have 3"),
        ([{"path": "0.png"}], {"band_names": "a,b, a"}, ConfigError, r"have 3 bands: \('a', 'b', 'a'\)"),
        ([{"path": "gray.png"}], {"bands": "rgb"}, ConfigError, r"the images have 1"),
        ([{"path": "17.tif"}], {}, ConfigError, r"at most 16 bands, and the images have 17"),
        ([{"path": "0.png"}], {"bands": "nir"}, ConfigError, r"bands must be all or rgb"),
    ],
)
def test_a_manifest_that_cannot_be_used(rows, about, error, words, tmp_path):
    pictures(tmp_path, 1)
    Image.new("L", (16, 16), 3).save(tmp_path / "gray.png")
    write_tiff(tmp_path / "17.tif", np.ones((17, 16, 16), np.uint16))
    with pytest.raises(error, match=words):
        converted("manifest", write_manifest(tmp_path, rows), tmp_path, **about)


def test_a_manifest_in_parquet_with_values_of_other_kinds(tmp_path):
    pictures(tmp_path, 4)
    table = {
        "path": [f"{n}.png" for n in range(4)],
        "label": ["a;b", "a", "a", "c"],
        "time": [1_500_000_000, None, None, None],
        "lat": [[1.0], [2.0], None, None],
        "lon": [1.0, 2.0, None, None],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "table.parquet")
    summary, store = converted("manifest", tmp_path / "table.parquet", tmp_path, band_names="R, G,B")
    assert summary.errors == {"bad_coordinates": 2, "bad_time": 1}
    assert store.bands == ("R", "G", "B") and store.classes("label") == ("a", "a;b", "c")
    assert store.column("label").tolist() == [1, 0, 0, 2]
    numbers = {"path": table["path"][:2], "label": [float("nan"), 7.0]}
    pyarrow.parquet.write_table(pyarrow.table(numbers), tmp_path / "numbers.parquet")
    summary = convert_archive("manifest", tmp_path / "numbers.parquet", tmp_path / "n.zarr", HERE)
    assert summary.errors == {} and Store.open(tmp_path / "n.zarr").classes("label") == ("7",)


def test_an_image_of_more_bands_than_the_others_is_not_cut(tmp_path):
    for name, bands in (("a", 4), ("b", 5), ("c", 4)):
        write_tiff(tmp_path / f"{name}.tif", np.ones((bands, 16, 16), np.uint16))
    summary, store = converted("manifest", write_manifest(tmp_path, [{"path": f"{n}.tif"} for n in "abc"]), tmp_path)
    assert summary.errors == {"wrong_size": 1} and store.column("error_code").tolist() == [0, 3, 0]


def test_another_table_is_another_conversion(reben, tmp_path):
    """Else a corrected table would seem to be converted, and an interrupted conversion would mix both."""
    archive, table = tiny.write_eurosat(tmp_path, per_class=2)
    moved = tmp_path / "moved.csv"
    moved.write_text(table.read_text().replace("AnnualCrop,4", "AnnualCrop,5"))
    assert moved.read_text() != table.read_text()
    convert_archive("eurosat", archive, tmp_path / "e.zarr", HERE, coordinates=table)
    assert convert_archive("eurosat", archive, tmp_path / "e.zarr", HERE, coordinates=table).converted == 0
    with pytest.raises(DataError, match=r"from something else: another \(or a changed\) table or archive\. "):
        convert_archive("eurosat", archive, tmp_path / "e.zarr", HERE, coordinates=moved)
    convert_archive("bigearthnet-v2", reben, tmp_path / "r.zarr", HERE)
    assert convert_archive("bigearthnet-v2", reben, tmp_path / "r.zarr", HERE).converted == 0
    path = reben / "metadata.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | {"labels": ["Pastures"]} for row in rows]), path)
    with pytest.raises(DataError, match="table or archive"):
        convert_archive("bigearthnet-v2", reben, tmp_path / "r.zarr", HERE)


def test_tables_and_folders_that_say_nothing_of_the_archive_are_errors(reben, tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=2)
    strange, broken, strings = (tmp_path / name for name in ("strange.csv", "broken.csv", "strings.csv"))
    strange.write_text(table.read_text().replace("_", "-"))
    broken.write_text('filepath,latitude,longitude\n"' + 200_000 * "x")
    columns = "patch_id,labels,split,country,contains_seasonal_snow,contains_cloud_or_shadow"
    strings.write_text(f"{columns}\n{PRODUCT}_0_40,Pastures,train,Austria,False,False\n")
    for source, folder, about, words in (
        ("eurosat", archive, {"coordinates": strange}, "names none of the 20 images"),
        ("eurosat", archive, {"coordinates": broken}, "cannot read the table .*broken.csv: field larger"),
        ("bigearthnet-v2", reben, {"metadata": tmp_path / "no.parquet"}, "there is no metadata at .*no.parquet"),
        ("bigearthnet-v2", reben, {"metadata": strings}, "has no lists of labels"),
        ("bigearthnet-v2", reben, {"reference_maps": tmp_path / "2750"}, "2750 has no maps of the patches"),
        ("bigearthnet-v2", tmp_path / "v1", {"metadata": reben}, "are of BigEarthNet v1.0"),
        ("bigearthnet-v1", reben, {}, "are of BigEarthNet v2.0"),
        ("bigearthnet-v1", tmp_path / "v1", {"metadata": strange}, "tells the country of none"),
        ("bigearthnet-v1", tmp_path / "v1", {"metadata": archive}, "tells the country of none"),
    ):
        with pytest.raises(DataError, match=words):
            convert_archive(source, folder, tmp_path / "store.zarr", HERE, **about)
    convert_archive("eurosat", archive, tmp_path / "store.zarr", HERE, coordinates=table)


def test_a_damaged_member_of_a_zip_and_an_image_that_claims_a_giant(tmp_path):
    archive, _ = tiny.write_eurosat(tmp_path, per_class=1)
    giant = archive / "River" / "River_1.jpg"
    data = bytearray(giant.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"
    giant.write_bytes(data)
    packed = tmp_path / "EuroSAT.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(archive.rglob("*.jpg")):
            file.write(path, f"2750/{path.parent.name}/{path.name}")
    with zipfile.ZipFile(packed) as file:
        about = file.getinfo("2750/Forest/Forest_1.jpg")
    whole = bytearray(packed.read_bytes())
    start = about.header_offset + 30 + len(about.filename)
    whole[start : start + 40] = b"\xff" * 40
    packed.write_bytes(whole)
    summary, store = converted("eurosat", packed, tmp_path)
    bad = dict(zip(store.column("patch_id"), store.column("error_code"), strict=True))
    assert summary.errors == {"unreadable": 2} and {name for name, code in bad.items() if code} == {
        "Forest_1",
        "River_1",
    }
