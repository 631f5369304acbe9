"""Runs that could not take their first step are refused before they start; odd but sound stores train."""

import csv

import numpy as np
import pytest
import tiny
from PIL import Image

from stssl.archives.conversion import Options, convert_archive
from stssl.base.config import validate
from stssl.base.errors import ConfigError, DataError
from stssl.recipes.recipe import Recipe
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.trained_run import evaluate_run

VIT = ("vit_tiny_patch16_224", 40, {"dynamic_img_size": True})
BACKBONES = [("mvitv2_tiny", 120, {}), ("coat_tiny", 120, {}), ("inception_v3", 64, {}), VIT]


def make(tree, **changes):
    return validate(Recipe, tree | changes, "recipe")


@pytest.mark.parametrize(("name", "size", "options"), BACKBONES)
def test_a_backbone_that_cannot_take_the_images_is_refused_in_words(recipe_tree, name, size, options):
    model = {"backbone": name, "backbone_args": options, "image_size": size, "metadata": "none"}
    recipe = make(recipe_tree, model=model)
    with pytest.raises(ConfigError, match=rf"model.backbone: {name} cannot take images of {size} px"):
        run(recipe)
    assert not RunFolder.of(recipe).path.exists()


def manifest_store(folder, rows):
    """A manifest of small images, `rows` of (label, split)."""
    rng = np.random.default_rng(0)
    with (folder / "m.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split"])
        for number, row in enumerate(rows):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", *row])
    return convert_archive("manifest", folder / "m.csv", folder / "m.zarr", Options(workers=0)).store


def train_on(store, runs, **changes):
    tree = tiny.tiny_recipe(store, runs)
    tree["model"] |= {"metadata": "none"}
    tree |= {"labels": {"fraction": 1.0}, "schedule": {"steps": 2, "warmup": 0, "evaluate_every": 2}}
    return run(make(tree | changes))


PARTS = ["train"] * 12 + ["validation"] * 4


def test_training_needs_no_test_patches(tmp_path):
    store = manifest_store(tmp_path, [("AB"[i % 2], part) for i, part in enumerate(PARTS)])
    folder = train_on(store, tmp_path / "runs")
    assert folder.finished() is not None
    with pytest.raises(DataError, match="the split has no test patches"):
        evaluate_run(folder.path, "test")


def test_training_without_validation_patches_is_refused_in_words(tmp_path):
    store = manifest_store(tmp_path, [("AB"[i % 2], "train") for i in range(16)])
    with pytest.raises(DataError, match="no patch for validation"):
        train_on(store, tmp_path / "runs")


@pytest.mark.parametrize("algorithm", ["fixmatch", "freematch", "softmatch", "flexmatch"])
def test_a_store_of_one_class_trains(tmp_path, algorithm):
    store = manifest_store(tmp_path, [("A", part) for part in [*PARTS, "test", "test"]])
    folder = train_on(store, tmp_path / "runs", algorithm={"name": algorithm})
    assert evaluate_run(folder.path, "test")["student"]["accuracy"] == 1.0


def test_a_run_without_validation_ends_with_its_last_checkpoint(tmp_path):
    store = manifest_store(tmp_path, [("AB"[i % 2], "train") for i in range(16)])
    changes = {"evaluation": {"checkpoint": "last", "batchnorm_batches": 1, "batch": 8}}
    schedule = {"schedule": {"steps": 4, "warmup": 0, "evaluate_every": 2}}
    tree = tiny.tiny_recipe(store, tmp_path / "runs")
    tree["model"] |= {"metadata": "none"}
    folder = run(make(tree | changes | schedule | {"labels": {"fraction": 1.0}}))
    assert folder.finished()["best_step"] == 4 and folder.finished()["best"] is None
    with pytest.raises(ConfigError, match=r"schedule\.patience needs a best checkpoint"):
        make(tree | changes | {"schedule": {"steps": 4, "warmup": 0, "patience": 2}})


def test_with_last_the_newest_checkpoint_wins_though_validation_is_scored(tmp_path):
    store = manifest_store(tmp_path, [("AB"[i % 2], part) for i, part in enumerate(PARTS)])
    ends = {}
    for which in ("best", "last"):
        tree = tiny.tiny_recipe(store, tmp_path / which)
        tree["model"] |= {"metadata": "none"}
        # With a learning rate of almost 0 all validations are equal: the first is the best.
        tree |= {"optimizer": {"lr": 1e-12}, "labels": {"fraction": 1.0}, "ema": {"decay": 0.0}}
        tree |= {"evaluation": {"checkpoint": which, "batchnorm_batches": 0}}
        folder = run(make(tree | {"schedule": {"steps": 4, "warmup": 0, "evaluate_every": 2}}))
        ends[which] = folder.finished()["best_step"]
    assert ends == {"best": 2, "last": 4}
