"""Recipes by name: those of the checkout, those of a wheel, and what a wrong name says."""

import logging
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from stssl.base.errors import ConfigError
from stssl.recipes import catalog
from stssl.recipes.catalog import described_recipes, find_recipe, recipe_folder, recipe_names, resolved_text

CHECKOUT = Path(__file__).parents[2]


def test_names_are_those_of_the_files_in_experiments():
    names = recipe_names()
    assert recipe_folder() == CHECKOUT / "experiments"
    assert {"eurosat/fixmatch_cpu", "own/fixmatch", "sweeps/cpu", "pretrain/cpu"} <= set(names)
    assert not any(name.startswith("base/") for name in names)


def test_each_recipe_is_described_by_its_comment():
    lines = described_recipes()
    assert len(lines) == len(recipe_names()) and all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_a_name_and_a_path_find_the_same_file(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    assert find_recipe("eurosat/fixmatch_cpu").samefile(find_recipe("experiments/eurosat/fixmatch_cpu.yaml"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("eurosat/fixmach_cpu", "eurosat/fixmatch_cpu"), ("fixmatch_votes_cpu", "eurosat/fixmatch_votes_cpu")],
)
def test_an_unknown_name_names_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"there is no recipe '{name}'.*Did you mean .*{nearest}"):
        find_recipe(name)


@pytest.mark.parametrize("name", ["", "..", "a\0b", "x" * 5000, "~/mine"])
def test_what_is_no_name_is_refused_in_words(name):
    with pytest.raises(ConfigError, match="there is no recipe"):
        find_recipe(name)


def test_a_file_of_the_name_is_taken_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eurosat").mkdir()
    (tmp_path / "eurosat" / "fixmatch_cpu").write_text("name: mine\n")
    with caplog.at_level(logging.WARNING, "stssl"):
        assert find_recipe("eurosat/fixmatch_cpu") == Path("eurosat/fixmatch_cpu")
    assert "taking the file eurosat/fixmatch_cpu, not the recipe" in caplog.text


def test_a_resolved_recipe_has_every_default_and_keeps_variables(monkeypatch):
    monkeypatch.delenv("EUROSAT", raising=False)
    text = resolved_text(find_recipe("eurosat/fixmatch_cpu"), ["seed=3"])
    assert "${EUROSAT}" in text and "seed: 3" in text and "patience: null" in text
    assert "trials: 6" in resolved_text(find_recipe("sweeps/cpu"))


def test_a_wheel_has_all_recipes(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(CHECKOUT)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if "recipe_files" in name}
    wanted = {path.relative_to(CHECKOUT / "experiments") for path in (CHECKOUT / "experiments").rglob("*.yaml")}
    assert packed == {f"stssl/recipe_files/{path.as_posix()}" for path in wanted}


def test_a_source_distribution_has_all_recipes(tmp_path):
    script = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        packed = {name.partition("/")[2] for name in source.getnames()}
    assert {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "experiments").rglob("*.yaml")} <= packed


def test_an_installed_package_takes_its_own_copy(monkeypatch, tmp_path):
    (tmp_path / "files" / "eurosat").mkdir(parents=True)
    (tmp_path / "files" / "eurosat" / "own.yaml").write_text("# Mine.\nname: x\n")
    monkeypatch.setattr(catalog, "CHECKOUT", tmp_path / "nowhere")
    monkeypatch.setattr(catalog, "INSTALLED", tmp_path / "files")
    recipe_folder.cache_clear()
    try:
        assert recipe_names() == ("eurosat/own",) and described_recipes() == ["eurosat/own  Mine."]
    finally:
        recipe_folder.cache_clear()
