"""What a run that comes back must find as it was, and what it can do without."""

import json
import shutil
import signal

import pytest
import tiny
import torch
from processes import exit_code
from test_loop import kill_at, last, make, same, signalled

from stssl.base.batch import IGNORED, Progress, Stream
from stssl.base.errors import ConfigError, DataError, RunError
from stssl.data.loader import StreamSource
from stssl.recipes import build
from stssl.recipes.build import check_recipe
from stssl.recipes.run_data import open_data
from stssl.training.checkpoints import Checkpoints
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run


@pytest.fixture
def moving(recipe_tree, store, tmp_path):
    """The tiny recipe on a store of its own, and what puts another one in its place."""
    path = tmp_path / "moving.zarr"
    shutil.copytree(store, path)

    def change():
        shutil.rmtree(path)
        (tmp_path / "other").mkdir()
        shutil.move(tiny.tiny_store(tmp_path / "other", per_class=24), path)

    return make(recipe_tree, data__store=str(path), algorithm={"name": "flexmatch"}), change


def test_another_store_is_refused_and_the_record_kept(moving):
    recipe, change = moving
    kill_at(recipe, 6, written=True)
    record = (RunFolder.of(recipe).path / "record.json").read_text()
    change()
    with pytest.raises(RunError, match="has other patches or labels than when"):
        run(recipe)
    with pytest.raises(RunError, match="has other patches or labels than when"):
        evaluate_run(RunFolder.of(recipe).path, "validation")
    assert (RunFolder.of(recipe).path / "record.json").read_text() == record


def test_a_run_whose_patience_had_ended_takes_no_further_step(recipe_tree):
    patient = make(recipe_tree, name="patient", optimizer__lr=1e-12, schedule__patience=4)
    run(patient)
    folder = RunFolder.of(patient)
    ended = folder.finished()
    assert ended["steps"] < 12  # else this test is about nothing
    (folder.path / "done.json").unlink()
    run(patient)
    assert folder.finished() == ended


def test_a_kill_amid_a_write_costs_neither_the_best_weights_nor_disk(recipe_tree):
    recipe = make(recipe_tree, name="amid", schedule__evaluate_every=6)
    kill_at(recipe, 9)
    folder = RunFolder.of(recipe).checkpoints.folder
    (folder / "best.pt").unlink()
    (folder / ".fresh.pt.1").write_bytes(b"half")
    assert exit_code(signalled, recipe.tree(), 7, signal.SIGKILL) == -signal.SIGKILL
    assert same(last(recipe, "best")["step"], last(recipe)["step"])
    assert not list(folder.glob(".*"))


def test_control_a_best_of_an_earlier_step_is_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"step": torch.ones(1)}, best=True)
    checkpoints.wait()
    checkpoints.mend({"step": torch.zeros(1)}, best=False)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 1


def test_the_source_of_weights_may_be_gone(recipe_tree):
    source = make(recipe_tree, name="source", schedule__steps=4)
    run(source)
    recipe = make(recipe_tree, name="second", model__weights="run:source")
    kill_at(recipe, 6, written=True)
    shutil.rmtree(RunFolder.of(source).path)
    run(recipe)
    assert RunFolder.of(recipe).finished()["steps"] == 12
    with pytest.raises(ConfigError, match=r"there is no folder .*source"):  # the control: a new run needs it
        run(make(recipe_tree, name="third", model__weights="run:source"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"backbone": "vit_tinny", "metadata": "none"}}, "timm has no 'vit_tinny'"),
        ({"algorithm": {"name": "cap"}}, "cap"),
    ],
)
def test_recipes_that_cannot_run_take_no_name(recipe_tree, changes, words):
    recipe = make(recipe_tree, **changes)
    with pytest.raises(ConfigError, match=words):
        run(recipe)
    assert not RunFolder.of(recipe).path.exists()


def test_a_validation_part_without_labels_is_found_out_before_training(recipe_tree, monkeypatch):
    recipe = make(recipe_tree)
    check_recipe(recipe)  # the control
    data = open_data(recipe)
    data.targets[data.split.validation] = IGNORED
    monkeypatch.setattr(build, "open_data", lambda recipe: data)
    with pytest.raises(DataError, match=r"none of the .* validation patches has a label"):
        run(recipe)
    assert not RunFolder.of(recipe).path.exists()


def test_steps_that_were_left_out_are_not_told_of_twice(recipe_tree):
    folder = RunFolder.of(make(recipe_tree, name="rows"))
    folder.path.mkdir(parents=True)
    for step in range(7):
        folder.append({"step": step}, "nonfinite.jsonl")
        folder.append({"step": step})
    folder.drop_rows_after(4)
    assert [row["step"] for row in folder.rows("nonfinite.jsonl")] == [0, 1, 2, 3]
    assert [row["step"] for row in folder.rows()] == [0, 1, 2, 3, 4]


def test_the_shipped_student_is_the_evaluated_one(recipe_tree):
    from safetensors.torch import load_file

    recipe = make(recipe_tree, name="shipped", schedule__steps=4)
    run(recipe)
    folder = RunFolder.of(recipe)
    kept, prefix = last(recipe, "best")["step"], "averages.student.network."
    shipped = load_file(folder.checkpoints.folder / "student.safetensors")
    assert shipped.keys() == {key.removeprefix(prefix) for key in kept if key.startswith(prefix)}
    assert all(torch.equal(value, kept[prefix + key]) for key, value in shipped.items())
    assert len(json.loads((folder.path / "labels.json").read_text())["prior"]) == 10


def test_losses_that_begin_amid_a_window_are_means_over_their_own_steps(recipe_tree):
    """Rows of every step tell what a row of all four must be."""
    found = {}
    for every in (1, 4):
        recipe = make(recipe_tree, name=f"every{every}", schedule__steps=4, logging__every=every)
        run(recipe)
        found[every] = [row for row in RunFolder.of(recipe).rows() if row["kind"] == "train"]
    losses = [row["student_unlabeled"] for row in found[1] if "student_unlabeled" in row]
    assert len(losses) == 2  # two steps are supervised alone
    assert found[4][0]["student_unlabeled"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert found[4][0]["loss"] == pytest.approx(sum(row["loss"] for row in found[1]) / 4, rel=1e-5)


def test_a_semi_supervised_algorithm_needs_unlabeled_patches(recipe_tree):
    with pytest.raises(ConfigError, match="unlabeled_ratio: 0 leaves nothing for algorithm fixmatch"):
        make(recipe_tree, batch__unlabeled_ratio=0)
    make(recipe_tree, batch__unlabeled_ratio=0, algorithm={"name": "supervised"})


@pytest.mark.parametrize(("micro", "blocks"), [(None, 1), (4, 2), (3, 3)])
def test_batchnorm_is_estimated_in_as_many_blocks_as_a_step_has(recipe_tree, monkeypatch, micro, blocks):
    recipe = make(recipe_tree, batch__micro=micro, schedule__supervised_start=3)
    task = open_train_state(recipe, torch.device("cpu")).task
    sizes = []
    monkeypatch.setattr(task.step, "reestimate_batchnorm", lambda mixed: sizes.extend(len(rows) for rows, _ in mixed()))
    task.evaluate_student("validation", Progress(3, 12))
    assert len(sizes) == blocks and sum(sizes) == 2 * 8 + 16  # weak and strong labeled, strong unlabeled
    sizes.clear()
    task.evaluate_student("validation", Progress(2, 12))
    assert len(sizes) == blocks and sum(sizes) == 2 * 8  # a supervised start has seen labeled ones alone


@pytest.mark.parametrize(("start", "streams"), [(12, {Stream.LABELED}), (8, set(Stream))])
def test_a_checkpoint_is_scored_with_batches_as_its_last_step_had(recipe_tree, monkeypatch, start, streams):
    """So that a supervised start, or a whole supervised run, reads no unlabeled patch."""
    read, complete = set(), StreamSource.complete

    def watched(source, rows, pixels, views, draw):
        read.update(view.stream for view in views)
        return complete(source, rows, pixels, views, draw)

    monkeypatch.setattr(StreamSource, "complete", watched)
    recipe = make(recipe_tree, schedule__supervised_start=start)
    folder = run(recipe)
    assert read == streams
    read.clear()
    scores = evaluate_run(folder.path, "validation", "last")
    assert read == streams
    *_, last_row = (row for row in folder.rows() if row["kind"] == "validation")
    assert scores["student"]["accuracy"] == last_row["accuracy"]


def test_without_batches_for_it_batchnorm_keeps_what_training_counted(recipe_tree):
    task = open_train_state(make(recipe_tree, evaluation__batchnorm_batches=0), torch.device("cpu")).task
    average = task.step.averages["student"].network
    (first, *_) = [module for module in average.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    first.running_mean.fill_(3.0)
    task.evaluate_student("validation", Progress(5, 12))
    assert (first.running_mean == 3).all()
