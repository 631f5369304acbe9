"""What goes wrong in training: gradients that are not finite, memory, signals, storage, compilers, loggers."""

import copy
import json
import signal

import pytest
import torch
from processes import exit_code, on_ranks
from test_loop import kill_at, last, make, same, signalled

from stssl.base.batch import View
from stssl.base.config import merge
from stssl.base.errors import ConfigError, RunError
from stssl.models.backbones import make_backbone
from stssl.training import loop
from stssl.training.launch import run
from stssl.training.loop import train_to_end
from stssl.training.run_files import NONFINITE_FILE
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import check_shared, compile_blocks, memory_advice, with_fallback
from stssl.training.state import open_train_state

CPU = torch.device("cpu")


@pytest.fixture
def without_batchnorm(recipe_tree):
    """The tiny recipe with a transformer, whose only state is its weights."""
    model = recipe_tree["model"] | {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8},
        "injection": {"name": "token"},
    }
    return recipe_tree | {"model": model, "algorithm": {"name": "freematch", "supervised_steps": 0}}


def poisoned(recipe, steps):
    """A session whose batches of some steps hold a number that is none."""
    train_state = open_train_state(recipe, CPU)
    train_state.resume()
    make_batch = train_state.task.batch

    def batch(raw):
        made = make_batch(raw)
        if train_state.progress.step in steps:
            for view in made.images:
                made.images[view][0, 0, 0, 0] = torch.nan
        return made

    train_state.task.batch = batch
    return train_state


def finite(module):
    return all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())


def test_a_step_that_is_not_finite_is_left_out_and_written_down(without_batchnorm):
    recipe = make(without_batchnorm)
    folder = RunFolder.of(recipe)
    folder.claim(recipe)
    train_state = poisoned(recipe, {5})
    train_to_end(train_state, lambda metrics: None)
    assert finite(train_state.task.step)
    (row,) = [json.loads(line) for line in (folder.path / NONFINITE_FILE).read_text().splitlines()]
    assert row["step"] == 5 and len(row["rows"]["unlabeled"]) == 16 and row["losses"]["loss"] is None
    assert row["rows"]["unlabeled"] == train_state.task.loader.sources[View.UNLABELED_WEAK.stream].global_rows(5)
    assert all(value is not None for line in folder.rows() for value in line.values())


def test_a_bad_step_of_a_supervised_start_names_labeled_patches_alone(without_batchnorm):
    recipe = make(without_batchnorm | {"algorithm": {"name": "fixmatch"}}, schedule__supervised_start=2)
    folder = RunFolder.of(recipe)
    folder.claim(recipe)
    train_to_end(poisoned(recipe, {0}), lambda metrics: None)
    (row,) = folder.rows(NONFINITE_FILE)
    assert row["step"] == 0 and list(row["rows"]) == ["labeled"] and len(row["rows"]["labeled"]) == 8


@pytest.mark.parametrize("network", ["transformer", "batchnorm"])
def test_a_bad_step_leaves_nothing_behind(without_batchnorm, recipe_tree, network):
    recipe = make(without_batchnorm if network == "transformer" else recipe_tree)
    RunFolder.of(recipe).claim(recipe)
    train_state = poisoned(recipe, {0, 5})
    train_to_end(train_state, lambda metrics: None)
    assert finite(train_state.task.step)


def test_control_unrestored_statistics_stay_broken(recipe_tree):
    recipe = make(recipe_tree)
    RunFolder.of(recipe).claim(recipe)
    train_state = poisoned(recipe, {5})
    train_state.statistics.restore = lambda bad: None
    train_to_end(train_state, lambda metrics: None)
    assert not finite(train_state.task.step)


def test_bad_steps_count_across_restarts_and_before_the_first_row(without_batchnorm, tmp_path):
    recipe = make(without_batchnorm, compute__nonfinite_steps=1, logging__every=50)
    folder = RunFolder.of(recipe)
    folder.claim(recipe)
    with pytest.raises(RunError, match="not finite in 2 steps, at last in step 6"):
        train_to_end(poisoned(recipe, {1, 6}), lambda metrics: None)
    assert last(recipe)["progress"]["left_out"] == 1
    with pytest.raises(RunError, match="not finite in 2 steps, at last in step 6"):
        train_to_end(poisoned(recipe, {6}), lambda metrics: None)
    assert [row["step"] for row in folder.rows(NONFINITE_FILE)] == [1, 6]


def test_control_without_the_guard_weights_are_lost(without_batchnorm, monkeypatch):
    recipe = make(without_batchnorm)
    RunFolder.of(recipe).claim(recipe)
    train_state = poisoned(recipe, {5})
    monkeypatch.setattr(loop, "not_finite", lambda norms: torch.tensor(False))
    train_state.statistics.restore = lambda bad: None
    train_to_end(train_state, lambda metrics: None)
    assert not finite(train_state.task.step)


def test_too_many_bad_steps_end_the_run(without_batchnorm):
    recipe = make(without_batchnorm, compute__nonfinite_steps=2)
    RunFolder.of(recipe).claim(recipe)
    with pytest.raises(RunError, match=r"not finite in 4 steps, at last in step 9 .*loss nan.*lr"):
        train_to_end(poisoned(recipe, {3, 5, 8, 9}), lambda metrics: None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), r"out of memory.*batch.micro=8"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), r"compute.precision=bf16"),
    ],
)
def test_out_of_memory_says_what_helps(recipe_tree, error, words):
    with pytest.raises(RunError, match=words), memory_advice(make(recipe_tree)):
        raise error
    with pytest.raises(RuntimeError, match="else"), memory_advice(make(recipe_tree)):
        raise RuntimeError("something else")


def test_memory_that_really_runs_out(recipe_tree):
    recipe = make(recipe_tree, batch__micro=4)
    with pytest.raises(RunError, match=r"out of memory.*batch.micro=2"), memory_advice(recipe):
        torch.empty(2**60)


def test_sigterm_writes_a_checkpoint_and_the_run_continues_exactly(recipe_tree, tmp_path):
    unbroken, asked = make(recipe_tree, name="unbroken"), make(recipe_tree, name="asked")
    run(unbroken)
    assert exit_code(signalled, asked.tree(), 6, signal.SIGTERM, tmp_path / "said") == 0
    assert (tmp_path / "said").read_text().startswith("asked to end (SIGTERM) after step 7")
    assert last(asked)["progress"]["step"] == 7
    run(asked)
    assert same(last(asked)["step"], last(unbroken)["step"])


def test_control_sigkill_leaves_an_older_checkpoint(recipe_tree, tmp_path):
    killed = make(recipe_tree, name="killed")
    kill_at(killed, 7)
    assert last(killed)["progress"]["step"] == 4
    assert signal.SIGKILL != signal.SIGTERM


def look(rank, folder, place):
    try:
        check_shared(folder / place.format(rank=rank))
        said = "shared"
    except RunError as error:
        said = str(error)
    (folder / f"{rank}.txt").write_text(said)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("runs", "shared"),
        ("runs{rank}", "not the same folder on all nodes: rank 1 does not see"),
        ("file/runs", "A file is where a folder must be"),  # rank 1 must not wait for rank 0, which cannot write
    ],
)
def test_storage_that_ranks_do_not_share_is_found_out(tmp_path, place, words):
    (tmp_path / "file").touch()
    on_ranks(2, look, tmp_path, place)
    for rank in range(2):
        assert words in (tmp_path / f"{rank}.txt").read_text()
    assert not list(tmp_path.glob("runs*/.seen-*"))


@pytest.mark.parametrize("network", ["transformer", "batchnorm"])
def test_a_compiled_run_ends_near_the_plain_one(without_batchnorm, recipe_tree, caplog, monkeypatch, network):
    """One block goes through the whole compiler; those with BatchNorm only as far as code is made, which is slow."""
    plain_part = {"backbone_args": {"depth": 1, "embed_dim": 16}, "metadata": "none", "injection": {"name": "none"}}
    tree = merge(without_batchnorm | {"algorithm": {"name": "supervised"}}, {"model": plain_part})
    tree = merge(tree, {"batch": {"unlabeled_ratio": 0}})
    if network == "batchnorm":
        tree, real = recipe_tree, torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda block, dynamic, **_: real(block, dynamic=dynamic, backend="aot_eager")
        )
    tree = merge(tree, {"schedule": {"steps": 6, "evaluate_every": 6}})
    plain, compiled = (make(tree, name=f"c{flag}", compute__compile=flag) for flag in (False, True))
    losses = []
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for recipe in (plain, compiled):
        run(recipe)
        losses.append([row["loss"] for row in RunFolder.of(recipe).rows()])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=2e-2, rtol=2e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert "continuing without torch.compile" not in caplog.text


def test_a_block_with_batchnorm_and_few_channels_goes_through_the_whole_compiler(monkeypatch, caplog):
    """A strided stage, trained: its images stay as they lie, for oneDNN writes past others."""
    real, asked = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda block, **options: asked.append(options) or real(block, **options))
    options = {"channels": [4, 8, 8, 8]}
    plain = make_backbone("slim_resnet", options, size=16, in_channels=3, classes=2, hub=False)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    assert all(found["options"] == {"layout_optimization": False} for found in asked)
    image, before = torch.randn(4, 4, 8, 8), torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for task in (plain.layer2, compiled.layer2):
        task(image).square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    for one, other in zip(plain.layer2.parameters(), compiled.layer2.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    for one, other in zip(plain.layer2.buffers(), compiled.layer2.buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert "continuing without torch.compile" not in caplog.text


def test_what_cannot_be_compiled_runs_uncompiled_and_says_so(caplog, monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no compiler here")

    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic, **_: real(function, dynamic=dynamic, backend=refuse)
    )
    double = with_fallback(lambda x: x * 2)
    assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert "continuing without torch.compile" in caplog.text
    assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))


def test_metrics_reach_mlflow_and_a_resumed_run_continues_in_the_same_one(recipe_tree, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    recipe = make(recipe_tree, logging__mlflow=uri)
    try:
        kill_at(recipe, 6)
        run(recipe)
    except ConfigError as error:
        pytest.skip(str(error))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("stssl").experiment_id])
    assert found.info.status == "FINISHED" and found.data.tags["recipe"] == recipe.hash()
    assert {m.step for m in client.get_metric_history(found.info.run_id, "validation.accuracy")} == {4, 8, 12}
