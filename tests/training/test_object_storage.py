"""Runs whose folder is in an object store: the same results and files as on a disk, from any machine."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny
import torch
import yaml
from azure_server import azure_server
from far_storage import BUCKET
from gcs_server import gcs_server
from s3_server import environment, s3_server

from stssl.analysis.report import write_report
from stssl.api.run import Run
from stssl.base import mirror, remote
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, DataError
from stssl.base.remote_folder import RemoteFolder
from stssl.recipes.recipe import Recipe
from stssl.training import loop, state
from stssl.training.launch import run
from stssl.training.remote_checkpoints import COMMIT_FILE, TAIL_BYTES
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run

pytest.importorskip("obstore")
HEAD = "bucket/runs/far/"


def recipe_of(tree, **keys):
    return validate(Recipe, merge(tree, keys), "test")


@pytest.fixture
def far(recipe_tree):
    return recipe_of(recipe_tree, launch={"storage": BUCKET}, name="far")


@pytest.fixture(scope="module")
def unbroken(store, tmp_path_factory):
    """Files of the same run on a disk, trained without a break."""
    recipe = recipe_of(tiny.tiny_recipe(store, tmp_path_factory.mktemp("unbroken")), name="far")
    run(recipe)
    folder = RunFolder.of(recipe).path
    evaluate_run(folder, "test")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files(server):
    return {name.removeprefix(HEAD): data for name, data in server.objects.items() if name.startswith(HEAD)}


def state_of(data):
    return torch.load(io.BytesIO(data[:-TAIL_BYTES]), weights_only=True)


def equal(one, other):
    """Compare states bit by bit. The bytes of their files also tell which equal texts are one object."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def differing(server, wanted):
    """Return the names of files that are not those of an unbroken run."""
    found = files(server)
    return [name for name in SAME if not _same(name, found[name], wanted[name])]


def _same(name, one, other):
    return equal(state_of(one), state_of(other)) if name.endswith(".pt") else one == other


def steps_of(metrics):
    return [(row["kind"], row["step"], row.get("loss")) for row in map(json.loads, metrics.splitlines())]


SAME = [f"checkpoints/{name}" for name in ("last.pt", "previous.pt", "best.pt", "student.safetensors", "samples.npz")]
SAME += ["labels.json", "done.json"]


def test_a_run_in_a_bucket_is_the_one_on_a_disk(server, far, unbroken, elsewhere, tmp_path):
    rows = []
    folder = run(far, rows.append)
    assert folder.place == f"{BUCKET}/far"
    assert [(row["kind"], row["step"], row.get("loss")) for row in rows] == steps_of(unbroken["metrics.jsonl"])
    elsewhere()
    assert run(far).finished() and "bucket/runs/far/lock.json" not in server.objects
    evaluate_run(f"{BUCKET}/far", "test")
    there = files(server)
    assert there.keys() - {"checkpoints/committed.json"} == unbroken.keys()
    assert [name for name in SAME if there[name] != unbroken[name]] == []
    assert not equal(state_of(there["checkpoints/last.pt"]), state_of(there["checkpoints/previous.pt"]))  # a control
    scores, wanted = (json.loads(held["evaluation/test.json"])["networks"] for held in (there, unbroken))
    assert scores == wanted
    elsewhere()
    assert "far" in write_report([f"{BUCKET}/far"], tmp_path / "page.html").read_text()
    opened = Run.open(f"{BUCKET}/far")
    assert opened.finished and opened.student().classes and sorted(opened.checkpoints) == ["best", "last", "previous"]
    everything = b"".join(server.objects.values())
    assert b"secret" not in everything and b"tester" not in everything


def test_metrics_reach_the_bucket_before_the_checkpoint_counts(server, far, monkeypatch):
    """A run that is killed right after a commit resumes there, and writes no earlier row again."""
    monkeypatch.setattr(mirror, "PAUSE_S", 3600)  # the thread that sends files now and then sends none
    replace, seen = RemoteFolder.replace, []

    def watched(folder, name, data, known):
        if name == COMMIT_FILE:
            seen.append([step for _, step, _ in steps_of(files(server)["metrics.jsonl"])])
        return replace(folder, name, data, known)

    monkeypatch.setattr(RemoteFolder, "replace", watched)
    run(far)
    assert [steps[: 3 * number] for number, steps in enumerate(seen, 1)] == [
        [2, 4, 4], [2, 4, 4, 6, 8, 8], [2, 4, 4, 6, 8, 8, 10, 12, 12],
    ]  # fmt: skip


def test_a_rank_that_sends_no_files_knows_the_best_step_too(server, far, elsewhere, monkeypatch):
    """Ranks that count the steps since the best score from different steps would end at different steps."""
    first = open_train_state(far, torch.device("cpu"))
    first.resume()
    for step in range(5, 8):
        first.progress.step, first.progress.best_step = step, 5
        first.folder.checkpoints.save(first.checkpoint_state(), best=step == 5)
    first.close()
    for number in range(2):
        elsewhere()
        monkeypatch.setattr(state, "rank", lambda number=number: number)
        again = open_train_state(far, torch.device("cpu"))
        assert again.resume() == [] and (again.progress.step, again.progress.best_step) == (7, 5)
        again.close()
    del server.objects[f"{HEAD}checkpoints/best.pt"]  # the control: a best checkpoint that is lost is seen
    elsewhere()
    again = open_train_state(far, torch.device("cpu"))
    assert "the best checkpoint is chosen anew" in again.resume()[0] and again.progress.best_step == 0


def test_a_name_of_a_run_in_a_bucket_is_no_local_folder(far, recipe_tree, tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path)
    for weights in ("run:far", f"run:{BUCKET}/far/"):
        second = recipe_of(recipe_tree, launch={"storage": BUCKET}, name="second", model={"weights": weights})
        assert second.model.weights == f"run:{BUCKET}/far"
        assert second.identity()["model"]["weights"] == "run:far"
    near = recipe_of(recipe_tree, launch={"storage": BUCKET}, model={"weights": "run:./far"})
    assert near.model.weights == f"run:{tmp_path}/far"
    with pytest.raises(ConfigError, match="not looked up in s3"):
        recipe_of(recipe_tree, launch={"storage": BUCKET}, model={"weights": "run:runs/far"})


@pytest.mark.parametrize(
    "storage",
    [
        "hdfs://n/r", "s3a://b/r", "s3:/bucket/r", "s3:bucket", "file:///runs", "s3://", "s3:///r", "https://b/r",
        "s3://b/../r", "s3://b//r", "s3://b/r?x=1", "s3://b/r#x", "s3://b/a\\b", "gs:/b", "s3://-b/r", "s3://b:80/r",
    ],
)  # fmt: skip
def test_other_urls_for_results_are_refused(storage, recipe_tree):
    with pytest.raises(ConfigError, match=r"launch.storage: .*(URL|plain names)") as caught:
        recipe_of(recipe_tree, launch={"storage": storage})
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_repeated(recipe_tree):
    with pytest.raises(ConfigError, match="environment variables") as caught:
        recipe_of(recipe_tree, launch={"storage": "s3://key:hidden@bucket/runs"})
    assert "hidden" not in str(caught.value)


@pytest.mark.slow
def test_weights_of_a_run_in_a_bucket_soak(server, far, recipe_tree, elsewhere):
    run(far)
    elsewhere()
    second = recipe_of(recipe_tree, launch={"storage": BUCKET}, name="second", model={"weights": "run:far"})
    assert run(second).finished()


@pytest.mark.slow
def test_a_bucket_that_becomes_read_only_in_mid_run_soak(server, far, elsewhere, monkeypatch, unbroken):
    train_step, count = loop.train_step, iter(range(100))

    def forbid(train_state, raw):
        server.refused = ("PUT", "DELETE") if next(count) >= 6 else ()
        return train_step(train_state, raw)

    monkeypatch.setattr(loop, "train_step", forbid)
    with pytest.raises(DataError, match="access is denied") as caught:
        run(far)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    server.refused = ()
    monkeypatch.setattr(loop, "train_step", train_step)
    elsewhere()
    run(far)
    assert differing(server, unbroken) == []


@pytest.mark.slow
def test_requests_that_fail_for_a_while_do_not_end_a_run_soak(server, far, unbroken, monkeypatch):
    train_step, kinds = loop.train_step, iter([500, 503, "short", "reset"] * 9)

    def fail(train_state, raw):
        server.kind, server.failures = next(kinds), 2
        return train_step(train_state, raw)

    monkeypatch.setattr(loop, "train_step", fail)
    run(far)
    assert differing(server, unbroken) == []


@pytest.mark.slow
def test_a_run_on_google_storage_soak(recipe_tree, unbroken, elsewhere, tmp_path, monkeypatch):
    remote.bucket.cache_clear()
    with gcs_server(tmp_path, monkeypatch) as server:
        run(recipe_of(recipe_tree, launch={"storage": "gs://bucket/runs"}, name="far"))
        elsewhere()
        evaluate_run("gs://bucket/runs/far", "test")
        assert differing(server, unbroken) == []
    remote.bucket.cache_clear()


@pytest.mark.slow
def test_a_run_on_azure_storage_soak(recipe_tree, unbroken, elsewhere, tmp_path, monkeypatch):
    remote.bucket.cache_clear()
    with azure_server(tmp_path / "azurite", monkeypatch):
        run(recipe_of(recipe_tree, launch={"storage": "az://bucket/runs"}, name="far"))
        elsewhere()
        evaluate_run("az://bucket/runs/far", "test")
        elsewhere()
        assert "far" in write_report(["az://bucket/runs/far"], tmp_path / "page.html").read_text()
        for name in SAME:
            assert _same(name, RemoteFolder("az://bucket/runs/far").read(name), unbroken[name]), name
    remote.bucket.cache_clear()


@pytest.mark.slow
def test_ten_random_kills_of_a_run_in_a_bucket(recipe_tree, unbroken, tmp_path):
    """Kill the command ten times, each time as if the next start was on another machine."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_tree | {"name": "far"}))
    chance = random.Random(3)
    with s3_server() as server:
        for number in range(10):
            variables = os.environ | environment(server) | {"STSSL_RUN_CACHE": str(tmp_path / f"machine{number}")}
            command = [sys.executable, "-m", "stssl.commands.cli", "train", str(recipe), f"launch.storage={BUCKET}"]
            before, begun = len(server.requests), time.monotonic()
            with (tmp_path / "log").open("ab") as log:
                process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
                wanted = before + chance.randrange(2, 60)
                while process.poll() is None and len(server.requests) < wanted and time.monotonic() - begun < 300:
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
                process.wait()
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{BUCKET}/far"
        assert differing(server, unbroken) == []
        assert steps_of(files(server)["metrics.jsonl"]) == steps_of(unbroken["metrics.jsonl"])
