"""One, two and four ranks train the same: same samples and views, losses of the first 20 steps within 1e-4."""

import json

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from torch.nn.parallel import DistributedDataParallel

from stssl.algorithms import ALGORITHMS
from stssl.base.config import merge, validate
from stssl.base.distributed import sum_over_ranks
from stssl.recipes.recipe import Recipe
from stssl.training import loop
from stssl.training.state import open_train_state

STEPS = 20


def losses_of(tree):
    """The global batch's loss of each step, as every rank sees it."""
    recipe = validate(Recipe, tree, "test")
    train_state = open_train_state(recipe, torch.device("cpu"))
    losses = []
    for raw in train_state.task.loader.batches(0, STEPS):
        logs = loop.train_step(train_state, raw).logs
        world = dist.get_world_size() if dist.is_initialized() else 1
        losses.append(float(sum_over_ranks(logs["loss"])) / world)
        train_state.progress.step += 1
    return losses


def work(rank, folder, trees, gather):
    torch.set_num_threads(1)
    if not gather:
        from stssl.steps import gathering

        gathering.gather_rows = lambda rows, *_: rows
    found = {name: losses_of(tree) for name, tree in trees.items()}
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(found))


def in_world(world, folder, trees, gather=True):
    folder.mkdir()
    on_ranks(world, work, folder, trees, gather)
    return json.loads((folder / "losses.json").read_text())


def difference(one, other):
    """For each algorithm the largest difference over the steps."""
    return {name: max(abs(a - b) for a, b in zip(one[name], other[name], strict=True)) for name in one}


@pytest.fixture
def trees(recipe_tree, big_store, tmp_path):
    """A recipe for each algorithm: multi-label, a network without BatchNorm, no dropout."""
    base = merge(
        recipe_tree,
        {
            "data": {
                "store": str(big_store),
                "labels": "labels_19",
                "scale": "sigmas",
                "bands": ["B04", "B03", "B02"],
            },
            "labels": {"per_class": None, "fraction": 0.5},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "backbone_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
                "image_size": 16,
                "injection": {"name": "token"},
            },
            "optimizer": {"lr": 0.0005},
            "schedule": {"steps": STEPS, "warmup": 2, "supervised_start": 2, "evaluate_every": STEPS},
            "compute": {"threads": 1},
        },
    )
    base["model"]["backbone_args"].pop("channels", None)
    base["algorithm"] = {}
    chosen = {name: base | {"algorithm": {"name": name}} for name in ALGORITHMS}
    chosen["freematch"]["algorithm"]["supervised_steps"] = 2  # of 20, else it would match nothing
    return chosen


def test_ranks_agree_with_one_process(trees, tmp_path):
    alone = {name: losses_of(tree) for name, tree in trees.items()}
    for world in (2, 4):
        worst = difference(in_world(world, tmp_path / f"{world}", trees), alone)
        assert max(worst.values()) < 1e-4, (world, worst)


def test_control_without_the_gather_ranks_train_otherwise(trees, tmp_path):
    chosen = {name: trees[name] for name in ("cap", "adamatch")}
    alone = {name: losses_of(tree) for name, tree in chosen.items()}
    worst = difference(in_world(2, tmp_path / "apart", chosen, gather=False), alone)
    assert min(worst.values()) > 1e-4, worst


def test_ranks_with_different_numbers_of_micro_batches_do_not_wait_for_each_other(trees, tmp_path):
    """Five labeled rows on two ranks, two at a time: one rank has two micro-batches, the other one."""
    tree = merge(trees["freematch"], {"batch": {"labeled": 5}})
    uneven = in_world(2, tmp_path / "uneven", {"uneven": merge(tree, {"batch": {"micro": 2}})})
    assert difference(uneven, {"uneven": losses_of(tree)})["uneven"] < 1e-4


RATES = {"optimizer": {"backbone_factor": 0.2, "layer_decay": 0.7}, "schedule": {"head_steps": 5}}
BATCHNORM = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "injection": {"name": "late"}}


def test_ranks_agree_with_frozen_parts_and_different_rates(trees, tmp_path):
    """With BatchNorm, only a frozen backbone computes the same on any number of ranks."""
    norm = trees["fixmatch"] | {"model": {"image_size": 16, "metadata": "teacher"} | BATCHNORM}
    chosen = {
        "rates": merge(trees["fixmatch"], RATES),
        "frozen": merge(norm, {"model": {"freeze": True}}),
        "free": norm,
    }
    alone = {name: losses_of(tree) for name, tree in chosen.items()}
    worst = difference(in_world(2, tmp_path / "2", chosen), alone)
    assert worst["rates"] < 1e-4 and worst["frozen"] < 1e-4, worst
    assert worst["free"] > 1e-4, worst  # control


def resumed(rank, folder, tree, fixed):
    """Train one run in one go, and one that is resumed in the middle."""
    torch.set_num_threads(1)
    if not fixed:
        from stssl.training import state

        state._shared = lambda step: DistributedDataParallel(step, forward_sync_buffers=False)
    half = tree["schedule"]["steps"] // 2
    for name, first in (("whole", 0), ("broken", half)):
        recipe = validate(Recipe, tree | {"name": name}, "test")
        if first:
            train_state = open_train_state(recipe, torch.device("cpu"))
            train_state.resume()
            for raw in train_state.task.loader.batches(0, first):
                loop.train_step(train_state, raw)
                train_state.progress.step += 1
            loop.save(train_state)
            train_state.close()
            dist.barrier()
        train_state = open_train_state(recipe, torch.device("cpu"))
        train_state.resume()
        assert train_state.progress.step == first
        for raw in train_state.task.loader.batches(first, 2 * half):
            loop.train_step(train_state, raw)
            train_state.progress.step += 1
        torch.save(train_state.task.step.networks.state_dict(), folder / f"{name}-{rank}.pt")
        train_state.close()


@pytest.mark.parametrize("fixed", [True, False], ids=["", "control"])
def test_three_ranks_resume_bit_for_bit(recipe_tree, tmp_path, fixed):
    """Three summands may round differently in another order. Two never do."""
    tree = merge(recipe_tree, {"schedule": {"steps": 8, "evaluate_every": 8}, "optimizer": {"lr": 0.01}})
    on_ranks(3, resumed, tmp_path, tree, fixed)
    for rank in range(3):
        whole, broken = (torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("whole", "broken"))
        assert all(torch.equal(whole[name], broken[name]) for name in whole) == fixed
