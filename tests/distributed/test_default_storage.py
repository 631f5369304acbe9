"""A recipe with default workers and storage, as most are: its run lies where the command was typed."""

import pytest
import yaml

from stssl.recipes.recipe import load_training_recipe
from stssl.training.launch import run


@pytest.mark.ray
@pytest.mark.slow
def test_readme_a_run_lies_where_the_command_was_typed(recipe_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.zarr").symlink_to(recipe_tree["data"]["store"])
    recipe_tree["data"]["store"] = "near.zarr"
    del recipe_tree["launch"]
    recipe_tree["schedule"] |= {"steps": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
    folder = run(load_training_recipe("recipe.yaml"))
    assert folder.path == tmp_path / "runs" / "run"
    assert (folder.path / "checkpoints" / "student.safetensors").exists() and folder.finished()["steps"] == 4
