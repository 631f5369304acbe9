"""Test the command line: a user's mistake ends with a message and exit code 2, without a traceback."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

import dirty
import numpy as np
import pytest
import tiny
import torch
import yaml
import zarr
from PIL import Image

from stssl.commands.cli import main
from stssl.store.store import Store


@dataclass(frozen=True)
class Done:
    """Hold output and exit code of a command."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def stssl(monkeypatch, capsys):
    """Run the command in this process."""

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["stssl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return Done(ended.value.code or 0, output.out, output.err)

    return go


@pytest.fixture
def recipe(recipe_tree, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree))
    return path


def test_train_evaluate_report(stssl, recipe, tmp_path):
    trained = stssl("train", recipe)
    assert trained.code == 0, trained.stderr
    run = trained.stdout.strip().splitlines()[-1]
    assert run == str(tmp_path / "runs" / "run")
    assert "finished" in stssl("train", recipe).stderr
    for part in ("validation", "test"):
        assert stssl("evaluate", run, "--split", part).code == 0
    scores = json.loads((tmp_path / "runs" / "run" / "evaluation" / "test.json").read_text())
    assert set(scores["networks"]) == {"student", "teacher"} and scores["patches"] == 40
    page = tmp_path / "out" / "report.html"
    assert stssl("report", run, "--out", page).stdout.strip() == str(page)
    text = page.read_text()
    assert text.count("<svg") >= 6 and "balanced accuracy" in text and "backbone: slim_resnet" in text
    for foreign in ("src=", "href=", "url(http"):  # pictures are inside of the page
        assert foreign not in text.replace("xlink:href", "").replace("url(#", "").replace("src='data:image/jpeg", "")


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(stssl, recipe):
    assert stssl("train", recipe).code == 0
    done = stssl("train", recipe, "optimizer.lr=0.5")
    assert done.code == 2 and "another recipe; it differs in optimizer.lr" in done.stderr
    assert stssl("train", recipe, "logging.every=7").code == 0


def test_a_run_is_read_from_any_folder(stssl, recipe_tree, tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.zarr").symlink_to(store)
    tree = recipe_tree | {"data": recipe_tree["data"] | {"store": "near.zarr"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = stssl("train", "recipe.yaml").stdout.strip()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert stssl("evaluate", run).code == 0
    (tmp_path / "near.zarr").rename(tmp_path / "moved.zarr")
    assert "there is no store" in stssl("evaluate", run).stderr
    assert stssl("evaluate", run, "--store", "../moved.zarr").code == 0
    (tmp_path / "moved.zarr").rename(tmp_path / "near.zarr")
    assert "finished" in stssl("train", "../recipe.yaml", "data.store=../near.zarr").stderr
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "finished" in stssl("train", "../recipe.yaml", "data.store=~/near.zarr", "launch.storage=~/runs").stderr


def test_a_report_leaves_out_damaged_runs(stssl, recipe, tmp_path, caplog):
    run = tmp_path / "runs" / "run"
    assert stssl("train", recipe).code == 0 and stssl("evaluate", run).code == 0
    damages = {
        "other-key": lambda path: (path / "recipe.yaml").write_text("name: x\nnews: 1\n"),
        "no-logits": lambda path: (path / "evaluation" / "test.npz").unlink(),
        "cut-logits": lambda path: (path / "evaluation" / "test.npz").write_bytes(b"PK\x03\x04cut"),
        "cut-scores": lambda path: (path / "evaluation" / "test.json").write_text("{"),
        "cut-record": lambda path: (path / "record.json").write_text("{"),
    }
    for name, damage in damages.items():
        shutil.copytree(run, tmp_path / "runs" / name)
        damage(tmp_path / "runs" / name)
    done = stssl("report", *(tmp_path / "runs" / name for name in ("run", *damages)), "--out", tmp_path / "r.html")
    assert done.code == 0, done.stderr
    assert [name for name in damages if name not in caplog.text] == []
    page = (tmp_path / "r.html").read_text()
    assert "best, " in page and "no-logits" not in page


def test_files_of_other_commands_are_named(stssl, recipe, tmp_path):
    (tmp_path / "sweep.yaml").write_text("search: {}\n")
    (tmp_path / "pre.yaml").write_text("pretext: {}\n")
    for command, file, right in (
        ("train", "sweep.yaml", "stssl sweep"),
        ("train", "pre.yaml", "stssl pretrain"),
        ("pretrain", recipe, "stssl train"),
    ):
        done = stssl(command, tmp_path / file)
        assert done.code == 2 and right in done.stderr


def test_smoke_needs_no_ray_and_no_weights(stssl, recipe):
    done = stssl("train", recipe, "--smoke", "launch.workers=8", "model.weights=imagenet")
    assert done.code == 0, done.stderr
    assert done.stdout.strip().endswith("run-smoke")


def test_inspect(stssl, store):
    text = stssl("inspect", store).stdout
    assert "200 patches" in text and "official: 140 train, 20 validation, 40 test" in text
    assert "errors    none" in text and "SeaLake" in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizr.lr=1", "unknown key optimizr: did you mean optimizer?"),
        ("algorithm.threshold=1.5", "algorithm.threshold: Input should be less than or equal to 1 (given: 1.5)"),
        ("schedule.steps=0", "schedule.steps"),
        ("algorithm.name=fixmach", "'fixmatch'"),
        ("data.store=/nowhere.zarr", "there is no store at /nowhere.zarr"),
        ("data.bands=[B08]", "has no B08. It has: B04, B03, B02."),
        ("data.labels=labels_43", "has no 'labels_43'"),
        ("labels.total=30", "give one of fraction, per_class, total, list"),
        ("launch.storage", "must look like section.key=value"),
    ],
)
def test_mistakes_in_recipes(stssl, recipe, override, words):
    done = stssl("train", recipe, override)
    assert done.code == 2
    assert words in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_another_schema_version(stssl, recipe, store, tmp_path):
    copy = tmp_path / "old.zarr"
    shutil.copytree(store, copy)
    zarr.open_group(copy, mode="r+").attrs["schema_version"] = 99
    done = stssl("train", recipe, f"data.store={copy}")
    assert done.code == 2 and "has schema version 99" in done.stderr and "Traceback" not in done.stderr


def test_mistakes_elsewhere(stssl, tmp_path, store):
    for arguments, words in (
        (("evaluate", tmp_path), "is not a run"),
        (("report", tmp_path), "is not a run"),
        (("inspect", tmp_path), "is not"),
        (("convert", "eurosat", tmp_path / "no.zip", tmp_path / "s.zarr"), "there is no archive"),
        (("quickstart", "--out", store / "zarr.json"), "zarr.json: File exists"),
        (("convert", "landsat", store, tmp_path / "s.zarr"), "unknown archive format 'landsat'"),
    ):
        done = stssl(*arguments)
        assert done.code == 2, arguments
        assert words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_real_process_ends_with_code_2_and_words(recipe):
    command = [sys.executable, "-m", "stssl.commands.cli", "train", str(recipe), "seed=-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "seed: Input should be greater than or equal to 0" in done.stderr and "Traceback" not in done.stderr


def test_verify_finds_damage(stssl, store, tmp_path):
    assert "0 problems" in stssl("verify", store).stderr
    copy = tmp_path / "damaged.zarr"
    shutil.copytree(store, copy)
    shard = next(path for path in sorted((copy / "rgb" / "c").rglob("*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    done = stssl("verify", copy)
    assert done.code == 1 and done.stdout.strip()


def test_convert_with_splits(stssl, tmp_path):
    archive = dirty.clean(tmp_path / "archive", 6)
    names = [folder.name for folder in dirty.folders(archive)]
    lists = tmp_path / "seco"
    lists.mkdir()
    for part, chosen in (("train", names[:3]), ("val", names[3:4]), ("test", names[4:])):
        (lists / f"{part}.txt").write_text("\n".join(chosen))
    here = ("--workers", "0", "--shard", "8")
    done = stssl("convert", "bigearthnet-v1", archive, tmp_path / "s.zarr", "--split", f"seco={lists}", *here)
    assert done.code == 0, done.stderr
    assert "seco: 3 train, 1 validation, 2 test" in stssl("inspect", tmp_path / "s.zarr").stdout
    assert stssl("verify", tmp_path / "s.zarr", "--archive", archive).code == 0
    (tmp_path / "empty").mkdir()
    strangers = tmp_path / "strangers"
    shutil.copytree(lists, strangers)
    for path in strangers.iterdir():
        path.write_text(f"nobody of {path.stem}\n")
    twice = tmp_path / "twice"
    shutil.copytree(lists, twice)
    (twice / "test.txt").write_text("\n".join(names))
    for word, words in (
        ("seco", "give NAME=FOLDER"),
        (f"seco={twice}", "share 3 patches"),
        (f"Se/co={lists}", "give NAME=FOLDER"),
        ("seco=/nowhere", "there is no folder /nowhere"),
        (f"blocks={lists}", "Choose another name"),
        (f"seco={tmp_path / 'empty'}", "has no lists train, val and test"),
        (f"seco={strangers}", "name none of the archive's 6 patches"),
    ):
        done = stssl("convert", "bigearthnet-v1", archive, tmp_path / "t.zarr", "--split", word, *here)
        assert done.code == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = stssl("convert", "bigearthnet-v1", archive, tmp_path / "t.zarr", "--size", "8", *here)
    assert done.code == 2 and "has no option size" in done.stderr


def test_convert_a_manifest_with_size_and_band_names(stssl, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "table.csv").write_text("path,label\n0.png,a\n1.png,b\n2.png,a\n")
    done = stssl(
        *("convert", "manifest", tmp_path / "table.csv", tmp_path / "s.zarr", "--workers", "0"),
        *("--size", "16", "--band-names", "R,G,B"),
    )
    assert done.code == 0, done.stderr
    store = Store.open(tmp_path / "s.zarr")
    (group,) = store.groups.values()
    assert (group.bands, group.height, group.width) == (("R", "G", "B"), 16, 16)
    assert stssl("verify", tmp_path / "s.zarr", "--archive", tmp_path / "table.csv").code == 0


def test_runs_of_one_name_are_told_apart_and_evaluated_as_they_were_trained(stssl, recipe, store, tmp_path, caplog):
    small = ("schedule.steps=2", "schedule.warmup=0", "schedule.evaluate_every=2", "schedule.supervised_start=0")
    runs = [tmp_path / place / "run" for place in ("one", "two")]
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store, copy)
    for seed, run in enumerate(runs):
        done = stssl(
            "train", recipe, *small, f"launch.storage={run.parent}", f"ema.decay=0.9{seed}", f"data.store={copy}"
        )
        assert done.code == 0, done.stderr
    for arguments, words in (
        (("--device", "gpu"), "unknown device 'gpu': give cpu, cuda or auto"),
        (("--split", "tset"), "unknown part 'tset'"),
        (("--checkpoint", "bst"), "unknown checkpoint 'bst'"),
    ):
        done = stssl("evaluate", runs[0], *arguments)
        assert done.code == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    if not torch.cuda.is_available():
        assert "there is no GPU" in stssl("evaluate", runs[0], "--device", "cuda").stderr
    assert all(stssl("evaluate", run).code == 0 for run in runs)
    page = tmp_path / "report.html"
    assert stssl("report", *runs, runs[0], "--out", page).code == 0
    text = page.read_text()
    assert text.count("<td class='text'>one/run</td>") == text.count("<td class='text'>two/run</td>") > 0
    (tmp_path / "unseen").mkdir()
    shutil.copy(runs[0] / "recipe.yaml", tmp_path / "unseen")
    assert stssl("report", *runs, tmp_path / "unseen", "--out", page).code == 0
    assert "left out" in caplog.text and "was not evaluated yet" in caplog.text
    (tmp_path / "file").write_text("")
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.html", "cannot write")):
        done = stssl("report", runs[0], "--out", out)
        assert done.code == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    tiny.relabel(copy, 3, 7)
    done = stssl("evaluate", runs[0])
    assert done.code == 2 and "has other patches or labels than when" in done.stderr


def test_drivers_and_controllers_start_without_what_only_networks_and_scores_need():
    look = "print(bool({'timm', 'torchmetrics'} & sys.modules.keys()))"
    program = f"import sys, stssl.models, stssl.training.launch; {look}; import timm; {look}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]  # the second is the control
