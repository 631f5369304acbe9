"""Tables of predictions and features: every patch has its row, wherever patches come from."""

import json
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import torch
import zarr
from exported import write_run
from PIL import Image
from rasterio.transform import from_origin
from tiny import tiny_bigearthnet
from typer.testing import CliRunner

import stssl
from stssl.archives.conversion import Options, convert_archive
from stssl.base.errors import ConfigError, DataError
from stssl.commands.cli import app
from stssl.mapping.kept_blocks import sole_prediction
from stssl.mapping.prediction import MapOptions
from stssl.predictions.choice import predict_inputs
from stssl.predictions.geoparquet import outlines
from stssl.predictions.inputs import open_patches
from stssl.predictions.predicted_table import PatchOptions, predict_patches
from stssl.scoring.metrics import score
from stssl.students.features import read_features
from stssl.students.loading import read_student

SIDE = 16
CLASSES = [f"class {number}" for number in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with a student, and images with a place and a label, as files, as a table and as a store."""
    root = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 3, SIDE, SIDE), np.uint8)
    for number, image in enumerate(images):
        about = {"driver": "GTiff", "count": 3, "height": SIDE, "width": SIDE, "dtype": "uint8", "crs": "EPSG:32633"}
        place = from_origin(500_000 + 1000 * number, 5_300_000, 40, 40)
        (root / "images").mkdir(exist_ok=True)
        with rasterio.open(
            root / "images" / f"i{number}.tif", "w", transform=place, photometric="RGB", **about
        ) as file:
            file.write(image)
    lines = [f"images/i{n}.tif,{CLASSES[n % 2] if n < 5 else ''},2023-06-{n + 1:02}" for n in range(7)]
    (root / "t.csv").write_text("path,label,time\n" + "\n".join(lines) + "\n")
    convert_archive("manifest", root / "t.csv", root / "s.zarr", Options(workers=0, shard=4))
    write_run(root / "run", images)
    write_run(root / "cdmad", images, cdmad=True)
    write_run(root / "direct", images, role="direct", injection={"name": "late"}, encoder={"name": "raw"})
    np.save(root / "images.npy", images)
    return root


def table_of(path):
    return pyarrow.parquet.read_table(path)


def probabilities(table):
    return np.stack([table[f"probability_{name}"].to_numpy() for name in CLASSES], 1)


@pytest.mark.parametrize("given", ["s.zarr", "t.csv", "images", "images/*.tif"])
@pytest.mark.parametrize("model", ["run", "cdmad"])
def test_all_sources_give_the_students_probabilities(folder, given, model, tmp_path):
    written = stssl.predict(folder / model, folder / given, tmp_path / "p.parquet", batch=3, progress=False)
    table, student = table_of(written), read_student(folder / model)
    expected = student.predict(np.load(folder / "images.npy"))
    np.testing.assert_allclose(probabilities(table), expected, atol=1e-6)
    assert table["chosen"].to_pylist() == [CLASSES[place] for place in expected.argmax(1)]
    np.testing.assert_allclose(table["confidence"].to_numpy(), expected.max(1), atol=1e-6)
    assert [Path(name).name for name in table["patch_id"].to_pylist()] == [f"i{n}.tif" for n in range(7)]
    assert table["error"].null_count == 7
    assert not np.allclose(probabilities(table)[::-1], expected, atol=1e-6)  # control


def test_an_ensemble_is_the_mean_of_probabilities(folder, tmp_path):
    models = [folder / "run", folder / "cdmad"]
    table = table_of(stssl.predict(models, folder / "s.zarr", tmp_path / "p.parquet", progress=False))
    images = np.load(folder / "images.npy")
    expected = np.mean([read_student(model).predict(images) for model in models], 0)
    np.testing.assert_allclose(probabilities(table), expected, atol=1e-6)


def test_scores_are_those_of_the_labeled_patches(folder, tmp_path):
    written = stssl.predict(folder / "run", folder / "s.zarr", tmp_path / "p.parquet", progress=False)
    about = json.loads(table_of(written).schema.metadata[b"stssl"])
    assert table_of(written)["label"].to_pylist() == ["class 0", "class 1"] * 2 + ["class 0", None, None]
    student = read_student(folder / "run")
    logits = student(torch.from_numpy(np.load(folder / "images.npy")[:5]))
    expected = score(logits, torch.tensor([[0], [1], [0], [1], [0]]), student._space).scores
    assert about["scores"]["accuracy"] == pytest.approx(expected["accuracy"]) and about["labels"] == "label"
    with pytest.raises(ConfigError, match=r"--labels kinds: .* has no such labels .*its label sets: label"):
        stssl.predict(folder / "run", folder / "s.zarr", tmp_path / "q.parquet", labels="kinds", progress=False)


def polygon(shape):
    order, kind, rings, count = struct.unpack_from("<BIII", shape)
    assert (order, kind, rings, count) == (1, 3, 1, 5)
    return np.frombuffer(shape, "<f8", 10, 13).reshape(5, 2)


def test_places_make_a_geoparquet_file_with_outlines(folder, tmp_path):
    table = table_of(stssl.predict(folder / "run", folder / "s.zarr", tmp_path / "p.parquet", progress=False))
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    rings = [polygon(shape) for shape in table["geometry"].to_pylist()]
    west, _, _, north = column["bbox"]
    assert west == min(ring[:, 0].min() for ring in rings) and north == max(ring[:, 1].max() for ring in rings)
    for ring, lat, lon in zip(rings, table["lat"].to_pylist(), table["lon"].to_pylist(), strict=True):
        np.testing.assert_allclose(ring[:4].mean(0), [lon, lat], atol=1e-6)
        height = np.ptp(ring[:, 1]) * 111_200
        assert height == pytest.approx(640, rel=0.01)
        x, y = ring.T
        assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0  # counterclockwise


def test_patches_without_places_make_a_plain_table(folder, tmp_path):
    for number in range(2):
        Image.fromarray(np.full((SIDE, SIDE, 3), 100 + number, np.uint8)).save(tmp_path / f"{number}.png")
    table = table_of(stssl.predict(folder / "run", tmp_path, tmp_path.parent / "p.parquet", progress=False))
    assert b"geo" not in table.schema.metadata and "geometry" not in table.column_names and table.num_rows == 2
    assert table["lat"].null_count == 2


def test_a_damaged_image_keeps_its_row_with_the_reason(folder, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((SIDE, SIDE, 3), 100 + number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    table = table_of(stssl.predict(folder / "run", tmp_path, tmp_path.parent / "d.parquet", progress=False))
    assert table["error"].to_pylist()[1].startswith("unreadable") and table["chosen"].to_pylist()[1] is None
    assert table["confidence"].null_count == 1 and table["error"].null_count == 2


def test_bands_of_several_sizes_equal_the_runs_evaluation(tmp_path):
    """A store of BigEarthNet has bands of 10, 20 and 60 m."""
    store = tiny_bigearthnet(tmp_path, 40)
    small = ["schedule.steps=2", "schedule.warmup=1", "schedule.evaluate_every=1", "batch.labeled=8", "name=r"]
    places = [f"data.store={store}", f"launch.storage={tmp_path}", "launch.workers=0", "labels.fraction=0.9"]
    bands = "data.bands=[B04,B03,B02,B08,B05,B11,B01]"
    recipe = stssl.load_recipe("synthetic/supervised", [*small, *places, bands, "model.image_size=16"])
    run = stssl.train(recipe, progress=False)
    stssl.evaluate(run, "test")
    arrays = np.load(run.path / "evaluation" / "test.npz", allow_pickle=False)
    table = table_of(stssl.predict(run, store, tmp_path / "p.parquet", progress=False))
    chosen = table.take(arrays["rows"])
    assert chosen["patch_id"].to_pylist() == list(arrays["patch_ids"])
    for place, name in enumerate(arrays["classes"]):
        expected = 1 / (1 + np.exp(-arrays["logits_student"][:, place]))
        np.testing.assert_allclose(chosen[f"probability_{name}"].to_numpy(), expected, atol=1e-5)
    assert table["geometry"].null_count == 0 and table["chosen"].type.value_type == pyarrow.string()


def test_features_are_those_before_the_head(folder, tmp_path):
    images = torch.from_numpy(np.load(folder / "images.npy"))
    model, student = read_features(folder / "run"), read_student(folder / "run")
    with torch.no_grad():
        features = model(images)
        head = student.network.backbone.get_classifier()
        torch.testing.assert_close(head(features), student(images))
    table = table_of(stssl.embed(folder / "run", folder / "t.csv", tmp_path / "e.parquet", progress=False))
    np.testing.assert_allclose(np.stack(table["features"].to_numpy()), features, atol=1e-5)
    written = stssl.embed(folder / "run", folder / "s.zarr", tmp_path / "e.zarr", progress=False)
    group = zarr.open_group(str(written), mode="r")
    np.testing.assert_allclose(group["features"][:], features, atol=1e-5)
    assert list(group["patch_id"][:]) == [f"images/i{n}.tif" for n in range(7)]
    stamp = (written / "zarr.json").stat().st_mtime_ns
    stssl.embed(folder / "run", folder / "s.zarr", tmp_path / "e.zarr", progress=False)
    assert (written / "zarr.json").stat().st_mtime_ns == stamp  # it is made already
    with pytest.raises(ConfigError, match="is there already"):
        stssl.embed(folder / "cdmad", folder / "s.zarr", tmp_path / "e.zarr", progress=False)
    with sole_prediction(tmp_path / "f.zarr"), pytest.raises(stssl.RunError, match="another prediction is writing"):
        stssl.embed(folder / "run", folder / "s.zarr", tmp_path / "f.zarr", progress=False)


def test_a_repeated_table_is_left_and_other_files_are_not_replaced(folder, tmp_path):
    out = tmp_path / "p.parquet"

    def predict(model="run", given="t.csv", to=out, **options):
        return predict_patches([folder / model], [folder / given], to, PatchOptions(device="cpu", **options))

    first, stamp = predict(), out.stat().st_mtime_ns
    again = predict()
    assert (again.patches, again.failed, again.scored, again.scores) == (7, 0, 5, first.scores)
    assert "p.parquet is already made" in again.notes[0] and out.stat().st_mtime_ns == stamp
    (tmp_path / "notes.parquet").write_text("my thesis")
    for changes in ({"model": "cdmad"}, {"given": "s.zarr"}, {"resample": True}, {"to": tmp_path / "notes.parquet"}):
        with pytest.raises(ConfigError, match="is there already"):
            predict(**changes)
    assert (tmp_path / "notes.parquet").read_text() == "my thesis" and not list(tmp_path.glob(".*"))


def test_a_table_in_a_bucket_is_left_or_refused_as_on_a_disk(folder, server, elsewhere):
    pytest.importorskip("obstore")
    url, place = "s3://bucket/tables/p.parquet", "bucket/tables/p.parquet"

    def predict(model="run"):
        return predict_inputs([folder / model], [folder / "s.zarr"], url, MapOptions(device="cpu"))

    first, body = predict(), server.objects[place]
    for other_machine in (False, True):
        if other_machine:
            elsewhere()
        server.requests.clear()
        again = predict()
        assert "p.parquet is already made" in again.lines[0] and again.scores == first.scores
        with pytest.raises(ConfigError, match=r"^--out: s3://bucket/tables/p\.parquet is there already"):
            predict("cdmad")
        assert server.objects[place] == body and ("PUT", f"/{place}") not in server.requests
    del server.objects[place]
    assert not any("already" in line for line in predict().lines)  # control: a copy of this process does not count
    assert ("PUT", f"/{place}") in server.requests and set(server.objects) == {place}


def test_results_that_are_not_finite_are_named_and_none_of_them_make_no_table(folder, tmp_path, monkeypatch):
    from stssl.students.features import FeatureModel
    from stssl.students.student import Student

    broken = [1, 4]

    def spoiled(forward):
        def wrapped(model, images, metadata=None):
            found = forward(model, images, metadata)
            found[broken] = np.nan
            return found

        return wrapped

    for kind in (Student, FeatureModel):
        monkeypatch.setattr(kind, "forward", spoiled(kind.forward))
    done = CliRunner().invoke(
        app, ["predict", str(folder / "run"), str(folder / "s.zarr"), "--out", f"{tmp_path}/p.parquet"]
    )
    assert done.exit_code == 0 and "2 of 7 patches have no result: the model gives numbers that are not" in done.output
    table = table_of(tmp_path / "p.parquet")
    assert [text is not None for text in table["error"].to_pylist()] == [n in broken for n in range(7)]
    assert table["chosen"].to_pylist()[1] is None and table["probability_class 0"].null_count == 2
    assert "over all 3 patches with a label" in done.output
    done = CliRunner().invoke(
        app, ["embed", str(folder / "run"), str(folder / "s.zarr"), "--out", f"{tmp_path}/e.zarr"]
    )
    assert "2 of 7 patches have no result" in done.output and "2 patches without usable features" in done.output
    assert np.isnan(zarr.open_group(f"{tmp_path}/e.zarr", mode="r")["features"][broken]).all()
    broken[:] = range(7)
    for command in (stssl.predict, stssl.embed):
        with pytest.raises(DataError, match=r"none of the 7 patches has a result.*not_finite"):
            command(folder / "run", folder / "s.zarr", tmp_path / "none.parquet", progress=False)
    assert not (tmp_path / "none.parquet").exists()


def test_a_scene_is_cut_into_patches(folder, tmp_path):
    images = np.load(folder / "images.npy")
    scene = np.concatenate([np.concatenate(images[:3], 2), np.concatenate(images[3:6], 2)], 1)
    about = {"driver": "GTiff", "count": 3, "height": 32, "width": 48, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "s.tif", "w", transform=from_origin(5e5, 53e5, 40, 40), **about) as file:
        file.write(scene)
    options = {"bands": ("B04", "B03", "B02"), "progress": False}
    table = table_of(stssl.predict(folder / "run", tmp_path / "s.tif", tmp_path / "p.parquet", **options))
    notes = open_patches([tmp_path / "s.tif"], read_student(folder / "run").description, wanted=("B04",)).notes
    seen = open_patches([tmp_path / "s.tif"], read_student(folder / "direct").description, wanted=("B04",)).notes
    assert not any("date" in note for note in notes) and any(
        "Put it into the name of the file" in note for note in seen
    )
    expected = read_student(folder / "run").predict(images[:6])
    # The student knows its patches as 640 m wide, and its bands have no pixel size: a window has its 16 pixels.
    np.testing.assert_allclose(probabilities(table), expected, atol=1e-6)
    assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["geometry_types"] == ["Polygon"]


def test_models_that_see_places_get_those_of_the_patches(folder, tmp_path):
    table = table_of(stssl.predict(folder / "direct", folder / "s.zarr", tmp_path / "p.parquet", progress=False))
    store = stssl.open_store(folder / "s.zarr")
    hour = np.zeros(7)
    metadata = np.stack([store.column("lat"), store.column("lon"), store.column("day_of_year"), hour], 1)
    expected = read_student(folder / "direct").predict(np.load(folder / "images.npy"), metadata)
    np.testing.assert_allclose(probabilities(table), expected, atol=1e-6)
    Image.fromarray(np.full((SIDE, SIDE, 3), 100, np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ConfigError, match=r"sees place and date .* have neither"):
        stssl.predict(folder / "direct", tmp_path, tmp_path.parent / "n.parquet", progress=False)


BAD = {
    "inside": ("images", "images/p.parquet", {}, "lies inside the input"),
    "input itself": ("t.csv", "t.parquet", {}, "there is no file"),
    "ending": ("s.zarr", "p.json", {}, "must end in .tif .* or .parquet"),
    "map of a store": ("s.zarr", "p.tif", {}, "patches, which become a table"),
    "preview": ("s.zarr", "p.parquet", {"preview": True}, "--preview is for maps"),
    "bands of a store": ("s.zarr", "p.parquet", {"bands": ("a",)}, "leave --bands out"),
    "nothing there": ("nothing", "p.parquet", {}, "there is no file"),
    "other bands": ("images", "p.parquet", {"bands": ("a", "b", "c")}, "has no band B04, B03, B02"),
    "few names": ("images", "p.parquet", {"bands": ("a",)}, "1 band names are given"),
    "map by place": ("images/i0.tif", "p.tif", {"model": "direct"}, "write a table: --out FILE.parquet"),
    "same model twice": ("s.zarr", "p.parquet", {"model": ["run", "run"]}, "are the same model"),
    "store among images": (["images/i0.tif", "s.zarr"], "p.parquet", {}, "s.zarr is a store. Give one store alone"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_does_not_fit_is_said_in_one_line(folder, fault, tmp_path):
    given, out, options, words = BAD[fault]
    given = "missing.csv" if fault == "input itself" else given
    inputs = [folder / one for one in given] if isinstance(given, list) else folder / given
    options = dict(options)
    named = options.pop("model", "run")
    models = [folder / one for one in named] if isinstance(named, list) else folder / named
    target = folder / out if fault == "inside" else tmp_path / out
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        stssl.predict(models, inputs, target, progress=False, **options)
    assert "\n" not in str(caught.value) and not target.exists()


@pytest.mark.parametrize(("size", "words"), [(24, "24 pixels a side, and the model was trained on 16")])
def test_other_sizes_need_resample(folder, size, words, tmp_path):
    Image.fromarray(np.full((size, size, 3), 100, np.uint8)).save(tmp_path / "0.png")
    out = tmp_path.parent / "r.parquet"
    with pytest.raises(ConfigError, match=f"{words}. Give --resample"):
        stssl.predict(folder / "run", tmp_path, out, progress=False)
    assert table_of(stssl.predict(folder / "run", tmp_path, out, resample=True, progress=False)).num_rows == 1


def test_an_output_that_cannot_be_written_is_said_before_the_work(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(stssl.RunError, match="cannot write"):
        stssl.predict(folder / "run", folder / "s.zarr", tmp_path / "file" / "p.parquet", progress=False)


def test_the_commands_print_the_file_and_scores(folder, tmp_path):
    words = [str(folder / "run"), str(folder / "s.zarr"), "--out"]
    done = CliRunner().invoke(app, ["predict", *words, str(tmp_path / "p.parquet")])
    assert done.exit_code == 0 and done.stdout.strip().endswith("p.parquet") and "accuracy" in done.output
    done = CliRunner().invoke(app, ["embed", *words, str(tmp_path / "e.parquet")])
    assert done.exit_code == 0 and done.stdout.strip().endswith("e.parquet")


def test_outlines_over_the_antimeridian_are_left_out():
    columns = {
        "lat": np.zeros(2),
        "crs": np.array(["EPSG:4326", "EPSG:4326"], object),
        "corner_x": np.array([179.9, 10.0]),
        "corner_y": np.array([1.0, 1.0]),
        "pixel_width": np.array([0.1, 0.1]),
        "pixel_height": np.array([0.1, 0.1]),
    }
    found = outlines(columns, 0, 4)
    np.testing.assert_allclose(found[1], [[10, 1], [10, 0.6], [10.4, 0.6], [10.4, 1], [10, 1]])
