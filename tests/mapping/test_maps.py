"""The map of a scene made of stored patches repeats the evaluation, and is a file that GIS programs read."""

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp
from rio_cogeo import cog_validate
from scenes import CORNER, NATIVE, mosaic, write_safe, write_tif

import stssl
from stssl.mapping import blocks
from stssl.mapping.prediction import MapOptions
from stssl.predictions.choice import predict_inputs

COLUMNS = 6


def cells(values, side, count):
    """Return the pixels [count, bands, side, side] of the first cells of a mosaic."""
    places = [divmod(number, COLUMNS) for number in range(count)]
    return np.stack([values[:, r * side : (r + 1) * side, c * side : (c + 1) * side] for r, c in places])


def predict(model, scene, out, **options):
    path = stssl.predict(model, scene, out, progress=False, **options)
    with rasterio.open(path) as file:
        return file.read()


def test_a_mosaic_of_patches_has_the_logits_of_the_evaluation_also_with_an_ensemble(
    plain, other, tmp_path, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 130)
    scene = write_tif(tmp_path / "scene.tif", mosaic(plain.patches, COLUMNS), ("B04", "B03", "B02"))
    log = [torch.from_numpy(one.logits).log_softmax(1).numpy() for one in (plain, other)]
    one = predict(plain.run, scene, tmp_path / "one.tif", stride=64, probabilities="float32")
    found = np.log(cells(one[:10], 64, len(plain.patches)))
    assert np.abs(found - log[0][..., None, None]).max() < 1e-5
    assert np.abs(found - log[1][..., None, None]).max() > 1e-2  # the control: another student
    both = predict([plain.run, other.run], scene, tmp_path / "both.tif", stride=64, probabilities="float32")
    mean = (np.exp(log[0]) + np.exp(log[1])) / 2
    assert np.abs(cells(both[:10], 64, len(mean)) - mean[..., None, None]).max() < 1e-6
    assert np.allclose(both[10], both[:10].max(0))


def test_bands_of_three_pixel_sizes_in_files_of_their_own_give_the_evaluation_too(twelve, big_store, tmp_path):
    store, files = stssl.open_store(big_store), []
    for band, pixel in NATIVE.items():
        patches = store.read(twelve.rows, [band])
        name = f"T32UMC_{band.replace('B0', 'B')}_{pixel}m.tif"
        files.append(write_tif(tmp_path / name, mosaic(patches, COLUMNS), pixel=pixel))
    found = predict(twelve.run, files, tmp_path / "map.tif", stride=120, probabilities="float32")
    wanted = 1 / (1 + np.exp(-twelve.logits.astype(np.float64)))
    count = len(wanted)
    assert np.abs(cells(found[:19], 120, count) - wanted[..., None, None]).max() < 1e-6
    chosen = predict(twelve.run, files, tmp_path / "chosen.tif", stride=120)
    assert chosen.shape[0] == 20 and np.array_equal(cells(chosen[:19], 120, count)[:, :, 0, 0], wanted >= 0.5)
    certain = np.maximum(wanted, 1 - wanted).mean(1)
    assert np.abs(cells(chosen[19:], 120, count)[:, 0, 0, 0] / 254 - certain).max() < 0.003


def test_a_map_is_a_cog_with_a_color_table_overviews_nodata_and_metadata(plain, tmp_path):
    values = np.maximum(np.tile(mosaic(plain.patches[:36], COLUMNS), (1, 2, 2)), 1)
    values[:, :100, :70] = 0
    scene = write_tif(tmp_path / "scene.tif", values, ("B04", "B03", "B02"), nodata=0)
    out = stssl.predict(plain.run, scene, tmp_path / "map.tif", preview=True, progress=False)
    valid, errors, warnings = cog_validate(out, strict=True)
    assert valid and not errors and not warnings
    student = stssl.load_student(plain.run)
    with rasterio.open(out) as file, rasterio.open(scene) as given:
        assert (file.crs, file.transform, file.shape) == (given.crs, given.transform, given.shape)
        assert file.descriptions == ("class", "confidence") and file.overviews(1)
        assert file.colorinterp[0] == ColorInterp.palette and file.colorinterp[1] != ColorInterp.alpha
        colors = ["#" + bytes(file.colormap(1)[number][:3]).hex() for number in range(10)]
        assert colors == [one.color for one in student.description.classes]
        found, mask = file.read(), file.dataset_mask()
        assert (mask[:100, :70] == 0).all() and (mask > 0).sum() == mask.size - 7000
        assert (found[0][mask > 0] < 10).all() and (found[:, mask == 0] == 255).all()
        tags = file.tags()
    assert "Forest" in tags["STSSL_CLASSES"] and "student.safetensors" in tags["STSSL_MODELS"]
    assert tags["STSSL_DATE"].startswith("20") and str(tmp_path) not in str(tags)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"scene.tif", "map.tif", "map.png"}


def test_probabilities_as_bytes_name_their_classes_and_their_scale(plain, tmp_path):
    scene = write_tif(tmp_path / "scene.tif", mosaic(plain.patches, COLUMNS), ("B4", "B3", "B2"))
    exact = predict(plain.run, scene, tmp_path / "exact.tif", probabilities="float32")
    predict(plain.run, scene, tmp_path / "bytes.tif", probabilities="uint8")
    with rasterio.open(tmp_path / "bytes.tif") as file:
        assert file.descriptions[:2] == ("AnnualCrop", "Forest") and file.descriptions[-1] == "confidence"
        assert file.nodata == 255 and file.dtypes[0] == "uint8"
        assert np.abs(file.read() * np.array(file.scales)[:, None, None] - exact).max() < 0.5 / 254 + 1e-6
    assert cog_validate(tmp_path / "bytes.tif", strict=True)[0] and cog_validate(tmp_path / "exact.tif", strict=True)[0]


def test_a_known_field_lies_within_half_a_pixel_of_its_place_in_any_projection(plain, tmp_path):
    """A field of the most confident patch, in a scene of another one; its edges are where the two blend equally."""
    for crs, pixel, corner in (("EPSG:32632", 10.0, CORNER), ("EPSG:3035", 10.0, (4_300_000.0, 3_000_000.0))):
        order = np.argsort(plain.logits.argmax(1))
        inside, outside = plain.patches[order[0]], plain.patches[order[-1]]
        values = np.tile(outside, (1, 5, 5))
        values[:, 128:192, 64:128] = inside
        transform = rasterio.transform.from_origin(*corner, pixel, pixel)
        scene = write_tif(tmp_path / "s.tif", values, ("B04", "B03", "B02"), crs=crs, transform=transform)
        found = predict(plain.run, scene, tmp_path / f"{crs[5:]}.tif", stride=64)
        with rasterio.open(tmp_path / f"{crs[5:]}.tif") as file:
            rows, columns = np.nonzero(found[0] == found[0][150, 100])
            left, top = file.transform @ (columns.min(), rows.min())
            right, bottom = file.transform @ (columns.max() + 1, rows.max() + 1)
        wanted = (corner[0] + 640, corner[1] - 1280, corner[0] + 1280, corner[1] - 1920)
        assert found[0][150, 100] != found[0][10, 10]
        assert np.abs(np.subtract((left, top, right, bottom), wanted)).max() <= pixel / 2


def test_a_sentinel2_product_gives_equal_maps_with_and_without_offset(twelve, tmp_path):
    rng = np.random.default_rng(0)
    bands = {}
    for band, pixel in NATIVE.items():
        size = 2400 // pixel
        bands[band] = rng.integers(1, 4000, (size, size)).astype(np.uint16)
        bands[band][: 300 // pixel] = 0
    maps = []
    for name, offset, quantification in (("old", None, 10_000), ("new", -1000, 10_000), ("wrong", -1000, 10_000)):
        folder = write_safe(tmp_path / f"{name}.SAFE", bands, offset, quantification)
        if name == "wrong":  # the control: the offset is in the numbers, but not in the metadata
            text = (folder / "MTD_MSIL2A.xml").read_text()
            (folder / "MTD_MSIL2A.xml").write_text(text.replace(">-1000<", ">0<"))
        maps.append(predict(twelve.run, folder, tmp_path / f"{name}.tif", probabilities="float32"))
        found = predict_inputs([twelve.run.path], [folder], tmp_path / f"{name}-said.tif", MapOptions())
        said = [line for line in found.lines if "state an offset (-1000), which is applied" in line]
        assert len(said) == (name == "new")
    assert np.array_equal(maps[0], maps[1], equal_nan=True) and not np.array_equal(maps[0], maps[2], equal_nan=True)
    with rasterio.open(tmp_path / "new.tif") as file:
        assert file.tags()["STSSL_SCENE_DATE"].startswith("2022-06-14T10:16:09") and file.shape == (240, 240)
        assert np.array_equal(file.dataset_mask() == 0, np.arange(240)[:, None].repeat(240, 1) < 30)


def test_a_mosaic_of_files_equals_the_same_pixels_in_one_file(plain, tmp_path):
    values = mosaic(plain.patches, COLUMNS)
    names, height = ("B04", "B03", "B02"), values.shape[1] // 2
    whole = predict(plain.run, write_tif(tmp_path / "whole.tif", values, names), tmp_path / "a.tif")
    (tmp_path / "parts").mkdir()
    for number, (rows, columns) in enumerate(((0, 0), (0, 200), (height, 0), (height, 200))):
        part = values[:, rows : rows + height, columns : columns + 200]
        corner = rasterio.transform.from_origin(CORNER[0] + 10 * columns, CORNER[1] - 10 * rows, 10, 10)
        write_tif(tmp_path / f"parts/{number}.tif", part, names, transform=corner)
    assert np.array_equal(predict(plain.run, tmp_path / "parts", tmp_path / "b.tif"), whole)
    assert np.array_equal(predict(plain.run, str(tmp_path / "parts/*.tif"), tmp_path / "c.tif"), whole)
    (tmp_path / "parts/3.tif").unlink()
    gap = predict(plain.run, tmp_path / "parts", tmp_path / "d.tif")
    assert (gap[:, height:, 200:] == 255).all() and np.array_equal(gap[:, :100, :100], whole[:, :100, :100])


@pytest.mark.parametrize("pixel", [(10.0, 10.0, "EPSG:32632"), (20.0, 20.0, "EPSG:32632"), (1.4e-4, 9e-5, "EPSG:4326")])
def test_a_scene_of_another_pixel_size_needs_resample(plain, tmp_path, pixel):
    across, down, crs = pixel
    corner = CORNER if crs != "EPSG:4326" else (9.0, 50.0)
    values = np.tile(plain.patches[0], (1, 2, 2))[:, :: int(max(1, down // 10)), :: int(max(1, across // 10))]
    where = rasterio.transform.from_origin(*corner, across, down)
    scene = write_tif(tmp_path / "s.tif", values, ("B04", "B03", "B02"), crs=crs, transform=where)
    if across == 10:
        predict(plain.run, scene, tmp_path / "map.tif")  # the control
        return
    if across == 20:
        with pytest.raises(stssl.ConfigError, match=r"pixels of 20 x 20 m .* on 10 m\. Give --resample .*gdalwarp"):
            predict(plain.run, scene, tmp_path / "map.tif")
    found = predict(plain.run, scene, tmp_path / "map.tif", resample=True)
    assert found.shape[1:] == values.shape[1:] and (found[0] < 10).all()
