"""Training in one process: it learns, and it resumes exactly wherever it was killed."""

import json
import os
import signal

import pytest
import torch
from processes import exit_code

from stssl.base.batch import Stream, View
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, DataError, RunError, StoppedError
from stssl.recipes.build import check_recipe
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import Recipe
from stssl.training import loop
from stssl.training.checkpoints import read_state
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run


def make(tree, **changes):
    for key, value in changes.items():
        section, _, field = key.partition("__")
        tree = merge(tree, {section: {field: value}} if field else {section: value})
    return validate(Recipe, tree, "test")


def flat(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


def last(recipe, name="last"):
    return read_state(RunFolder.of(recipe).checkpoints.path(name))


def same(one, other):
    left, right = dict(flat(one)), dict(flat(other))
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def unbroken(recipe_tree):
    recipe = make(recipe_tree, name="unbroken")
    run(recipe)
    return recipe


def test_a_run_leaves_what_it_promises(unbroken):
    folder = RunFolder.of(unbroken)
    rows = list(folder.rows())
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8, 12]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert folder.finished()["steps"] == 12
    labels = json.loads((folder.path / "labels.json").read_text())
    assert len(labels["rows"]) == 30 and sorted(t[0] for t in labels["targets"]) == sorted(list(range(10)) * 3)
    record = json.loads((folder.path / "record.json").read_text())
    assert record["recipe_hash"] == unbroken.hash() and torch.__version__.startswith(record["versions"]["torch"])
    assert folder.recipe() == unbroken


def test_validations_score_the_teacher_too(unbroken):
    folder = RunFolder.of(unbroken)
    rows = [row for row in folder.rows() if row["kind"] == "validation"]
    found = evaluate_run(folder.path, "validation", checkpoint="last")
    assert rows[-1]["teacher_loss"] == pytest.approx(found["teacher"]["loss"], rel=1e-4)
    assert rows[-1]["teacher_loss"] != rows[-1]["loss"] == pytest.approx(found["student"]["loss"], rel=1e-4)


def test_unlabeled_patches_are_read_from_the_step_that_learns_from_them(recipe_tree):
    recipe = make(recipe_tree, schedule__supervised_start=3)
    loaded = [list(raw) for raw in open_train_state(recipe, torch.device("cpu")).task.loader.batches(0, 5)]
    assert loaded == [[Stream.LABELED]] * 3 + [[Stream.LABELED, Stream.UNLABELED]] * 2
    late, early = (
        open_train_state(make(recipe_tree, schedule__supervised_start=start), torch.device("cpu")).task.loader.load(4)
        for start in (3, 0)
    )
    assert torch.equal(late[Stream.UNLABELED].rows, early[Stream.UNLABELED].rows)
    assert all(view.stream is stream for stream, raw in late.items() for view in raw.draws)
    assert {View.UNLABELED_WEAK, View.UNLABELED_STRONG} == set(late[Stream.UNLABELED].draws)


def test_throughput_counts_the_patches_that_a_step_reads(recipe_tree):
    folder = run(make(recipe_tree, schedule__supervised_start=6))
    rows = [row for row in folder.rows() if row["kind"] == "train"]
    counted = {row["step"]: row["images_per_s"] * row["seconds_per_step"] for row in rows}
    assert counted == pytest.approx({2: 8, 4: 8, 6: 8, 8: 24, 10: 24, 12: 24})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule__supervised_start": 12}, True),
        ({"algorithm": {"name": "freematch", "supervised_steps": 12}}, True),
        ({"schedule__supervised_start": 11}, False),
        ({"schedule__supervised_start": 12, "algorithm": {"name": "supervised"}}, False),
    ],
)
def test_a_run_that_never_comes_to_unlabeled_patches_says_so(changes, said, recipe_tree, caplog):
    check_recipe(make(recipe_tree, **changes))
    assert ("no step of this run learns from unlabeled patches" in caplog.text) == said


def test_control_an_algorithm_with_state_reads_them_from_the_first(recipe_tree):
    recipe = make(recipe_tree, schedule__supervised_start=3, algorithm={"name": "softmatch"})
    raw = open_train_state(recipe, torch.device("cpu")).task.loader.load(0)
    assert list(raw[Stream.UNLABELED].draws) == [View.UNLABELED_WEAK]


def test_training_learns(recipe_tree):
    recipe = make(recipe_tree, schedule__steps=150, schedule__evaluate_every=150, schedule__supervised_start=50)
    run(recipe)
    rows = list(RunFolder.of(recipe).rows())
    assert rows[-1]["accuracy"] > 0.2
    assert rows[-2]["student_supervised"] < 0.9 * rows[0]["student_supervised"]


def signalled(tree, step, number, said=None, written=False):
    """In a process of its own: run a recipe, and at `step` send it a signal (`written`: with checkpoints on disk)."""
    torch.set_num_threads(1)
    update = loop.train_step

    def counted(train_state, raw):
        if train_state.progress.step == step:
            if written:
                train_state.folder.checkpoints.wait()
            os.kill(os.getpid(), number)
        return update(train_state, raw)

    loop.train_step = counted
    try:
        run(validate(kind_of(tree), tree, "test"))
    except StoppedError as error:
        said.write_text(str(error))


def kill_at(recipe, step, written=False):
    """Run a recipe in a process of its own that is killed before it takes `step`, amid a write or (`written`) not."""
    assert exit_code(signalled, recipe.tree(), step, signal.SIGKILL, None, written) == -signal.SIGKILL


@pytest.mark.parametrize(("step", "every"), [(3, 500), (7, 3), (11, None)])
def test_a_killed_run_ends_with_the_same_weights(unbroken, recipe_tree, tmp_path, step, every):
    recipe = make(recipe_tree, name=f"killed{step}", schedule__checkpoint_every=every)
    kill_at(recipe, step, written=every == 3)
    assert not RunFolder.of(recipe).finished()
    if every == 3:  # in other runs only validations write checkpoints, every 4 steps
        assert last(recipe)["progress"]["step"] == 6
    recipe = make(recipe_tree, name=f"killed{step}", schedule__checkpoint_every=5)  # no part of the run's identity
    run(recipe)
    assert same(last(recipe)["step"], last(unbroken)["step"])
    assert same(last(recipe)["optimizer"]["state"], last(unbroken)["optimizer"]["state"])
    theirs, ours = (list(RunFolder.of(r).rows()) for r in (unbroken, recipe))
    assert [row.get("loss") for row in theirs] == [row.get("loss") for row in ours]


def test_control_another_position_gives_other_weights(unbroken, recipe_tree, tmp_path):
    recipe = make(recipe_tree, name="shifted")
    kill_at(recipe, 7, written=True)
    path = RunFolder.of(recipe).checkpoints.path("last")
    state = read_state(path)
    state["progress"]["step"] -= 1
    from stssl.training.checkpoints import write_state

    path.unlink()
    write_state(state, path)
    run(recipe)
    assert not same(last(recipe)["step"], last(unbroken)["step"])


def test_control_another_seed_gives_other_weights(unbroken, recipe_tree):
    recipe = make(recipe_tree, name="other", seed=1)
    run(recipe)
    assert not same(last(recipe)["step"], last(unbroken)["step"])


def test_a_finished_run_returns_at_once(unbroken):
    before = RunFolder.of(unbroken).checkpoints.path("last").stat().st_mtime_ns
    run(unbroken)
    assert RunFolder.of(unbroken).checkpoints.path("last").stat().st_mtime_ns == before


def test_another_recipe_under_an_old_name_is_refused(unbroken, recipe_tree):
    changed = make(recipe_tree, name="unbroken", optimizer__lr=0.1)
    with pytest.raises(RunError, match=r"differs in optimizer.lr"):
        run(changed)
    run(make(recipe_tree, name="unbroken", logging__every=3))


def test_patience_ends_a_run(recipe_tree):
    recipe = make(recipe_tree, schedule__patience=4, optimizer__lr=1e-9, ema__decay=0.0)
    run(recipe)
    assert RunFolder.of(recipe).finished()["steps"] < 12


def test_a_loss_that_is_not_finite_stops_the_run(recipe_tree):
    recipe = make(recipe_tree, optimizer__lr=1e30, schedule__warmup=0)
    with pytest.raises(RunError, match=r"not finite in 11 steps, at last in step 11 .*has their patches"):
        run(recipe)
    assert not RunFolder.of(recipe).finished()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data__bands": ["B08"]}, ConfigError, r"has no B08. It has: B04, B03, B02"),
        ({"data__labels": "labels_43"}, ConfigError, r"has no 'labels_43'. It has: label"),
        (
            {"data__split": "seasons"},
            ConfigError,
            r"no split 'seasons'. It has: official, published, random, blocks, longitude",
        ),
        ({"data__exclude": ["snow"]}, ConfigError, r"data.exclude: .*snow"),
        ({"data__store": "/nowhere.zarr"}, DataError, r"no store at /nowhere.zarr"),
        ({"model__backbone": "resnet5"}, ConfigError, r"timm has no 'resnet5'"),
        ({"model__injection": {"name": "token"}}, ConfigError, r"'token' needs a plain vision transformer"),
        ({"model__weights": "file:/nowhere.pt"}, ConfigError, r"no file /nowhere.pt"),
    ],
)
def test_what_the_store_or_networks_lack_is_named(recipe_tree, changes, error, words):
    with pytest.raises(error, match=words):
        run(make(recipe_tree, **changes))


def test_a_class_without_labels_is_named(recipe_tree, tmp_path):
    (tmp_path / "list.txt").write_text("Forest_1\nForest_2\nRiver_1\n")
    labels = {"per_class": None, "list": str(tmp_path / "list.txt")}
    with pytest.raises(DataError, match=r"no labeled training patch has AnnualCrop, HerbaceousVegetation"):
        run(make(recipe_tree, labels=labels))


def test_a_run_starts_from_another_runs_student(unbroken, recipe_tree):
    recipe = make(recipe_tree, name="second", model__weights="run:unbroken", schedule__steps=4)
    run(recipe)
    from stssl.recipes.build import build_step
    from stssl.recipes.run_data import open_data

    step = build_step(recipe, open_data(recipe))
    first = last(unbroken, "best")["step"]
    for name in ("student", "teacher"):
        ours = step.networks[name].backbone.layer1[0].conv1.weight
        assert torch.equal(ours, first["averages.student.network.backbone.layer1.0.conv1.weight"])
    fresh = build_step(unbroken, open_data(unbroken)).networks["student"].backbone.layer1[0].conv1.weight
    assert not torch.equal(ours, fresh)
    with pytest.raises(ConfigError, match=r"there is no folder .*nobody"):
        run(make(recipe_tree, name="third", model__weights="run:nobody"))


def test_a_recipe_that_cannot_run_takes_no_name(recipe_tree):
    with pytest.raises(DataError, match="no store"):
        run(make(recipe_tree, name="typo", data__store="/nowhere.zarr"))
    recipe = make(recipe_tree, name="typo", schedule__steps=4)
    run(recipe)
    assert RunFolder.of(recipe).finished()
