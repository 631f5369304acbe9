"""Results in a Ray job's copy of the working folder are warned of, since Ray deletes the copy."""

import logging
from unittest import mock

import pytest
import yaml

from stssl.base.job_copy import in_job_copy, vanishing
from stssl.commands.cli import main
from stssl.recipes.recipe import load_training_recipe
from stssl.training.launch import run


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """Works in a folder like the one that Ray makes for a job."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_relative_paths_lie_in_the_copy_and_others_do_not(copy, tmp_path):
    assert in_job_copy("runs") and in_job_copy(copy / "runs")
    assert not in_job_copy(tmp_path / "runs") and not in_job_copy("s3://bucket/runs")
    assert "launch.storage: runs lies in this job's copy" in vanishing("launch.storage", "runs")


def test_control_elsewhere_relative_paths_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vanishing("launch.storage", "runs") is None


def test_a_run_warns_and_trains(copy, recipe_tree, tmp_path, caplog):
    recipe_tree["schedule"] |= {"steps": 3, "warmup": 1, "evaluate_every": 3, "supervised_start": 0}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
    with caplog.at_level(logging.WARNING, "stssl"):
        assert run(load_training_recipe("recipe.yaml", ["launch.storage=runs"])).finished()
        run(load_training_recipe("recipe.yaml", [f"launch.storage={tmp_path}/lasting"]))
    assert [text.split(" lies")[0] for text in caplog.messages if "lies in this job's copy" in text] == [
        f"launch.storage: {copy}/runs"
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["synthesize", "made", "--patches", "1"], "OUT: made"),
        (["report", "none", "--out", "page.html"], "--out: page.html"),
        (["sweep", "sweep.yaml", "storage=found"], "storage: "),
        (["convert", "eurosat", "none", "made.zarr"], "STORE: made.zarr"),
    ],
)
def test_commands_warn_of_results_in_the_copy(copy, words, named, caplog, recipe_tree):
    recipe_tree["data"]["store"] = "none"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
    (copy / "sweep.yaml").write_text("recipe: recipe.yaml\ntrials: 1\nsearch: {optimizer.lr: auto}\n")
    with mock.patch("sys.argv", ["stssl", *words]), pytest.raises(SystemExit):
        main()
    assert any(text.startswith(named) and "lies in this job's copy" in text for text in caplog.messages)
