"""Test sweeps on real Ray: trials that are stopped, that raise, and a driver that is killed."""

import contextlib
import json
import sys
import time

import psutil
import pytest
import yaml
from processes import family, finish, kill, start, still_there

optuna = pytest.importorskip("optuna")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
COMMAND = [sys.executable, "-m", "stssl.commands.cli", "sweep"]


@pytest.fixture
def write(recipe_tree, tmp_path):
    """Writes a recipe of a few seconds and a sweep over it."""

    def go(name, recipe=None, **sweep):
        tree = recipe_tree | {"launch": {"workers": 1, "max_failures": 0, "storage": str(tmp_path / "runs")}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree | (recipe or {})))
        tree = {"recipe": "recipe.yaml", "metric": "accuracy", "storage": str(tmp_path / "sweeps"), **sweep}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / f"{name}.yaml"

    return go


def wait_for(condition, what, process, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the sweep ended before {what}: {process.stdout.read()}"
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)


def study_of(folder):
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def states(folder):
    """Read the state of each trial by number, with plain Optuna."""
    with contextlib.suppress(Exception):
        return {trial.number: trial.state.name for trial in study_of(folder).trials}
    return {}


@pytest.mark.slow
def test_soak_of_trials_that_stop_or_fail_lets_go_of_everything_and_ends(write, tmp_path):
    file = write(
        "four",
        {"schedule": {"steps": 16, "warmup": 0, "supervised_start": 2, "evaluate_every": 4}},
        trials=4,
        scheduler={"name": "asha", "grace": 4, "reduction": 2},
        sampler={"name": "grid"},
        points=[{"optimizer.lr": 0.003}],
        search={"optimizer.lr": [0.003, 1.0e-9, 1.0e30, 2.0e-9]},
    )
    process = start(*COMMAND, str(file))
    wait_for(lambda: "COMPLETE" in states(tmp_path / "sweeps" / "four").values(), "a complete trial", process)
    started = family(process.pid).keys() - {process.pid}
    children = [one for one in psutil.process_iter() if one.pid in started]  # some may have ended since
    code, output = finish(process, 900)
    assert code == 0, output
    folder = tmp_path / "sweeps" / "four"
    assert output.strip().splitlines()[-2:] == [str(folder / "best.yaml"), str(folder / "report.html")]
    trials = study_of(folder).trials
    ended = [trial.state.name for trial in trials]
    assert len(ended) == 4 and set(ended) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert ended.count("PRUNED") >= 1 and ended.count("COMPLETE") >= 1
    raised = [trial for trial in trials if trial.params["optimizer.lr"] == 1.0e30]
    assert {trial.state.name for trial in raised} == {"FAIL"}
    assert all("not finite" in trial.user_attrs["reason"] for trial in raised)
    assert len(children) > 5
    assert not still_there(children)


@pytest.mark.slow
def test_a_killed_sweep_continues_and_loses_nothing(write, tmp_path):
    file = write(
        "killed",
        {"schedule": {"steps": 32, "warmup": 0, "supervised_start": 2, "evaluate_every": 4}},
        trials=3,
        scheduler={"name": "none"},
        search={"algorithm.threshold": {"low": 0.2, "high": 0.9}},
    )
    folder = tmp_path / "sweeps" / "killed"
    process = start(*COMMAND, str(file))

    def one_done_one_under_way():
        known = states(folder)
        running = [number for number, state in known.items() if state == "RUNNING"]
        return "COMPLETE" in known.values() and any(checkpoint(folder, number).exists() for number in running)

    wait_for(one_done_one_under_way, "one trial complete and another one with a checkpoint", process)
    everything = family(process.pid)
    kill([process.pid])
    kill(everything)
    process.communicate(timeout=60)
    before = study_of(folder).trials
    finished = [trial for trial in before if trial.state.name == "COMPLETE"]
    running = [trial for trial in before if trial.state.name == "RUNNING"]
    assert finished and running
    steps = {trial.number: last_step(folder, trial.number) for trial in running}
    times = {trial.number: trained(folder, trial.number) for trial in finished}

    code, output = finish(start(*COMMAND, str(file)), 900)
    assert code == 0, output
    after = study_of(folder).trials
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    for old in finished:
        assert after[old.number].values == old.values and after[old.number].params == old.params
        assert trained(folder, old.number) == times[old.number]
    for old in running:
        assert after[old.number].params == old.params
    resumed = [number for number, step in steps.items() if step]
    assert resumed
    for number in resumed:
        # Rows up to the checkpoint are those of the first start: a run from scratch would have dropped them.
        rows = [row["step"] for row in metrics(folder, number) if row["kind"] == "validation"]
        assert rows == list(range(4, 33, 4))

    other = yaml.safe_load(file.read_text()) | {"search": {"algorithm.threshold": {"low": 0.1, "high": 0.9}}}
    file.write_text(yaml.safe_dump(other))
    code, output = finish(start(*COMMAND, str(file)), 900)
    assert code == 2 and "searched something else" in output and "Traceback" not in output


def checkpoint(folder, number):
    return folder / "trials" / f"trial-{number:04d}" / "checkpoints" / "last.pt"


def metrics(folder, number):
    path = folder / "trials" / f"trial-{number:04d}" / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def last_step(folder, number):
    return max((row["step"] for row in metrics(folder, number) if row["kind"] == "validation"), default=0)


def trained(folder, number):
    return (folder / "trials" / f"trial-{number:04d}" / "done.json").stat().st_mtime_ns
