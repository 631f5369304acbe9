"""A run from Python, by the functions in the order that their names suggest, and runs of release 0.1."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from test_loop import last, make, same

import stssl.recipes
import stssl.training
from stssl.base.config import validate
from stssl.base.errors import ConfigError, RunError
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, load_training_recipe
from stssl.training.checkpoints import Checkpoints, read_state, require_state, write_state
from stssl.training.launch import check_run, run
from stssl.training.loop import train_to_end
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run, load_run

CPU = torch.device("cpu")


def test_a_run_needs_no_more_than_opening_resuming_training_and_finishing(recipe_tree):
    recipe, other = make(recipe_tree, name="by-hand"), make(recipe_tree, name="by-run")
    check_run(recipe)
    train_state = open_train_state(recipe, CPU)
    assert not RunFolder.of(recipe).path.exists()  # nothing is written before it is resumed
    assert train_state.resume() == []
    train_state.finish(train_to_end(train_state, lambda metrics: None))
    folder = run(other)
    assert same(last(recipe)["step"], last(other)["step"])
    mine = {path.relative_to(train_state.folder.path) for path in train_state.folder.path.rglob("*.[jpsy]*")}
    assert mine == {path.relative_to(folder.path) for path in folder.path.rglob("*.[jpsy]*")}
    assert train_state.folder.finished() == folder.finished()


def test_a_run_by_hand_resumes_and_refuses_another_recipe(recipe_tree):
    recipe = make(recipe_tree, name="by-hand")
    train_state = open_train_state(recipe, CPU)
    train_state.resume()
    train_to_end(train_state, lambda metrics: None)
    again = open_train_state(recipe, CPU)
    again.resume()
    assert again.progress.step == 12
    with pytest.raises(RunError, match=r"differs in optimizer\.lr"):
        open_train_state(make(recipe_tree, name="by-hand", optimizer__lr=0.1), CPU).resume()


def test_a_trained_run_is_loaded_by_its_path_alone(recipe_tree):
    folder = run(make(recipe_tree, schedule__steps=4))
    trained = load_run(str(folder.path))
    assert trained.steps == 4 and trained.recipe == folder.recipe() == RunFolder(str(folder.path)).recipe()
    kept = last(trained.recipe, "best")["step"]
    assert same(trained.step.state_dict(), {name: kept[name] for name in trained.step.state_dict()})
    assert load_run(folder, "last", CPU).steps == 4
    with pytest.raises(RunError, match=r"is not a run: it has no recipe\.yaml"):
        load_run(folder.path / "nowhere")


def of_first_release(folder):
    """Rewrite a run's files as 0.1.0 wrote them: `neighbours` in the recipe, `position` in checkpoints."""
    path = folder.path / "recipe.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["neighbours"] = tree.pop("votes")
    path.write_text(yaml.safe_dump(tree))
    record = json.loads((folder.path / "record.json").read_text())
    record["versions"]["stssl"] = "0.1.0"
    (folder.path / "record.json").write_text(json.dumps(record))
    for name in ("last", "previous", "best"):
        file = folder.checkpoints.path(name)
        state = read_state(file)
        state["position"] = state.pop("progress")
        file.unlink()
        write_state(state | {"written_by": "0.1.0"}, file)
    return folder


@pytest.fixture
def old(recipe_tree):
    recipe = make(recipe_tree, name="old", schedule__steps=8)
    return recipe, of_first_release(run(recipe))


WORDS = r"was written by stssl 0\.1.*cannot read it\. Train again under another name.*or install stssl 0\.1"


@pytest.mark.parametrize("started", [True, False])
def test_a_run_of_0_1_says_so_and_what_to_do(old, started):
    recipe, folder = old
    if not started:  # a run that was killed before it wrote its record
        (folder.path / "record.json").unlink()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for use in (
        lambda: run(recipe),
        lambda: open_train_state(recipe, CPU).resume(),
        lambda: evaluate_run(folder.path, "validation"),
        lambda: load_run(folder),
        lambda: RunFolder.existing(folder.path).recipe(),
    ):
        with pytest.raises(RunError, match=WORDS) as caught:
            use()
        assert str(folder.path) in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_checkpoint_of_0_1_says_so_wherever_it_lies(old):
    recipe, folder = old
    path = folder.checkpoints.path("best")
    with pytest.raises(RunError, match=WORDS) as caught:
        require_state(read_state(path), path)
    assert str(path) in str(caught.value)
    problems = [str(state) for _, state in Checkpoints(path.parent).newest(recipe.hash())]
    assert len(problems) == 2 and all("written by stssl 0.1.0" in problem for problem in problems)


def test_control_a_run_of_this_release_is_read(recipe_tree):
    folder = run(make(recipe_tree, schedule__steps=4))
    assert folder.recipe() and json.loads((folder.path / "record.json").read_text())["versions"]["stssl"] >= "0.2"


@pytest.mark.parametrize(("kind", "words"), [(Recipe, "votes"), (PretrainRecipe, "knn")])
def test_a_recipe_key_of_0_1_gets_its_present_name(kind, words, recipe_tree, tmp_path):
    tree = recipe_tree | {"neighbours": {"name": "none"}}
    with pytest.raises(ConfigError, match=rf"unknown key neighbours: did you mean {words}\?"):
        validate(kind, tree, "old.yaml")
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"old\.yaml: unknown key neighbours: did you mean votes\?"):
        load_training_recipe(tmp_path / "old.yaml")


@pytest.mark.parametrize("folder", [stssl.recipes, stssl.training], ids=lambda folder: folder.__name__)
def test_folders_export_names_and_load_them_when_they_are_used(folder):
    assert all(getattr(folder, name).__module__.startswith(folder.__name__) for name in folder.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        folder.nothing  # noqa: B018
    program = f"import sys, {folder.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
