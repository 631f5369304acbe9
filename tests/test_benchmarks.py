"""Benchmark scripts: what they start ends with them."""

import contextlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import study

class Job:
    name, tree = "job", None

    def run(self):
        Path({pid!r}).write_text(str(os.getpid()) + "\\n")
        time.sleep(60)

if __name__ == "__main__":
    {change}
    study.carry_out([Job()], 1)
"""


@pytest.fixture
def study(monkeypatch):
    spec = importlib.util.spec_from_file_location("study", BENCHMARKS / "study.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study", found)
    spec.loader.exec_module(found)
    return found


def test_recipes_that_change_while_a_study_runs_change_nothing(study, recipe_tree, tmp_path):
    file = tmp_path / "one.yaml"
    job = study.Job(str(file), ("optimizer.lr=0.5",), "blocks", 3, tmp_path)
    file.write_text(yaml.safe_dump(recipe_tree))
    assert (job.tree["ema"]["decay"], job.tree["optimizer"]["lr"], job.tree["labels"]["seed"]) == (0.9, 0.5, 3)
    file.write_text(yaml.safe_dump(recipe_tree | {"ema": {"decay": 0.8}}))
    assert pickle.loads(pickle.dumps(job)).tree["ema"]["decay"] == 0.9
    assert study.Job(*[getattr(job, name) for name in job.__dataclass_fields__]).tree["ema"]["decay"] == 0.8


def test_a_recipe_that_is_wrong_is_told_before_any_run(study, recipe_tree, tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(recipe_tree))
    jobs = [study.Job(str(file), change, "blocks", 0, tmp_path / "runs") for change in ((), ("ema.decy=1",))]
    with pytest.raises(SystemExit, match=r"did you mean decay"):
        study.carry_out(jobs, 1)
    assert not (tmp_path / "runs").exists()


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.mark.parametrize(("change", "leaves"), [("pass", True), ("study._leave_with = print", False)])
def test_workers_of_a_study_that_is_killed_end_too(change, leaves, tmp_path):
    """The second case is the control: without the code under test, the workers continue."""
    script, file = tmp_path / "killed.py", tmp_path / "pid"
    script.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS), pid=str(file), change=change))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as study:
        assert until(lambda: file.exists() and file.read_text().endswith("\n"), 60)
        study.kill()
    worker = Path("/proc", file.read_text().strip())
    try:
        assert until(lambda: not worker.exists(), 20 if leaves else 6) == leaves
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
