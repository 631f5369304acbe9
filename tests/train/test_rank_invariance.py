"""One, two and four ranks train the same: same samples and views, losses of the first 20 steps within 1e-4."""

import json
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stssl.algorithms import ALGORITHMS
from stssl.config import merge, validate
from stssl.distributed import sum_over_ranks
from stssl.recipe import Recipe
from stssl.train import loop
from stssl.train.session import open_session

pytestmark = pytest.mark.slow
STEPS = 20


def losses_of(tree):
    """The global batch's loss of each step, as every rank sees it."""
    recipe = validate(Recipe, tree, "test")
    session = open_session(recipe, torch.device("cpu"))
    losses = []
    for raw in session.stage.loader.batches(0, STEPS):
        logs, _ = loop.update(session, raw)
        world = dist.get_world_size() if dist.is_initialized() else 1
        losses.append(float(sum_over_ranks(logs["loss"])) / world)
        session.position.step += 1
    return losses


def work(rank, world, folder, trees, gather):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    if not gather:
        from stssl.steps import teacher_student

        teacher_student.gather_rows = lambda rows, *_: rows
    found = {name: losses_of(tree) for name, tree in trees.items()}
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def on_ranks(world, folder, trees, gather=True):
    folder.mkdir()
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(work, (world, folder, trees, gather), nprocs=world)
    return json.loads((folder / "losses.json").read_text())


def differences(together, trees):
    """For each algorithm the largest difference from one process over the steps."""
    alone = {name: losses_of(tree) for name, tree in trees.items()}
    return {name: max(abs(a - b) for a, b in zip(together[name], alone[name], strict=True)) for name in trees}


@pytest.fixture
def trees(recipe_tree, big_store, tmp_path):
    """A recipe for each algorithm: multi-label, a network without BatchNorm, no dropout."""
    base = merge(
        recipe_tree,
        {
            "data": {"store": str(big_store), "labels": "labels_19", "scale": "sigmas"},
            "labels": {"per_class": None, "fraction": 0.5},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "backbone_args": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8},
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
    return {name: base | {"algorithm": {"name": name}} for name in ALGORITHMS}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_with_one_process(trees, tmp_path, world):
    together = on_ranks(world, tmp_path / "ranks", trees)
    worst = differences(together, trees)
    assert max(worst.values()) < 1e-4, worst


def test_control_without_the_gather_ranks_train_otherwise(trees, tmp_path):
    chosen = {name: trees[name] for name in ("cap", "adamatch")}
    apart = on_ranks(2, tmp_path / "apart", chosen, gather=False)
    assert min(differences(apart, chosen).values()) > 1e-4, differences(apart, chosen)
