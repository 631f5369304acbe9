"""Train the students of these tests once: two of three bands, and one of twelve bands and several classes a patch."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny

import stssl
from stssl.base.config import validate
from stssl.recipes.recipe import Recipe


class Trained(NamedTuple):
    """Hold a run, the patches [n, bands, H, W] of its test part, and the evaluation of these."""

    run: Any
    patches: Any
    logits: Any
    rows: Any


def trained(store, folder, **changes):
    tree = tiny.tiny_recipe(store, folder)
    tree["model"] = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "image_size": 16}
    tree["model"]["metadata"] = "none"
    tree["algorithm"] = {"name": "cdmad", "threshold": 0.3, "debias_after": 1}
    tree["schedule"] |= {"steps": 4, "supervised_start": 1, "warmup": 1, "evaluate_every": 4}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) and key != "algorithm" else value
    run = stssl.train(validate(Recipe, tree, "tree"), progress=False)
    stssl.evaluate(run)
    scored = np.load(run.path / "evaluation" / "test.npz")
    return run, scored["logits_student"], scored["rows"]


@pytest.fixture(scope="session")
def plain(store, tmp_path_factory):
    run, logits, rows = trained(store, tmp_path_factory.mktemp("runs"))
    return Trained(run, stssl.open_store(store).read(rows), logits, rows)


@pytest.fixture(scope="session")
def other(store, tmp_path_factory):
    run, logits, rows = trained(store, tmp_path_factory.mktemp("runs"), seed=1, name="other")
    return Trained(run, stssl.open_store(store).read(rows), logits, rows)


@pytest.fixture(scope="session")
def twelve(big_store, tmp_path_factory):
    """Make a student of all bands of Sentinel-2, for 19 classes of which a patch has any number."""
    run, logits, rows = trained(
        big_store,
        tmp_path_factory.mktemp("runs"),
        data={"labels": "labels_19", "scale": "sigmas", "bands": list(BANDS)},
        labels={"per_class": None, "fraction": 0.5},
        algorithm={"name": "supervised"},
        batch={"unlabeled_ratio": 0},
    )
    return Trained(run, None, logits, rows)


BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
