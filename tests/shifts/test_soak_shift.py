"""Studies as users run them: what they find on generated archives, and what a kill leaves of them."""

import os
import sys
import time
from pathlib import Path

import pytest
from processes import family, finish, kill, start
from tiny import tiny_recipe, tiny_store

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.synthetic import synthesize_archive
from stssl.base.config import merge
from stssl.base.yaml_text import dump_yaml
from stssl.recipes.catalog import find_recipe
from stssl.recipes.recipe import load_training_recipe
from stssl.shifts.run import run_shift
from stssl.shifts.settings import ShiftOptions

PACKAGE = Path(__file__).parents[2]


def command(*words):
    """The command line of a study, as the words that start it."""
    environment = {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    given = (f"{name}={value}" for name, value in environment.items())
    return ("env", "-i", *given, sys.executable, "-m", "stssl", "shift", *words)


def killed_and_resumed(folder, workers):
    """Kill a study after its first finished run, and give the same command again. Return what it printed."""
    store = tiny_store(folder)
    short = {"schedule": {"steps": 20, "warmup": 0, "supervised_start": 5, "evaluate_every": 10}}
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_yaml(merge(tiny_recipe(store, folder), short)))
    words = (str(recipe), "--seeds", "1", "--splits", "random", "--metadata", "absent", "--workers", workers)
    words += ("--out", str(folder / "study"))
    runs = folder / "study" / "runs"
    process = start(*command(*words))
    end = time.monotonic() + 240
    while not any(runs.glob("*/evaluation/unlabeled.json")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    kill(family(process.pid))
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in runs.glob("*/done.json")}
    assert kept and not (folder / "study" / "report.html").exists()
    code, output = finish(start(*command(*words)), 240)
    assert code == 0, output
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert f"{3 - len(kept)} of 3 runs to train" in output and output.rstrip().endswith("report.html")
    assert "one seed: no interval" in output
    return output


@pytest.mark.slow
def test_a_study_that_is_killed_keeps_finished_runs(tmp_path):
    killed_and_resumed(tmp_path, "0")


@pytest.mark.ray
@pytest.mark.slow
def test_a_study_on_ray_that_is_killed_keeps_finished_runs(tmp_path):
    killed_and_resumed(tmp_path, "2")


SETTINGS = [
    "data.bands=[B01,B09]",
    "model.image_size=16",
    "model.backbone_args={channels: [8, 16, 32, 64]}",
    "model.encoder={name: fourier}",
    "labels.fraction=0.3",
    "batch.labeled=64",
    "batch.unlabeled_ratio=1",
    "schedule.steps=60",
    "schedule.warmup=5",
    "schedule.supervised_start=20",
    "schedule.evaluate_every=30",
    "optimizer.lr=8.0e-3",
    "ema.decay=0.95",
    "evaluation.batchnorm_batches=2",
    "evaluation.limit=200",
    "data.cache=host",
    "compute.threads=1",
    "launch.workers=0",
]
"""Changes of the recipe on the results page."""


def studied(folder, patches, options, **rule):
    """Run the study of the results page on a generated archive. Return the comparisons that claims rest on."""
    archive = synthesize_archive(folder / "archive", patches, **rule)
    convert_archive("bigearthnet-v1", archive, folder / "s.zarr", Options(workers=0))
    changes = [f"data.store={folder / 's.zarr'}", *SETTINGS]
    recipe = load_training_recipe(find_recipe("synthetic/fixmatch_teacher"), changes)
    said: list[str] = []
    study = run_shift(recipe, options, said.append, folder / "study")
    return [one for one in study.findings.effects if one.claim]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak_a_study_finds_that_metadata_helps_inside_and_not_outside(tmp_path):
    options = ShiftOptions(3, ("random", "country"))
    found = {(one.claim, one.inside): one for one in studied(tmp_path, 2400, options)}
    for claim in ("pseudo-labels", "metadata at test"):
        assert found[claim, True].shown and found[claim, True].difference > 0.05
    outside = found["metadata at test", False]
    assert outside.difference < 0.02 and not (outside.shown and outside.difference > 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak_a_study_finds_harm_where_dates_tell_the_opposite(tmp_path):
    options = ShiftOptions(3, ("random", "country"), ("absent",), draws=500)
    found = {(one.claim, one.split): one for one in studied(tmp_path, 4800, options, misleading="Finland")}
    inside, outside = (found["metadata at test", split] for split in ("random", "country Finland"))
    assert inside.shown and inside.difference > 0.02
    assert outside.shown and outside.difference < -0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak_control_a_study_of_a_placeless_archive_finds_nothing(tmp_path):
    options = ShiftOptions(3, ("random",))
    assert [one for one in studied(tmp_path, 2400, options, placeless=True) if one.shown] == []
