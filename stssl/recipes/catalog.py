"""Find the recipes that come with the package by name, such as `eurosat/fixmatch_cpu`.

A checkout has its recipes in the folder `experiments`. A wheel has a copy of their YAML files (see packaging.py).
"""

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from stssl.base.config import apply_overrides, load_with, merge, validate
from stssl.base.errors import ConfigError, shown
from stssl.base.logs import LOG
from stssl.base.yaml_text import dump_yaml
from stssl.recipes.pretraining import kind_of

CHECKOUT = Path(__file__).parents[2] / "experiments"
INSTALLED = Path(__file__).parents[1] / "recipe_files"
HIDDEN = ("base",)
"""Folders without recipes. Other recipes name their files with `base:`."""


@cache
def recipe_folder() -> Path:
    """Return the folder of the package's recipes: `experiments` in a checkout, or its copy in an installed package."""
    return CHECKOUT if (CHECKOUT / "base").is_dir() else INSTALLED


def recipe_names() -> tuple[str, ...]:
    """Return the sorted names of all recipes and sweeps that come with the package, such as `eurosat/fixmatch_cpu`."""
    root = recipe_folder()
    found = (path.relative_to(root).with_suffix("") for path in root.rglob("*.yaml"))
    return tuple(sorted(name.as_posix() for name in found if name.parts[0] not in HIDDEN))


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe's file, given the name of a recipe of the package or the path of a file.

    If both a file with this path and a recipe with this name exist, the file is used and a warning is logged.

    Args:
        name: Name such as `eurosat/fixmatch_cpu`, or path of a YAML file.

    Returns:
        Path of the file. A path with the ending .yaml or .yml need not exist: reading it will raise the error.

    Raises:
        ConfigError: No such recipe or file exists. The message names similar recipes.
    """
    text = str(name)
    path = Path(name)
    known = recipe_names() if _may_be_name(text) else ()
    try:
        is_file = path.is_file()
    # Count a path that is too long, or has a NUL character, as no file: `is_file` raises an error for such a path.
    except (OSError, ValueError):
        is_file = False
    if is_file:
        if text in known:
            LOG.warning("taking the file %s, not the recipe of that name. Remove or rename it for the recipe.", path)
        return path
    if text in known:
        return recipe_folder() / f"{text}.yaml"
    if path.suffix in (".yaml", ".yml") or path.is_absolute():
        return path
    raise ConfigError(f"there is no recipe '{shown(text)}', and no such file. {_nearest(text)}")


def _may_be_name(text: str) -> bool:
    """Return True if a text could be the name of a recipe, such as `eurosat/fixmatch_cpu`.

    Paths that could lead out of the folder of recipes are no names.
    """
    return not text.startswith((".", "/", "~")) and "\\" not in text and "\0" not in text


def _nearest(text: str) -> str:
    names = recipe_names()
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    # The user may have left out the folder, as in `fixmatch_cpu` for `eurosat/fixmatch_cpu`.
    near = near or [name for name in names if name.rpartition("/")[2] == text.rpartition("/")[2]][:3]
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    return f"{hint}`stssl recipes` lists all; a file of your own is given by its path, such as ./mine.yaml."


def described_recipes() -> list[str]:
    """Return a line of text for each recipe and sweep that comes with the package.

    The line has the name, and the first sentence of the comment at the beginning of the file.
    """
    names = recipe_names()
    width = max(map(len, names))
    return [f"{name:<{width}}  {_first_sentence(recipe_folder() / f'{name}.yaml')}" for name in names]


def _first_sentence(path: Path) -> str:
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence, dot, _ = " ".join(comment).partition(". ")
    return sentence + (dot.strip() or "")


def resolved_text(path: Path, overrides: Iterable[str] = ()) -> str:
    """Return a recipe as YAML text, including the values of its base files and all defaults.

    A sweep file gets the values of its base files, but no defaults. Variables such as `${EUROSAT}` are not replaced.

    Args:
        path: File of a recipe or a sweep.
        overrides: Changes to the file, each of the form `dotted.key=value`.

    Raises:
        ConfigError: The file or an override is wrong.
    """
    tree, overrides = load_with(path, overrides)
    tree = apply_overrides(tree, overrides)
    if "search" in tree:
        return dump_yaml(tree)
    kind = kind_of(tree)
    tree = merge({"optimizer": {"name": kind.optimizer_name}, "name": f"{path.parent.name}-{path.stem}-s0"}, tree)
    return validate(kind, tree, str(path), absolute=False).yaml()
