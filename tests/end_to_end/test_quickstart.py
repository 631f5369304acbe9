"""Test the main job, small: archive, conversion with Ray tasks, two Ray Train workers, evaluation, report."""

import json
import subprocess
import sys

import pytest
import torch

from stssl.store.store import Store
from stssl.training.checkpoints import read_state

pytestmark = pytest.mark.ray


def test_quickstart(tmp_path):
    out = tmp_path / "out"
    small = ["schedule.steps=20", "schedule.warmup=2", "schedule.supervised_start=5", "schedule.evaluate_every=10"]
    command = [sys.executable, "-m", "stssl.commands.cli", "quickstart", "--out", str(out), "--patches", "300", *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout.strip().splitlines()[-1]
    assert report == str(out / "report.html")
    assert "<svg" in (out / "report.html").read_text()
    store = Store.open(out / "store.zarr")
    assert store.size == 300 and store.bands[:3] == ("B04", "B03", "B02")
    scores = json.loads((out / "runs" / "quickstart" / "evaluation" / "test.json").read_text())
    assert set(scores["networks"]) == {"student", "teacher"}
    record = json.loads((out / "runs" / "quickstart" / "record.json").read_text())
    assert [(start["step"], start["ranks"]) for start in record["starts"]] == [(0, 2)]
    early, last = (
        read_state(out / "runs" / "quickstart" / "checkpoints" / f"{name}.pt")["step"] for name in ("previous", "last")
    )
    tensors = [key for key, value in last.items() if isinstance(value, torch.Tensor)]
    assert not all(torch.equal(early[key], last[key]) for key in tensors)  # weights do move
    assert any((out / "runs" / "quickstart" / "tensorboard").iterdir())
    assert not (out / "archive").exists() and "deleted archive (--keep all keeps all)" in done.stderr
