"""Scenes become patches with places, grids, dates and labels. What does not fit is said in one line."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.archives.manifest import Manifest
from stssl.archives.places import to_degrees
from stssl.archives.scenes import Scenes
from stssl.base.errors import ConfigError, DataError
from stssl.store.store import Store

HERE = Options(workers=0, shard=64)
LEFT, TOP = 500_000.0, 5_300_000.0


def write_scene(path, shape=(40, 50), *, bands=("B2", "B03"), size=10.0, crs="EPSG:32633", hole=None, dtype="uint16"):
    """A scene whose values count its pixels; `hole` is not measured."""
    height, width = shape
    values = np.arange(1, 1 + height * width).reshape(shape)
    planes = np.stack([values % 251 + number for number in range(1, len(bands) + 1)]).astype(dtype)
    if hole:
        planes[:, *hole] = 0
    about = {"driver": "GTiff", "height": height, "width": width, "count": len(bands), "dtype": dtype, "crs": crs}
    with rasterio.open(path, "w", transform=from_origin(LEFT, TOP, size, size), nodata=0, **about) as file:
        file.write(planes)
        file.descriptions = bands
    return planes


def polygons(path, shapes, crs="EPSG:32633", name="kind", driver="GeoJSON"):
    """Write polygons with an attribute."""
    geometry = shapely.to_wkb(np.array([shape for shape, _ in shapes], object))
    values = np.array([value for _, value in shapes], object)
    pyogrio.raw.write(path, geometry, [values], [name], crs=crs, geometry_type="Polygon", driver=driver)
    return path


def cell(row, column, height=16, width=16):
    """The outline of pixels of a scene."""
    return shapely.box(LEFT + 10 * column, TOP - 10 * (row + height), LEFT + 10 * (column + width), TOP - 10 * row)


def converted(folder, *scenes, **options):
    summary = convert_archive("scenes", scenes, folder / "s.zarr", HERE, size=16, **options)
    return summary, Store.open(summary.store)


def test_patches_keep_pixels_places_grids_and_dates(tmp_path):
    planes = write_scene(tmp_path / "S2_20230614T101031.tif")
    summary, store = converted(tmp_path, tmp_path / "S2_20230614T101031.tif", stride=8)
    names = list(store.column("patch_id"))
    assert store.size == 4 * 5 == len(set(names)) and store.bands == ("B02", "B03")
    row = names.index("S2_20230614T101031_r8_c24")
    np.testing.assert_array_equal(store.read([row])[0], planes[:, 8:24, 24:40])
    grid = [store.column(name)[row] for name in ("crs", "corner_x", "corner_y", "pixel_width", "pixel_height")]
    assert grid == ["EPSG:32633", LEFT + 240, TOP - 80, 10, 10]
    lat, lon = to_degrees(32633, LEFT + 320, TOP - 160)
    np.testing.assert_allclose([store.column("lat")[row], store.column("lon")[row]], [lat[0], lon[0]], atol=1e-7)
    assert np.datetime64(int(store.column("time")[row]), "s") == np.datetime64("2023-06-14T10:10:31")
    assert store.description.about("image")["gsd_m"] == 10
    assert any("the last 0 rows and 2 columns are in no patch" in note for note in summary.notes)
    assert verify_store(store.path, [tmp_path / "S2_20230614T101031.tif"]).problems == ()


def test_windows_without_measured_pixels_are_left_out(tmp_path):
    write_scene(tmp_path / "a.tif", (32, 32), hole=(slice(0, 16), slice(0, 20)))
    summary, store = converted(tmp_path, tmp_path / "a.tif", date="2023-06-14")
    assert list(store.column("patch_id")) == ["a_r0_c16", "a_r16_c0", "a_r16_c16"]
    assert "a: 1 windows without a measured pixel are left out" in summary.notes
    pixels = store.read([0])[0]
    assert (pixels[:, :, :4] == np.rint(pixels[:, :, 4:].mean((1, 2)))[:, None, None]).all()
    assert store.groups["image"].statistics["count"] == [16 * 12 + 2 * 256] * 2


@pytest.mark.parametrize("driver", ["GeoJSON", "GPKG"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_the_class_that_covers_most_is_the_label(tmp_path, driver, crs):
    write_scene(tmp_path / "a.tif", (32, 32))
    shapes = [(cell(0, 0, 16, 12), "forest"), (cell(0, 12, 16, 4), "lake"), (cell(0, 16, 16, 7), "lake")]
    shapes += [(cell(16, 0, 10, 16), "forest"), (cell(20, 0, 5, 16), "forest"), (cell(16, 16), None)]
    if crs == "EPSG:4326":
        moved = [
            shapely.transform(shape, lambda xy: np.stack(to_degrees(32633, xy[:, 0], xy[:, 1])[::-1], 1))
            for shape, _ in shapes
        ]
        shapes = [(shape, value) for shape, (_, value) in zip(moved, shapes, strict=True)]
    path = polygons(tmp_path / f"p.{'gpkg' if driver == 'GPKG' else 'geojson'}", shapes, crs, driver=driver)
    summary, store = converted(tmp_path, tmp_path / "a.tif", labels=path)
    assert store.classes("label") == ("forest", "lake")
    # The second patch is covered by 7 of 16 columns; the fourth has no class.
    assert list(store.column("label")) == [0, -1, 0, -1]
    assert any("1 shapes are no polygons or have no value of 'kind'" in note for note in summary.notes)


def test_overlaps_of_one_class_count_once_and_shares_choose(tmp_path):
    write_scene(tmp_path / "a.tif", (16, 16))
    path = polygons(
        tmp_path / "p.geojson", [(cell(0, 0, 16, 7), "a"), (cell(0, 2, 16, 5), "a"), (cell(0, 7, 16, 9), "b")]
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "several").mkdir()
    _, store = converted(tmp_path / "one", tmp_path / "a.tif", labels=path)
    assert list(store.column("label")) == [1]
    _, store = converted(tmp_path / "several", tmp_path / "a.tif", labels=path, multi_label=True, share=0.44)
    assert store.multilabel("labels") and store.column("labels").tolist() == [[0, 1]]  # 0.4375 and 0.5625


def test_a_raster_of_class_indexes_gives_labels(tmp_path):
    write_scene(tmp_path / "a.tif", (32, 32))
    map_of_classes = np.full((1, 64, 64), 255, np.uint8)  # pixels of 5 m
    map_of_classes[0, :32, :32], map_of_classes[0, 32:, 32:], map_of_classes[0, 32:, :10] = 3, 7, 9
    about = {"driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "m.tif", "w", transform=from_origin(LEFT, TOP, 5, 5), nodata=255, **about) as file:
        file.write(map_of_classes)
    _, store = converted(tmp_path, tmp_path / "a.tif", labels=tmp_path / "m.tif", classes="3=forest,7=lake")
    assert store.classes("label") == ("forest", "lake") and list(store.column("label")) == [0, -1, -1, 1]


def test_names_that_equal_those_of_the_file_are_taken_and_others_are_not(tmp_path):
    write_scene(tmp_path / "a.tif", (16, 16))
    assert converted(tmp_path, tmp_path / "a.tif", band_names="B2,b03")[1].bands == ("B2", "b03")
    assert Manifest.listed([tmp_path / "a.tif"], "B02,B3").arrays[0].bands == ("B02", "B3")
    with pytest.raises(ConfigError, match=r"B03, B02 are given, and a\.tif names its bands B02, B03"):
        Manifest.listed([tmp_path / "a.tif"], "B03,B02")
    write_scene(tmp_path / "plain.tif", (16, 16), bands=("", ""))
    assert Manifest.listed([tmp_path / "plain.tif"], "B03,B02").arrays[0].bands == ("B03", "B02")  # the control


def test_files_of_one_band_are_one_scene_with_several_pixel_sizes(tmp_path):
    folder = tmp_path / "T33_20230614"
    folder.mkdir()
    fine = write_scene(folder / "T33_B04_10m.tif", (32, 32), bands=("",))
    coarse = write_scene(folder / "T33_B11_20m.tif", (16, 16), bands=("",), size=20.0)
    _, store = converted(tmp_path, folder)
    assert {name: group.bands for name, group in store.groups.items()} == {"b10": ("B04",), "b20": ("B11",)}
    np.testing.assert_array_equal(store.read([3], ["B04"])[0], fine[:, 16:, 16:])
    np.testing.assert_array_equal(store.read([3], ["B11"])[0], coarse[:, 8:, 8:])
    with pytest.raises(ConfigError, match="must be multiples of 2"):
        Scenes(folder, size=15)


def test_a_damaged_scene_costs_its_row_alone(tmp_path):
    write_scene(tmp_path / "a.tif", (16, 16))
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:600])
    summary, store = converted(tmp_path, tmp_path / "a.tif", tmp_path / "b.tif")
    assert store.size == 2 and summary.errors == {"unreadable": 1}


def test_scenes_without_one_readable_patch_leave_no_store(tmp_path):
    values = np.arange(1, 1 + 64 * 64, dtype=np.uint16).reshape(1, 64, 64)
    about = {"driver": "JP2OpenJPEG", "height": 64, "width": 64, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
    with rasterio.open(tmp_path / "a.jp2", "w", transform=from_origin(LEFT, TOP, 10, 10), **about, **lossless) as file:
        file.write(values)
    whole = (tmp_path / "a.jp2").read_bytes()
    (tmp_path / "a.jp2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"no patch can be used \(0 of \d+\), so no store .*unreadable"):
        converted(tmp_path, tmp_path / "a.jp2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jp2"]
    (tmp_path / "a.jp2").write_bytes(whole)
    assert converted(tmp_path, tmp_path / "a.jp2")[0].patches == 16  # the control


BAD = {
    "no CRS": (lambda path: write_scene(path, crs=None), {}, "no coordinate system"),
    "float": (lambda path: write_scene(path, dtype="float32"), {}, "has values of type float32"),
    "empty file": (lambda path: path.write_bytes(b""), {}, "is empty"),
    "VRT": (lambda path: path.write_text("<VRTDataset/>"), {}, "is a VRT, which"),
    "small": (lambda path: write_scene(path, (8, 8)), {}, "no window of 16 x 16"),
    "all nodata": (lambda path: write_scene(path, hole=(slice(None), slice(None))), {}, "has a measured pixel"),
    "stride": (write_scene, {"stride": 0}, "--stride 1 or more"),
    "names": (write_scene, {"band_names": "a"}, "--band-names has 1 names"),
    "mixed names": (write_scene, {"band_names": "B03,B02"}, "B03, B02 are given, and a names its bands B02, B03"),
    "date": (write_scene, {"date": "13/06/17"}, "--date"),
    "share alone": (write_scene, {"share": 0.2}, "give it too"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_scenes_and_options_are_refused_in_one_line(fault, tmp_path):
    write, options, words = BAD[fault]
    write(tmp_path / "a.tif")
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        converted(tmp_path, tmp_path / "a.tif", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ('{"type": "Nothing"}', {}, "cannot read"),
        ("<OGRVRTDataSource/>", {}, "neither a GeoTIFF nor"),
        (None, {"attribute": "color"}, "has no such attribute. It has: kind"),
        (None, {"classes": "1=a"}, "names the indexes of a raster"),
    ],
)
def test_bad_labels_are_refused_in_one_line(content, options, words, tmp_path):
    write_scene(tmp_path / "a.tif")
    path = tmp_path / "p.geojson"
    if content is None:
        polygons(path, [(cell(0, 0), "a")])
    else:
        path.write_text(content)
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        converted(tmp_path, tmp_path / "a.tif", labels=path, **options)
    assert "\n" not in str(caught.value)


def test_polygons_far_from_all_scenes_are_refused(tmp_path):
    write_scene(tmp_path / "a.tif")
    far = shapely.box(10, 10, 11, 11)
    path = polygons(tmp_path / "p.geojson", [(far, "a")], "EPSG:4326")
    with pytest.raises(DataError, match="touches no scene"):
        converted(tmp_path, tmp_path / "a.tif", labels=path)


def test_a_store_inside_the_folder_of_scenes_is_refused(tmp_path):
    write_scene(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match="lies inside the archive"):
        convert_archive("scenes", tmp_path, tmp_path / "s.zarr", HERE, size=16)


def test_other_formats_take_one_archive(tmp_path):
    for name in ("a.csv", "b.csv"):
        Path(tmp_path / name).write_text("path\n")
    with pytest.raises(ConfigError, match="manifest takes one archive, and 2 paths"):
        convert_archive("manifest", [tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "s.zarr", HERE)


def test_manifests_keep_the_grid_of_their_images(tmp_path):
    write_scene(tmp_path / "a.tif", (16, 16))
    write_scene(tmp_path / "b.tif", (16, 16))
    (tmp_path / "t.json").write_text(json.dumps({}))
    (tmp_path / "t.csv").write_text("path\na.tif\nb.tif\n")
    for size, pixel in ((None, 10), (8, 20)):
        store = Store.open(
            convert_archive("manifest", tmp_path / "t.csv", tmp_path / f"{size}.zarr", HERE, size=size).store
        )
        assert list(store.column("crs")) == ["EPSG:32633"] * 2 and list(store.column("corner_x")) == [LEFT] * 2
        assert list(store.column("pixel_width")) == [pixel] * 2
        assert store.description.about("image")["gsd_m"] == pixel


def test_control_images_of_two_pixel_sizes_have_no_common_one(tmp_path):
    write_scene(tmp_path / "a.tif", (16, 16))
    write_scene(tmp_path / "b.tif", (16, 16), size=20.0)
    (tmp_path / "t.csv").write_text("path\na.tif\nb.tif\n")
    store = Store.open(convert_archive("manifest", tmp_path / "t.csv", tmp_path / "s.zarr", HERE).store)
    assert store.description.about("image")["gsd_m"] == 0 and list(store.column("pixel_width")) == [10, 20]
