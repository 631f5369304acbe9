"""Test Ctrl-C on real commands: one line, exit code 130, no process left, and the same command continues."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml
from processes import finish, start

pytestmark = pytest.mark.slow  # they kill commands


def interrupted(*arguments: str, once: Path | str, limit: float = 200) -> tuple[int, str]:
    """Press Ctrl-C, which a terminal sends to all processes of a command, when a file is there."""
    process = start(sys.executable, "-m", "stssl.commands.cli", *arguments)
    end = time.monotonic() + limit
    while not list(Path("/").glob(str(once).lstrip("/"))) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    return finish(process, limit)


def told(output: str) -> list[str]:
    """Select the lines of an output that are about its end."""
    assert "Traceback" not in output, output[-3000:]
    return [line for line in output.splitlines() if line.startswith("StoppedError: ")]


def file_of(tree: dict, folder: Path) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "recipe.yaml")


def test_kill_by_hand_training_in_one_process_leaves_a_checkpoint_of_that_moment(recipe_tree, tmp_path):
    recipe_tree["schedule"] |= {"steps": 100_000, "evaluate_every": 50_000}
    path = file_of(recipe_tree, tmp_path)
    code, output = interrupted("train", path, once=tmp_path / "runs/run/record.json")
    assert code == 130 and len(told(output)) == 1
    assert (tmp_path / "runs/run/checkpoints/last.pt").exists() == ("after step" in output)


@pytest.mark.ray
def test_kill_by_hand_training_on_ray_workers_ends_in_one_line_without_orphans(recipe_tree, tmp_path):
    recipe_tree["schedule"] |= {"steps": 100_000, "evaluate_every": 20}
    recipe_tree["launch"] |= {"workers": 2}
    path = file_of(recipe_tree, tmp_path)
    code, output = interrupted("train", path, once=tmp_path / "runs/run/checkpoints/last.pt")
    assert (code, len(told(output))) == (130, 1), output[-2000:]


@pytest.mark.ray
def test_kill_by_hand_a_conversion_on_ray_ends_in_one_line_and_continues(tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=60)
    options = ["eurosat", str(archive), str(tmp_path / "s.zarr"), "--coordinates", str(table), "--shard", "4"]
    code, output = interrupted("convert", *options, "--workers", "1", once=tmp_path / ".s.zarr.work/000003.done")
    assert (code, len(told(output))) == (130, 1), output[-2000:]
    process = start(sys.executable, "-m", "stssl.commands.cli", "convert", *options, "--workers", "0")
    assert finish(process, 200)[0] == 0


@pytest.mark.ray
def test_kill_by_hand_a_sweep_on_ray_ends_in_one_line(recipe_tree, tmp_path):
    recipe_tree["schedule"] |= {"steps": 100_000, "evaluate_every": 20}
    recipe_tree["launch"] |= {"workers": 1}
    path = file_of(recipe_tree, tmp_path)
    tree = {"recipe": path, "metric": "accuracy", "trials": 2, "storage": str(tmp_path / "sweeps")}
    tree["search"] = {"optimizer.lr": None}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree))
    once = tmp_path / "sweeps/s/trials/trial-0000/checkpoints/last.pt"
    code, output = interrupted("sweep", str(tmp_path / "s.yaml"), once=once)
    assert (code, len(told(output))) == (130, 1), output[-2000:]
    assert not (tmp_path / "sweeps/s/best.yaml").exists()
