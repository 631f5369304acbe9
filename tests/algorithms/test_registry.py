"""Test that an algorithm takes one file and one line."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from typer.testing import CliRunner

import stssl.algorithms
from stssl.algorithms import ALGORITHMS, NAMES, Algorithm, AlgorithmConfig
from stssl.algorithms.base import LabelConfig
from stssl.algorithms.registry import import_algorithm
from stssl.base.config import config_types, part_name
from stssl.commands.cli import app
from stssl.sweeps.domains import IDLE

FOLDER = Path(stssl.algorithms.__file__).parent


def defines_an_algorithm(path):
    """True if a class of the file names its configuration."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    names = {target.id for one in classes for node in one.body for target in getattr(node, "targets", ())}
    names |= {node.target.id for one in classes for node in one.body if isinstance(node, ast.AnnAssign)}
    return "config_type" in names and path.stem != "base"


def module_of(monkeypatch, name, *classes):
    """Make a module of the algorithms' folder that has no file."""
    module = ModuleType(f"stssl.algorithms.{name}")
    for kind in classes:
        kind.__module__ = module.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)


class ToyConfig(LabelConfig):
    name: Literal["toy"] = "toy"


class Toy(Algorithm):
    config_type = ToyConfig


class Other(Algorithm):
    config_type = ToyConfig


def test_every_file_with_an_algorithm_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.py") if defines_an_algorithm(path)) == sorted(NAMES)


def test_recipes_and_the_help_know_every_algorithm():
    assert [part_name(kind) for kind in config_types(AlgorithmConfig)] == list(ALGORITHMS) == list(NAMES)
    helped = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert all(name in helped for name in NAMES)


def test_a_search_knows_the_keys_that_an_algorithm_leaves_unused():
    for key in ("loss.unlabeled", "votes"):
        ((other, names),) = IDLE[key]
        assert other == "algorithm.name"
        assert set(names) == {name for name, kind in ALGORITHMS.items() if key in kind.unused_keys()}
    assert ALGORITHMS["supervised"].unused_keys() == ("loss.unlabeled", "votes")
    assert ALGORITHMS["fixmatch"].unused_keys() == ()


def test_an_algorithm_is_found_by_the_name_of_its_file(monkeypatch):
    module_of(monkeypatch, "toy", Toy, ToyConfig)
    assert import_algorithm("toy") is Toy


def test_control_a_wrong_file_is_refused(monkeypatch):
    module_of(monkeypatch, "toys", Toy)
    with pytest.raises(TypeError, match="must be 'toys', not 'toy'"):
        import_algorithm("toys")
    module_of(monkeypatch, "toy", Toy, Other)
    with pytest.raises(TypeError, match="one subclass of Algorithm, not 2"):
        import_algorithm("toy")
    module_of(monkeypatch, "toy", ToyConfig)
    with pytest.raises(TypeError, match="one subclass of Algorithm, not 0"):
        import_algorithm("toy")


def test_the_names_are_known_without_torch():
    code = "import sys; from stssl.algorithms import NAMES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
