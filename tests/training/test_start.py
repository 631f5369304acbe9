"""What a run starts from: the scaling of its weights is fed, recorded, and kept when the weights are gone."""

import json

import pytest
import torch
from torch.testing import assert_close

from stssl.analysis.probe import probe_run
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, RunError
from stssl.models.backbones import make_backbone
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.students.loading import read_described
from stssl.training.launch import check_run, run
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run, load_run

FMOW = "moco_geo.pth.tar"
"""A published name: RGB weights that were fed with ImageNet's mean and standard deviation."""
ARGS = {"channels": [4, 8, 8, 8]}


@pytest.fixture
def weights(tmp_path):
    backbone = make_backbone("slim_resnet", ARGS, size=16, in_channels=3, classes=7, hub=False)
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in backbone.state_dict().items()}}, tmp_path / FMOW)
    return tmp_path / FMOW


@pytest.fixture
def recipe(recipe_tree, weights):
    changes = {"model": {"weights": f"file:{weights}", "metadata": "none"}, "schedule": {"steps": 4, "warmup": 0}}
    return validate(Recipe, merge(recipe_tree, changes), "test")


def with_data(recipe, **changes):
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def fed(pixels):
    """What the networks see of black and white."""
    ends = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    return pixels({"rgb": ends})[:, :, 0, 0] if "rgb" in pixels.groups else pixels({pixels.groups[0]: ends})[:, :, 0, 0]


def test_the_scaling_of_known_weights_is_fed_recorded_and_outlives_their_file(recipe, weights):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.stack([-mean / std, (1 - mean) / std])
    state = open_train_state(recipe, torch.device("cpu"))
    assert_close(fed(state.task.views.pixels), expected)
    folder = run(recipe)
    record = json.loads((folder.path / "record.json").read_text())
    assert record["scaling"]["by"] == "weights" and record["scaling"]["mean"][0] == pytest.approx(255 * 0.485)
    assert record["weights"]["layout"] == "DDP + MoCo + timm's names" and record["weights"]["missing"] == []
    weights.unlink()
    (folder.path / "done.json").unlink()
    assert run(recipe).finished()["steps"] == 4  # resumes without the file
    assert json.loads((folder.path / "record.json").read_text())["weights"] == record["weights"]
    assert_close(fed(load_run(folder).pixels), expected)
    evaluate_run(folder.path, "test")
    band = read_described(folder.path).description.bands[0]
    assert (band.low, band.high, band.mean) == pytest.approx((0, 255, 255 * 0.485), rel=1e-5)
    damaged = json.loads((folder.path / "record.json").read_text()) | {"scaling": {"by": "weights", "low": [1]}}
    (folder.path / "record.json").write_text(json.dumps(damaged))
    with pytest.raises(RunError, match=r"record\.json is damaged: scaling"):
        load_run(folder)


def test_mean_and_std_of_the_recipe_come_first_and_unknown_weights_change_nothing(recipe, weights):
    state = open_train_state(with_data(recipe, mean=(100.0, 50.0, 0.0), std=(10.0, 5.0, 255.0)), torch.device("cpu"))
    assert_close(fed(state.task.views.pixels), torch.tensor([[-10.0, -10.0, 0.0], [15.5, 41.0, 1.0]]))
    other = weights.rename(weights.with_name("other.pth"))
    changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": f"file:{other}"})})
    state = open_train_state(changed, torch.device("cpu"))
    assert_close(fed(state.task.views.pixels), torch.tensor([[-1.0] * 3, [1.0] * 3]))
    assert state.task.about()["scaling"]["by"] == "data.scale"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": [1.0, 2.0, 3.0]}, "mean and std belong together"),
        ({"mean": [1.0], "std": [1.0]}, "mean has 1 numbers for 3 bands"),
        ({"mean": [1.0] * 3, "std": [1.0, 0.0, 1.0]}, r"std.1"),
    ],
)
def test_numbers_that_cannot_scale_are_refused(recipe_tree, changes, words):
    with pytest.raises(ConfigError, match=words):
        validate(Recipe, merge(recipe_tree, {"data": changes}), "test")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"backbone": "resnet18", "backbone_args": {}, "weights": "timm:nothing"},
            r"timm has no weights 'nothing'.*a1_in1k",
        ),
        ({"backbone": "resnet18", "backbone_args": {}, "weights": "timm:resnet34.a1_in1k"}, "is of resnet34"),
        ({"weights": "timm:a1_in1k"}, "has none"),
        ({"weights": "somewhere"}, "give none, imagenet, timm:TAG"),
        ({"weights": "hf:"}, "give none, imagenet, timm:TAG"),
    ],
)
def test_weights_that_do_not_exist_are_refused_before_the_start(recipe_tree, model, words):
    with pytest.raises(ConfigError, match=words):
        check_run(validate(Recipe, merge(recipe_tree, {"model": model | {"metadata": "none"}}), "test"))


def test_pretraining_starts_from_weights_and_passes_their_scaling_on(recipe_tree, weights, tmp_path):
    kept = ("name", "data", "compute", "launch", "logging")
    tree = {name: recipe_tree[name] for name in kept} | {
        "name": "pre",
        "model": {"backbone": "slim_resnet", "backbone_args": ARGS, "image_size": 16, "weights": f"file:{weights}"},
        "pretext": {"queue": 32},
        "batch": {"size": 8},
        "schedule": {"steps": 2, "warmup": 0, "evaluate_every": 2},
    }
    first = run(validate(PretrainRecipe, tree, "test"))
    changes = {"model": {"weights": f"run:{first.path}", "metadata": "none"}, "schedule": {"steps": 4, "warmup": 0}}
    second = validate(Recipe, merge(recipe_tree, {"name": "second", **changes}), "test")
    state = open_train_state(second, torch.device("cpu"))
    assert state.task.about()["scaling"]["by"] == "weights"
    assert state.task.about()["weights"]["source"] == f"run:{first.path}"
    assert RunFolder(first.path).read_record()[1]["scaling"]["std"] == state.task.about()["scaling"]["std"]
    assert probe_run(first.path, ["all"], overrides=["epochs=1"]).rows
