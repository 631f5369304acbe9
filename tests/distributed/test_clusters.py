"""Runs on several simulated nodes: one is lost in mid-run, another joins an elastic run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from stssl.train.checkpoint import read_state

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
SCRIPT = Path(__file__).with_name("simulated.py")


@pytest.fixture
def simulate(recipe_tree, tmp_path):
    """Runs the script with the tiny recipe; returns what it saw and where its runs are."""

    def go(kind, steps):
        schedule = {"steps": steps, "warmup": 2, "supervised_start": 2, "evaluate_every": 20}
        logging = {"every": 20, "tensorboard": False}
        tree = recipe_tree | {"schedule": schedule, "launch": {"workers": 2}, "logging": logging}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), kind, str(tmp_path)], stdout=log, stderr=log, start_new_session=True
            )
            try:
                process.wait(900)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert (tmp_path / "seen.json").exists(), (tmp_path / "log").read_text()[-4000:]
        seen = json.loads((tmp_path / "seen.json").read_text())
        assert seen.get("ended"), (seen, (tmp_path / "log").read_text()[-4000:])
        return seen, tmp_path / "runs"

    return go


def weights(runs, name, steps):
    state = read_state(runs / name / "checkpoints" / "last.pt")
    assert state["position"]["step"] == steps
    return {key: value for key, value in state["step"].items() if isinstance(value, torch.Tensor)}


def starts(runs, name):
    return json.loads((runs / name / "record.json").read_text())["starts"]


def test_a_run_that_loses_a_node_ends_with_the_same_weights(simulate):
    seen, runs = simulate("lost", 120)
    assert 40 <= seen["removed_at"] < 120
    assert [start["step"] for start in starts(runs, "unbroken")] == [0]
    first, *again = (start["step"] for start in starts(runs, "lost"))
    assert first == 0 and 20 <= seen["removed_at"] - 20 <= again[-1] < 120
    one, other = (weights(runs, name, 120) for name in ("unbroken", "lost"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    early = read_state(runs / "lost" / "checkpoints" / "previous.pt")["step"]  # the control: weights do move
    assert not all(torch.equal(early[key], one[key]) for key in one)


def test_an_elastic_run_takes_in_a_node_that_joins(simulate):
    _, runs = simulate("joined", 1500)
    first, *_, grown = starts(runs, "elastic")
    assert (first["ranks"], grown["ranks"]) == (1, 2) and grown["step"] >= 40
    weights(runs, "elastic", 1500)
    rows = [json.loads(line) for line in (runs / "elastic" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(20, 1501, 20))
