"""Training on a GPU: the host never waits for it inside a step, and CUDA graphs change nothing but speed."""

import pytest
import torch
from test_loop import make

from stssl.training.launch import run
from stssl.training.loop import train_step
from stssl.training.run_folder import RunFolder
from stssl.training.runtime import with_fallback
from stssl.training.state import open_train_state

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def strict_host():
    """Let each wait of the host for the GPU be an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def steps_on_gpu(recipe, count):
    """Take steps on the GPU. Their batches are read first, so that only the steps themselves are under test."""
    train_state = open_train_state(recipe, torch.device("cuda"))
    train_state.resume()
    batches = list(train_state.task.loader.batches(0, count))
    for raw in batches[:-1]:  # kernels are chosen and memory is reserved in the first steps
        train_step(train_state, raw)
        train_state.progress.step += 1
    torch.cuda.synchronize()
    return lambda: train_step(train_state, batches[-1])


@needs_gpu
@pytest.mark.parametrize("algorithm", ["fixmatch", "freematch", "supervised"])
def test_a_step_never_waits_for_the_gpu(recipe_tree, algorithm, request):
    last = steps_on_gpu(make(recipe_tree, algorithm={"name": algorithm, "supervised_steps": 0}), 4)
    request.getfixturevalue("strict_host")
    last()


@needs_gpu
def test_control_a_host_that_waits_is_found(strict_host):
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@needs_gpu
def test_cuda_graphs_give_the_losses_of_plain_compiling(recipe_tree):
    losses = []
    for number, mode in enumerate((True, "reduce-overhead")):
        recipe = make(recipe_tree, name=f"g{number}", compute__compile=mode, launch__gpus_per_worker=1)
        run(recipe)
        losses.append([row["loss"] for row in RunFolder.of(recipe).rows() if "loss" in row])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("mode", [False, True, "reduce-overhead"])
def test_graphs_are_asked_for_and_each_step_is_marked(recipe_tree, monkeypatch, mode):
    asked, marks = [], []

    def uncompiled(function, dynamic, options):
        asked.append("triton.cudagraphs" in (options or {}))
        return function

    monkeypatch.setattr(torch, "compile", uncompiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    tree = recipe_tree | {"algorithm": {"name": "supervised"}, "batch": recipe_tree["batch"] | {"unlabeled_ratio": 0}}
    train_state = open_train_state(make(tree, name=f"m{mode}", compute__compile=mode), torch.device("cpu"))
    train_state.resume()
    for raw in train_state.task.loader.batches(0, 2):
        train_step(train_state, raw)
        train_state.progress.step += 1
    graphs = mode == "reduce-overhead"
    assert set(asked) == ({graphs} if mode else set())
    assert len(marks) == (2 if graphs else 0)


def test_graphs_change_nothing_on_a_cpu():
    double = with_fallback(lambda x: x * 2 + 1, graphs=True)
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 3.0))
