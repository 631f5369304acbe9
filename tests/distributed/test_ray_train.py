"""Runs on real Ray workers that are killed for real, compared with runs that were left alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from stssl.train.checkpoint import read_state

pytestmark = [pytest.mark.ray, pytest.mark.slow]
COMMAND = [sys.executable, "-m", "stssl.cli", "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture
def write(folder, recipe_tree):
    """Writes the tiny recipe for two workers under a name; 30 steps, a checkpoint every 5."""

    def go(name, **launch):
        tree = recipe_tree | {
            "name": name,
            "schedule": {"steps": 30, "warmup": 2, "supervised_start": 2, "evaluate_every": 5},
            "launch": {"workers": 2, "storage": str(folder / "runs"), **launch},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return folder / f"{name}.yaml"

    return go


def start(recipe, *overrides):
    return subprocess.Popen(
        [*COMMAND, str(recipe), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=200):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def weights(folder, name):
    state = read_state(folder / "runs" / name / "checkpoints" / "last.pt")
    assert state["position"]["step"] == 30
    return {key: value for key, value in state["step"].items() if isinstance(value, torch.Tensor)}


def resumed(folder, name):
    """After which steps a run was started again."""
    record = json.loads((folder / "runs" / name / "record.json").read_text())
    return [start["step"] for start in record["starts"][1:]]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def validated(folder, name):
    path = folder / "runs" / name / "metrics.jsonl"
    if not path.exists():
        return 0
    with contextlib.suppress(json.JSONDecodeError):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return max((row["step"] for row in rows if row["kind"] == "validation"), default=0)
    return 0


def wait_for(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def descendants(pid):
    """Process ids and command lines below a process."""
    children, lines = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
            lines[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
    found, waiting = {}, [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = lines.get(child, "")
            waiting.append(child)
    return found


@pytest.fixture(scope="module")
def unbroken(folder):
    """Weights of the run that nobody disturbed, made by the first test."""
    return {}


def test_two_workers_train_to_the_end(folder, write, unbroken):
    code, output = finish(start(write("unbroken")))
    assert code == 0, output
    assert output.strip().splitlines()[-1] == str(folder / "runs" / "unbroken")
    record = json.loads((folder / "runs" / "unbroken" / "record.json").read_text())
    assert [(start["step"], start["ranks"]) for start in record["starts"]] == [(0, 2)]
    unbroken.update(weights(folder, "unbroken"))
    early = read_state(folder / "runs" / "unbroken" / "checkpoints" / "previous.pt")
    assert not same({key: early["step"][key] for key in unbroken}, unbroken)  # the control: weights do move


def test_a_killed_worker_is_replaced_and_the_run_ends_the_same(folder, write, unbroken):
    process = start(write("worker"))
    wait_for(lambda: validated(folder, "worker") >= 10, "the second validation")
    workers = [pid for pid, line in descendants(process.pid).items() if "RayTrainWorker" in line]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert same(weights(folder, "worker"), unbroken)
    assert 5 <= resumed(folder, "worker")[-1] < 30


def test_a_killed_job_goes_on_and_ends_the_same(folder, write, unbroken):
    recipe = write("job")
    process = start(recipe)
    wait_for(lambda: validated(folder, "job") >= 10, "the second validation")
    everything = [process.pid, *descendants(process.pid)]
    for pid in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (folder / "runs" / "job" / "done.json").exists()
    code, output = finish(start(recipe))
    assert code == 0, output
    assert same(weights(folder, "job"), unbroken)
    assert 5 <= resumed(folder, "job")[-1] < 30


def test_more_workers_than_resources_is_an_error(write):
    code, output = finish(start(write("many"), "launch.workers=7", "launch.cpus_per_worker=9"))
    assert code == 2
    assert "7 workers with 9 CPU each need 63 CPU" in output and "Traceback" not in output
