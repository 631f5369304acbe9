"""Test the documented sequence of two commands: pretrain, then train from the weights."""

import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stssl.commands.cli import main
from stssl.recipes.build import build_step
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.training.run_folder import RunFolder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process, and return the last line that it prints."""

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["stssl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        assert not ended.value.code, output
        return output.out.strip().splitlines()[-1]

    return go


def test_a_training_run_starts_from_a_pretrained_one(command, recipe_tree, tmp_path):
    training = recipe_tree | {"name": "train", "launch": {"workers": 0, "storage": str(tmp_path / "runs")}}
    pretraining = {
        "name": "pretrain",
        "data": recipe_tree["data"],
        "model": {key: recipe_tree["model"][key] for key in ("backbone", "backbone_args", "image_size")},
        "pretext": {"geo": {"name": "clusters", "k": 5}, "queue": 32},
        "batch": {"size": 16},
        "schedule": {"steps": 6, "evaluate_every": 3},
        "launch": training["launch"],
        "logging": {"tensorboard": False},
    }
    for name, tree in (("train", training), ("pretrain", pretraining)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    made = command("pretrain", tmp_path / "pretrain.yaml")
    trained = command("train", tmp_path / "train.yaml", f"model.weights=run:{made}")
    recipe = RunFolder.existing(trained).recipe_as(Recipe)
    assert recipe.model.weights == f"run:{made}"
    step = build_step(recipe, open_data(recipe))
    weights = load_file(f"{made}/checkpoints/encoder.safetensors")
    for name in ("student", "teacher"):
        assert torch.equal(step.networks[name].backbone.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": "none"})})
    fresh = build_step(plain, open_data(plain)).networks["student"].backbone
    assert not torch.equal(fresh.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
