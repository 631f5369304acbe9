"""Runs on real Ray workers, nodes and drivers that are killed for real, compared with a run that was left alone."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from processes import family, finish, kill, start

from stssl.training.checkpoints import read_state

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
COMMAND = [sys.executable, "-m", "stssl.commands.cli", "train"]
SCRIPT = Path(__file__).with_name("simulated.py")
STEPS = {"elastic": 450, "unbroken": 60, "worker": 60, "node": 60, "job": 60, "asked": 60, "many": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, store):
    """Holds the tiny recipe for two workers under several names."""
    folder = tmp_path_factory.mktemp("ray")
    for name, steps in STEPS.items():
        tree = tiny.tiny_recipe(store, folder / "runs") | {
            "name": name,
            "schedule": {
                "steps": steps,
                "warmup": 2,
                "supervised_start": 2,
                "evaluate_every": 20 if name == "elastic" else 10,
            },
            "logging": {"every": 10, "tensorboard": False},
        }
        tree["launch"]["workers"] = 2
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def simulated(folder, *parts):
    """At which step each run on simulated nodes was disturbed."""
    code, output = finish(start(sys.executable, str(SCRIPT), str(folder), *parts), 900)
    found = json.loads((folder / "seen.json").read_text())
    assert code == 0 and found.keys() == set(parts), (found, output[-4000:])
    return found


@pytest.fixture(scope="module")
def grown(folder):
    """A run on one node that gets a second one."""
    return simulated(folder, "many", "elastic")


@pytest.fixture(scope="module")
def unbroken(folder):
    """A run that nothing disturbs, on this machine."""
    code, output = finish(train(folder, "unbroken"), 300)
    assert code == 0 and starts(folder, "unbroken") == [(0, 2)], output


@pytest.fixture(scope="module")
def disturbed(folder):
    """Runs on three nodes that lose a worker, and a node."""
    return simulated(folder, "worker", "node")


def train(folder, name, *overrides):
    return start(*COMMAND, str(folder / f"{name}.yaml"), *overrides)


def weights(folder, name):
    state = read_state(folder / "runs" / name / "checkpoints" / "last.pt")
    assert state["progress"]["step"] == STEPS[name]
    return {key: value for key, value in state["step"].items() if isinstance(value, torch.Tensor)}


def same(folder, one, other):
    one, other = (weights(folder, name) for name in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def starts(folder, name):
    """Step and ranks of each start of a run."""
    record = json.loads((folder / "runs" / name / "record.json").read_text())
    return [(start["step"], start["ranks"]) for start in record["starts"]]


def rows(folder, name, kind):
    """Steps of a run's metrics so far."""
    path = folder / "runs" / name / "metrics.jsonl"
    with contextlib.suppress(json.JSONDecodeError, OSError):
        return [row["step"] for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]
    return []


@pytest.mark.parametrize("lost", ["worker", "node"])
def test_a_run_continues_and_ends_the_same_after_a_kill_of(folder, unbroken, disturbed, lost):
    assert 20 <= disturbed[lost] < 60
    (first, _), *_, (again, ranks) = starts(folder, lost)
    assert (first, ranks) == (0, 2) and 10 <= disturbed[lost] - 10 <= again < 60
    assert same(folder, lost, "unbroken")


def test_soak_an_elastic_run_takes_in_a_node_that_joins(folder, grown):
    (first, alone), *_, (grown, together) = starts(folder, "elastic")
    assert (first, alone, together) == (0, 1, 2) and 20 <= grown < 450
    assert rows(folder, "elastic", "train") == list(range(10, 451, 10))
    weights(folder, "elastic")


def test_a_killed_job_continues_and_ends_the_same(folder, unbroken):
    process = train(folder, "job")
    end = time.monotonic() + 200
    while max(rows(folder, "job", "validation"), default=0) < 20:
        assert process.poll() is None and time.monotonic() < end, "no second validation"
        time.sleep(0.1)
    kill(family(process.pid))
    process.communicate(timeout=30)
    assert not (folder / "runs" / "job" / "done.json").exists()
    code, output = finish(train(folder, "job"), 200)
    assert code == 0 and output.strip().splitlines()[-1] == str(folder / "runs" / "job"), output
    assert 10 <= starts(folder, "job")[-1][0] < 60
    assert same(folder, "job", "unbroken")


def test_a_job_that_is_asked_to_end_and_not_killed_saves_its_last_step(folder, unbroken):
    process = train(folder, "asked")
    end = time.monotonic() + 200
    while max(rows(folder, "asked", "validation"), default=0) < 20:
        assert process.poll() is None and time.monotonic() < end, "no second validation"
        time.sleep(0.1)
    process.terminate()
    code, output = finish(process, 60)
    said = re.search(r"asked to end \(SIGTERM\) after step (\d+); the same command continues", output)
    assert code == 143 and said, output
    state = read_state(folder / "runs" / "asked" / "checkpoints" / "last.pt")
    assert state["progress"]["step"] == int(said[1]) >= 20 and len(state["ranks"]) == 2
    code, output = finish(train(folder, "asked"), 200)
    assert code == 0 and starts(folder, "asked") == [(0, 2), (int(said[1]), 2)], output
    assert same(folder, "asked", "unbroken")


def test_soak_more_workers_than_resources_is_an_error(grown):
    assert "7 workers with 9 CPU each need 63 CPU, and Ray has 1" in grown["many"]
