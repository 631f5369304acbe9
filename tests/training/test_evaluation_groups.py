"""What an evaluation changes and divides: metadata that networks see, and groups of patches."""

import contextlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import finish, start
from tiny import tiny_recipe

from stssl.api.run import Run
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, DataError
from stssl.recipes.recipe import Recipe
from stssl.scoring.groups import GroupOptions
from stssl.training.launch import run
from stssl.training.trained_run import evaluate_fully, predict_share


def trained(store, folder, **changes):
    steps = {"schedule": {"steps": 12, "warmup": 0, "supervised_start": 0}, "optimizer": {"lr": 0.02}}
    return run(validate(Recipe, merge(merge(tiny_recipe(store, folder), steps), changes), "test")).path


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    return trained(store, tmp_path_factory.mktemp("runs"))


def test_metadata_is_changed_for_the_networks_that_see_it(folder):
    found = {kind: evaluate_fully(folder, "test", metadata=kind) for kind in ("true", "absent", "moved:2000km")}
    true = found["true"].scores
    for kind in ("absent", "moved:2000km"):
        assert found[kind].scores["student"] == true["student"]
        assert found[kind].scores["teacher"]["loss"] != true["teacher"]["loss"]
    names = {path.name for path in (folder / "evaluation").glob("*.json")}
    assert {"test.json", "test-absent.json", "test-moved-2000km.json"} <= names
    assert json.loads((folder / "evaluation" / "test-absent.json").read_text())["metadata"] == "absent"
    assert Run.open(folder).scores("test") == true
    assert evaluate_fully(folder, "test", metadata="true").scores == true


def test_moved_dates_and_places_change_nothing_where_none_are_known(folder):
    with pytest.raises(ConfigError, match="no test patch has a date, so moved:90d would change nothing"):
        evaluate_fully(folder, "test", metadata="moved:90d")


def test_a_student_without_metadata_is_not_moved(store, tmp_path):
    path = trained(store, tmp_path, model={"metadata": "none"})
    with pytest.raises(ConfigError, match="sees no place and no date"):
        evaluate_fully(path, "test", metadata="absent")


def test_a_control_trained_without_metadata_scores_the_same_wherever_it_is_moved(store, tmp_path):
    encoder = {"name": "raw", "place": False, "date": False}
    path = trained(store, tmp_path, model={"metadata": "direct", "encoder": encoder})
    true, moved = (evaluate_fully(path, "test", metadata=kind).scores for kind in ("true", "moved:2000km"))
    assert moved == true


def test_groups_lie_beside_the_scores(folder):
    groups = GroupOptions(("block", "label"), 200, least=2, degrees=0.5)
    found = evaluate_fully(folder, "test", metadata="absent", groups=groups)
    assert found.groups and found.path.name == "test-absent.json"
    rows = Run.open(folder).groups("test", "absent")
    assert {row["network"] for row in rows} == {"student", "teacher"}
    whole = {row["score"]: row["value"] for row in rows if (row["network"], row["column"]) == ("teacher", "all")}
    assert whole == found.scores["teacher"]
    with pytest.raises(ConfigError, match="no column 'county'"):
        evaluate_fully(folder, "test", groups=GroupOptions(("county",)))
    with pytest.raises((ConfigError, DataError), match="unknown part"):
        evaluate_fully(folder, "tset", groups=groups)


def test_workers_that_share_the_batches_give_the_same_files(folder):
    """The Ray workers' own function, called for each share in this process."""
    alone = evaluate_fully(folder, "test", metadata="moved:2000km")
    logits = logits_of(alone)

    def elsewhere(asked):
        parts = [predict_share(asked, (number, 3)) for number in range(3)]
        assert sorted(len(part["student"]) for part in parts) == [0, 8, 32]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    shared = evaluate_fully(folder, "test", metadata="moved:2000km", elsewhere=elsewhere)
    found = logits_of(shared)
    assert shared == alone and found.keys() == {"logits_student", "logits_teacher"}
    assert all(np.array_equal(found[name], value) for name, value in logits.items())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soak_ray_workers_give_the_same_files_as_one_process(folder):
    """`stssl evaluate RUN --workers 2` in the folder of the runs."""
    alone = evaluate_fully(folder, "test")
    written, logits = alone.path.read_text(), logits_of(alone)
    other = evaluate_fully(folder, "test", metadata="absent")  # control: these logits differ
    (folder / "evaluation").rename(folder / "evaluation-alone")
    command = (sys.executable, "-m", "stssl.commands.cli", "evaluate", folder.name, "--workers", "2")
    with contextlib.chdir(folder.parent):
        code, output = finish(start(*command), 400)
    assert code == 0 and "test, 40 patches" in output and "Traceback" not in output, output
    assert alone.path.read_text() == written
    found, others = logits_of(alone), logits_of(replace(other, path=folder / "evaluation-alone" / other.path.name))
    assert found.keys() == logits.keys() and all(np.array_equal(found[name], logits[name]) for name in found)
    assert not np.array_equal(found["logits_teacher"], others["logits_teacher"])


def logits_of(files):
    with np.load(files.path.with_suffix(".npz"), allow_pickle=False) as found:
        return {name: found[name] for name in found.files if name.startswith("logits")}
