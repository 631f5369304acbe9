"""What cannot be mapped is refused in one line that says what to do, and leaves no map behind."""

import shutil
import sys

import numpy as np
import pytest
from scenes import NATIVE, write_safe, write_tif

import stssl
from stssl.commands.cli import main
from stssl.mapping.prediction import MapOptions
from stssl.models.sealed import seal
from stssl.predictions.choice import predict_inputs
from stssl.students.description import KEY

NAMES = ("B04", "B03", "B02")
VALUES = np.random.default_rng(0).integers(1, 255, (3, 130, 140), np.uint8)


def command(monkeypatch, capsys, *words):
    """Run `stssl predict`, and return the exit code and the lines on stderr."""
    monkeypatch.setattr(sys, "argv", ["stssl", "predict", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err.strip().splitlines()


def vrt(path):
    source = write_tif(path.with_name("source.tif"), VALUES, NAMES)
    path.write_text(f'<VRTDataset rasterXSize="140"><SourceFilename>{source}</SourceFilename></VRTDataset>')
    return path


def cut(path):
    """Write a scene without compression, and cut its end off."""
    write_tif(path, VALUES, NAMES)
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def masked(path):
    return write_tif(path, VALUES * 0, NAMES, nodata=0)


CASES = {
    "no-crs": (lambda p: write_tif(p, VALUES, NAMES, crs=None), "no coordinate system .*gdal_edit"),
    "no-place": (lambda p: write_tif(p, VALUES, NAMES, transform=None), "no coordinate system or no place"),
    "all-nodata": (masked, "no measured pixel: all are nodata or masked"),
    "other-bands": (lambda p: write_tif(p, VALUES, ("B8", "B11", "B12")), "no band B04, B03, B02.*it has|--bands"),
    "no-names": (lambda p: write_tif(p, VALUES), r"no band B04, B03, B02, which .* number 1.*--bands"),
    "two-bands": (lambda p: write_tif(p, VALUES[:2], NAMES[:2]), "no band B02, which the student needs"),
    "twice": (lambda p: write_tif(p, VALUES, ("B04", "B04", "B02")), "band B04 twice"),
    "float": (lambda p: write_tif(p, VALUES.astype(np.float32), NAMES), "type float32, and .* uint8"),
    "uint16": (lambda p: write_tif(p, VALUES.astype(np.uint16), NAMES), "type uint16, and .* uint8"),
    "empty": (lambda p: p.write_bytes(b"") or p, "is empty \\(0 bytes\\)"),
    "text": (lambda p: p.write_text("hello") and p, "neither a GeoTIFF nor a JPEG 2000"),
    "vrt": (vrt, "is a VRT, which can make GDAL read any other file"),
    "cut": (cut, "cannot read .*truncated"),
    "missing": (lambda p: p, "there is no file or folder"),
    "turned": (
        lambda p: write_tif(p, VALUES, NAMES, transform=stssl_affine(10, 3, 5e5, 3, -10, 5.5e6)),
        "turned against its coordinate system",
    ),
}


def stssl_affine(*numbers):
    from affine import Affine

    return Affine(*numbers)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_bad_scene_is_refused_in_one_line(plain, tmp_path, monkeypatch, capsys, case):
    make, words = CASES[case]
    scene, out = make(tmp_path / "scene.tif"), tmp_path / "out" / "map.tif"
    code, lines = command(monkeypatch, capsys, plain.run.path, scene, "--out", out)
    errors = [line for line in lines if not line.startswith("predict:")]
    assert code == 2 and len(errors) == 1
    with pytest.raises(stssl.StsslError, match=words):
        stssl.predict(plain.run, scene, out, progress=False)
    assert not out.exists() and not list(out.parent.glob("*.png"))


def test_options_that_do_not_fit_are_refused(plain, twelve, tmp_path):
    scene, out = write_tif(tmp_path / "scene.tif", VALUES, NAMES), tmp_path / "map.tif"

    def refused(words, model=plain.run, given=scene, to=out, **options):
        with pytest.raises(stssl.StsslError, match=words):
            stssl.predict(model, given, to, progress=False, **options)
        assert not out.exists()

    refused("--stride 65: give 1 to 64", stride=65)
    refused("must end in .tif", to=tmp_path / "map.png")
    refused("is a file of the scene", to=scene)
    refused("lies inside the input", given=tmp_path)
    refused("is a folder", to=shutil.copytree(plain.run.path, tmp_path / "folder.tif"))
    refused("says its pixel size .* leave --pixel-size out", pixel_size=10)
    refused("--bands names 2 bands, and .* has 3", bands=["B04", "B03"])
    refused("model 2 has other classes", model=[plain.run, twelve.run])
    refused("there is no file or folder", model=tmp_path / "no-run")
    refused("--gpus: only Ray tasks", gpus=0.5)
    refused("--device cuda does not fit --gpus 0", device="cuda", workers=1)
    refused("are the same model: it would count twice", model=[plain.run, plain.run])
    refused(r"--bands names B02, B03, B04, and .* names its bands B04, B03, B02\. Leave", bands=["B02", "B03", "B04"])
    unnamed = write_tif(tmp_path / "unnamed.tif", VALUES)
    named = stssl.predict(plain.run, unnamed, tmp_path / "a.tif", bands=NAMES, progress=False).read_bytes()
    told = stssl.predict(plain.run, scene, tmp_path / "b.tif", bands=NAMES, progress=False).read_bytes()
    refused("--bands names B04, B03, B99", given=unnamed, bands=["B04", "B03", "B99"])
    assert named.replace(b"unnamed.tif", b"scene.tif")[-2000:] == told[-2000:]


def test_a_student_that_needs_metadata_and_one_without_ground_size_say_so(plain, tmp_path, monkeypatch):
    from stssl.mapping.needs import common_needs

    told = stssl.load_student(plain.run).description
    direct = told.model_copy(update={"network": told.network.model_copy(update={"role": "direct"})})
    with pytest.raises(stssl.ConfigError, match=r"sees place and date .*Give a student that sees only images"):
        common_needs([direct], None)
    image = told.image.model_copy(update={"meters": None})
    bands = tuple(band.model_copy(update={"meters": None}) for band in told.bands)
    sizeless = told.model_copy(update={"image": image, "bands": bands})
    with pytest.raises(stssl.ConfigError, match="Give --pixel-size METERS"):
        common_needs([sizeless], None)
    assert (common_needs([sizeless], 2.5).pixel, common_needs([sizeless], 2.5).window) == (2.5, 64)


def test_a_student_with_numbers_that_are_not_finite_makes_no_map(plain, tmp_path):
    weights = dict(stssl.load_student(plain.run).network.state_dict())
    name = next(name for name in weights if name.endswith("fc.weight") or weights[name].ndim == 2)
    weights[name] = weights[name] * np.nan
    text = stssl.load_student(plain.run).description.text()
    (tmp_path / "student.safetensors").write_bytes(seal(weights, {KEY: text}))
    scene, out = write_tif(tmp_path / "scene.tif", VALUES, NAMES), tmp_path / "map.tif"
    for models in ([tmp_path], [plain.run, tmp_path]):
        with pytest.raises(
            stssl.DataError, match=rf"{tmp_path} gives .* not finite, for the window at row -\d+, column -\d"
        ):
            stssl.predict(models, scene, out, preview=True, progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif", "student.safetensors"]


def test_a_scene_smaller_than_a_window_is_said(plain, tmp_path):
    small = write_tif(tmp_path / "small.tif", VALUES[:, :40, :50], NAMES)
    found = predict_inputs([plain.run.path], [small], tmp_path / "small_map.tif", MapOptions())
    assert "small.tif has 40 x 50 pixels, fewer than a window of the student (64 x 64)" in found.lines[0]
    whole = write_tif(tmp_path / "whole.tif", VALUES, NAMES)
    assert not predict_inputs([plain.run.path], [whole], tmp_path / "m.tif", MapOptions()).lines  # the control


def test_damaged_products_are_refused(twelve, tmp_path):
    bands = {band: np.full((1200 // pixel, 1200 // pixel), 500, np.uint16) for band, pixel in NATIVE.items()}
    good, out = write_safe(tmp_path / "good.SAFE", bands, -1000), tmp_path / "map.tif"

    def refused(words, spoil):
        folder = tmp_path / "bad.SAFE"
        shutil.rmtree(folder, ignore_errors=True)
        spoil(shutil.copytree(good, folder))
        with pytest.raises(stssl.StsslError, match=words):
            stssl.predict(twelve.run, folder, out, progress=False)
        assert not out.exists()

    def image(folder, band):
        return next(folder.rglob(f"*_{band}_*.jp2"))

    def truncate(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def edit(folder, old, new):
        path = folder / "MTD_MSIL2A.xml"
        path.write_text(path.read_text().replace(old, new))

    refused("cannot read .*B05", lambda folder: truncate(image(folder, "B05")))
    refused("cannot read .*B05.*No such file", lambda folder: image(folder, "B05").unlink())
    refused("empty", lambda folder: image(folder, "B02").write_bytes(b""))
    refused("is damaged", lambda folder: truncate(folder / "MTD_MSIL2A.xml"))
    refused("has no MTD_MSIL2A.xml", lambda folder: (folder / "MTD_MSIL2A.xml").unlink())
    refused("declares entities", lambda folder: edit(folder, "<n1:Level", "<!DOCTYPE a><n1:Level"))
    refused("no BOA_QUANTIFICATION_VALUE", lambda folder: edit(folder, ">10000<", ">x<"))
    refused("BOA_ADD_OFFSET 77", lambda folder: edit(folder, 'band_id="7"', 'band_id="77"'))
    refused("no band B09", lambda folder: edit(folder, "_B09_60m<", "_XXX_60m<"))
    with pytest.raises(stssl.ConfigError, match="lies inside the input"):
        stssl.predict(twelve.run, good, good / "map.tif", progress=False)
    with pytest.raises(stssl.ConfigError, match=r"one \.SAFE folder alone"):
        stssl.predict(twelve.run, [good, good], out, progress=False)
    assert stssl.predict(twelve.run, good, out, progress=False).exists()  # the control
