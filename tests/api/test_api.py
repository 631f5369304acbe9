"""What `import stssl` offers: the functions of the command line, typed, without its printing."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import stssl
from stssl import api
from stssl.commands import cli

SMALL = ["schedule.steps=6", "schedule.warmup=1", "schedule.supervised_start=2", "schedule.evaluate_every=3"]
SMALL += ["launch.workers=0", "labels.allow_missing_classes=true", "batch.labeled=4", "evaluation.batchnorm_batches=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def store(folder):
    archive = stssl.synthesize(folder / "archive", 60, progress=False)
    return stssl.convert("bigearthnet-v1", archive, folder / "s.zarr", shard=20, progress=False).store


@pytest.fixture(scope="module")
def run(folder, store):
    places = [f"data.store={store}", f"launch.storage={folder / 'runs'}"]
    recipe = stssl.load_recipe("synthetic/fixmatch_teacher", [*places, *SMALL, "model.image_size=16", "name=first"])
    return stssl.train(recipe, progress=False)


def test_every_public_name_is_there_and_described():
    assert set(api.__all__) <= set(stssl.__all__) == set(dir(stssl))
    for name in stssl.__all__:
        assert name.startswith("__") or getattr(stssl, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        stssl.trian  # noqa: B018


def test_importing_loads_neither_torch_nor_ray():
    script = "import sys, stssl; print([n for n in ('torch', 'ray', 'zarr', 'pydantic') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_store_gives_columns_pixels_and_xarray(store):
    opened = stssl.open_store(store)
    assert opened.column("lat").shape == (60,)
    pixels = opened.read([5, 1], ["B02", "B04"])
    assert pixels.shape == (2, 2, 120, 120) and pixels.dtype == np.uint16
    assert np.array_equal(pixels[1], opened.read([1], ["B04", "B02"])[0, ::-1])
    assert not np.array_equal(pixels[0], pixels[1])  # control
    dataset = opened.to_xarray()
    assert np.array_equal(dataset["b10"].isel(patch=1).values, opened.read([1])[0])


def test_wrong_bands_of_a_store_are_named(store):
    opened = stssl.open_store(store)
    with pytest.raises(stssl.ConfigError, match=r"no band B99\. It has: B04"):
        opened.read([0], ["B99"])
    with pytest.raises(stssl.ConfigError, match=r"120 pixels: .*60 pixels"):
        opened.read([0], ["B04", "B05"])


def test_a_run_tells_what_it_is(run):
    assert run.finished and run.name == "first" and "finished" in repr(run)
    assert set(run.checkpoints) == {"last", "previous", "best"}
    table = run.metrics()
    assert table["step"].to_pylist()[-1] == 6 and {"kind", "loss", "mAP"} <= set(table.column_names)
    again = stssl.Run.open(run.path)
    assert again.recipe == run.recipe and again.best_score == run.best_score


def test_scores_are_there_once_they_are_measured(run):
    with pytest.raises(stssl.RunError, match=r"no scores of 'validation' \(evaluated so far: .*stssl.evaluate"):
        run.scores("validation")
    scores = stssl.evaluate(run, "validation")
    assert set(scores) == {"student", "teacher"} and run.scores("validation") == scores


def test_networks_come_back(run):
    networks = run.networks()
    assert set(networks) == {"student", "teacher"} and not networks["student"].training


@pytest.fixture(scope="module")
def pretrained(folder, store):
    places = [f"data.store={store}", f"launch.storage={folder / 'runs'}", "launch.workers=0", "name=pretrained"]
    small = ["schedule.steps=2", "schedule.warmup=1", "schedule.evaluate_every=2", "batch.size=8", "pretext.queue=16"]
    small += ["pretext.geo.k=5", "model.image_size=32"]
    return stssl.pretrain(stssl.load_recipe("pretrain/synthetic", [*places, *small]), progress=False)


def test_encoders_of_a_pretraining_run_come_back(pretrained):
    networks = pretrained.networks()
    assert set(networks) == {"encoder", "momentum"} and not networks["encoder"].training
    images, _ = pretrained.inputs([5, 3, 4])
    size = pretrained.recipe.model.image_size
    assert images.shape == (3, len(pretrained.recipe.data.bands), size, size)
    with torch.no_grad():
        features, slow = networks["encoder"](images), networks["momentum"](images)
        assert torch.equal(features, pretrained.networks("last")["encoder"](images))
    assert features.ndim == 2 and len(features) == 3 and not torch.equal(features, slow)
    saved = load_file(pretrained.path / "checkpoints" / "encoder.safetensors")
    own = networks["encoder"].state_dict()
    assert all(torch.equal(own[name], value) for name, value in saved.items()) and saved.keys() <= own.keys()
    with pytest.raises(stssl.ConfigError, match="unknown checkpoint 'newest'"):
        pretrained.networks("newest")


def test_inputs_are_those_of_the_evaluation(run):
    """Networks and inputs give the logits that `evaluate` wrote."""
    stssl.evaluate(run, "validation")
    written = np.load(run.path / "evaluation" / "validation.npz", allow_pickle=False)
    store = stssl.open_store(run.recipe.data.store)
    assert list(written["patch_ids"]) == list(store.column("patch_id")[written["rows"]])
    assert tuple(written["classes"]) == store.classes("labels_19")
    images, metadata = run.inputs(written["rows"])
    with torch.no_grad():
        logits = run.networks()["teacher"](images, metadata).logits
        other = run.networks()["teacher"](images.flip(0), metadata).logits
    assert np.allclose(logits, written["logits_teacher"], atol=1e-5)
    assert not np.allclose(other, written["logits_teacher"], atol=1e-5)  # control


@pytest.mark.parametrize(("rows", "words"), [([], "at least one row"), ([0, 60], "rows 0 to 59"), ([-1], "0 to 59")])
def test_rows_that_a_store_lacks_are_refused(run, rows, words):
    with pytest.raises(stssl.StsslError, match=words):
        run.inputs(rows)


def test_a_report_of_runs(run, tmp_path):
    page = stssl.report([run, run.path], tmp_path / "r.html")
    assert page.read_text().count("<h2>") >= 3


def test_training_again_returns_at_once_and_other_keys_are_refused(run, store):
    assert stssl.train(run.recipe, progress=False).path == run.path
    other = run.recipe.model_copy(update={"seed": 7})
    with pytest.raises(stssl.RunError, match="differs in seed"):
        stssl.train(other, progress=False)


def test_a_recipe_of_another_kind_is_named():
    with pytest.raises(stssl.ConfigError, match=r"use stssl\.pretrain"):
        stssl.train(stssl.load_recipe("pretrain/synthetic", ["data.store=x.zarr"]))


def test_errors_are_those_of_the_command_line(monkeypatch, capsys):
    words = "algorithm.treshold=0.9"
    with pytest.raises(stssl.ConfigError) as raised:
        stssl.load_recipe("synthetic/fixmatch_teacher", ["data.store=x.zarr", words])
    monkeypatch.setattr(sys, "argv", ["stssl", "train", "synthetic/fixmatch_teacher", "data.store=x.zarr", words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert " ".join(str(raised.value).split()) in " ".join(capsys.readouterr().err.split())


def test_a_store_of_one_resolution_is_read_whole(tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=2)
    stssl.convert("eurosat", archive, tmp_path / "e.zarr", coordinates=table, progress=False)
    assert stssl.open_store(tmp_path / "e.zarr").read([0]).shape == (1, 3, 64, 64)
