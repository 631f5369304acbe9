"""A Sentinel-2 product is cut into patches: its offset is applied as in a map, and its date comes from its metadata."""

import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from exported import write_run
from scenes import NATIVE, write_safe, write_tif

import stssl
from stssl.archives.conversion import Options, convert_archive
from stssl.archives.scenes import Scenes
from stssl.base.errors import ConfigError, DataError
from stssl.store.store import Store
from stssl.students.features import read_features
from stssl.students.loading import read_student

HERE = Options(workers=0, shard=64)


@pytest.fixture(scope="module")
def bands():
    """Random reflectance of all bands, 240 x 260 pixels of 10 m. The last ten columns are not measured."""
    rng, found = np.random.default_rng(0), {}
    for band, pixel in NATIVE.items():
        found[band] = rng.integers(1, 4000, (2400 // pixel, 2640 // pixel)).astype(np.uint16)
        found[band][:, 2400 // pixel :] = 0
    return found


def converted(target, product, **options):
    return Store.open(convert_archive("scenes", product, target, HERE, size=120, **options).store)


def test_patches_of_products_with_and_without_offset_are_equal(bands, tmp_path):
    old, new = (write_safe(tmp_path / f"{n}.SAFE", bands, n) for n in (None, -1000))
    coarse = write_safe(tmp_path / "coarse.SAFE", {k: v * 2 for k, v in bands.items()}, None, 20_000)
    wrong = write_safe(tmp_path / "wrong.SAFE", bands, -1000)
    text = (wrong / "MTD_MSIL2A.xml").read_text()
    (wrong / "MTD_MSIL2A.xml").write_text(text.replace(">-1000<", ">0<"))
    stores = [converted(tmp_path / f"{p.stem}.zarr", p) for p in (old, new, coarse, wrong)]
    first = stores[0]
    assert {name: group.bands for name, group in first.groups.items()} == {
        "b10": ("B02", "B03", "B04", "B08"),
        "b20": ("B05", "B06", "B07", "B8A", "B11", "B12"),
        "b60": ("B01", "B09"),
    }
    assert list(first.column("patch_id")) == [f"None_r{r}_c{c}" for r in (0, 120) for c in (0, 120)]
    for band, values in bands.items():
        side = 1200 // NATIVE[band]
        expected = [values[r : r + side, c : c + side] for r in (0, side) for c in (0, side)]
        for store in stores[:3]:
            np.testing.assert_array_equal(store.read(range(4), [band])[:, 0], expected)
        assert (stores[3].read(range(4), [band])[:, 0] != expected).mean() > 0.9  # the control
    assert np.datetime64(int(first.column("time")[0]), "s") == np.datetime64("2022-06-14T10:16:09")
    assert list(first.column("crs")) == ["EPSG:32632"] * 4


def test_bands_are_kept_products_of_a_folder_found_and_a_broken_one_is_told(bands, tmp_path):
    folder = tmp_path / "downloads"
    write_safe(folder / "a.SAFE", bands, -1000)
    shutil.copytree(folder / "a.SAFE", folder / "b.SAFE")
    next((folder / "b.SAFE").rglob("*_B03_*.jp2")).write_bytes(b"")
    store = converted(tmp_path / "s.zarr", folder, keep_bands="B03,B2")
    assert store.bands == ("B03", "B02") and store.size == 5 and sum(store.column("error_code") != 0) == 1
    with pytest.raises(DataError, match=r"has no band B10 \(it has: B02"):
        Scenes(folder / "a.SAFE", keep_bands="B10")
    with pytest.raises(ConfigError, match="names its bands itself"):
        Scenes(folder / "a.SAFE", band_names="B10")
    with pytest.raises(DataError, match=r"has no MTD_MSIL2A\.xml"):
        Scenes((tmp_path / "empty.SAFE", (tmp_path / "empty.SAFE").mkdir())[0])


def test_tables_and_features_of_a_product_equal_those_of_its_pixels(bands, tmp_path):
    colors = np.stack([bands[name][:192, :256] for name in ("B04", "B03", "B02")])
    images = np.stack([colors[:, r : r + 64, c : c + 64] for r in (0, 64, 128) for c in (0, 64, 128, 192)])
    run, product = write_run(tmp_path / "run", images), write_safe(tmp_path / "a.SAFE", bands, -1000)
    table = pyarrow.parquet.read_table(stssl.predict(run, product, tmp_path / "p.parquet", progress=False))
    features = pyarrow.parquet.read_table(stssl.embed(run, product, tmp_path / "f.parquet", progress=False))
    assert table.num_rows == 12 and table["time"][0].as_py().isoformat().startswith("2022-06-14T10:16:09")
    images[3::4, :, :, 48:] = images[3::4, :, :, :48].mean((2, 3), keepdims=True).round()  # not measured
    found = np.stack([table[f"probability_class {n}"].to_numpy() for n in range(5)], 1)
    np.testing.assert_allclose(found, read_student(run).predict(images), atol=1e-5)
    expected = read_features(run)(torch.from_numpy(images), None).detach()
    np.testing.assert_allclose(features["features"].to_pylist(), expected, atol=1e-5)


def test_an_offset_that_a_geotiff_states_is_applied(tmp_path):
    import rasterio

    values = np.random.default_rng(0).integers(1100, 4000, (1, 32, 32)).astype(np.uint16)
    path = write_tif(tmp_path / "20220614.tif", values, ("B04",))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.0001,), (-0.1,)
    summary = convert_archive("scenes", path, tmp_path / "s.zarr", HERE, size=32)
    np.testing.assert_array_equal(Store.open(summary.store).read([0])[0], values - 1000)
    assert any("state an offset (-1000), which is applied" in note for note in summary.notes)
