"""Find the recipes that come with the package by name, such as `eurosat/fixmatch_cpu`.

Recipes are written and kept in the checkout's folder `experiments`. A wheel has a copy of its YAML files (setup.py).
"""

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from stssl.base.config import apply_overrides, load_tree, merge, validate
from stssl.base.errors import ConfigError, shown
from stssl.base.logs import LOG
from stssl.base.yaml_text import dump_yaml
from stssl.recipes.pretraining import kind_of

CHECKOUT = Path(__file__).parents[2] / "experiments"
INSTALLED = Path(__file__).parents[1] / "recipe_files"
HIDDEN = ("base",)
"""Folders of files that are only for `base:`, and are no recipes."""


@cache
def recipe_folder() -> Path:
    """Return the folder of the recipes: of the checkout that this package runs from, else of the installed package."""
    return CHECKOUT if (CHECKOUT / "base").is_dir() else INSTALLED


def recipe_names() -> tuple[str, ...]:
    """List the names of all recipes and sweeps, such as `eurosat/fixmatch_cpu`, sorted."""
    root = recipe_folder()
    found = (path.relative_to(root).with_suffix("") for path in root.rglob("*.yaml"))
    return tuple(sorted(name.as_posix() for name in found if name.parts[0] not in HIDDEN))


def find_recipe(name: str | Path) -> Path:
    """Find the file of a recipe that is given by name or by path.

    A file of that path is taken before a recipe of that name. If there are both, a log line says which one is taken.

    Args:
        name: `eurosat/fixmatch_cpu`, or the path of a YAML file.

    Returns:
        Path of the file. A path that ends in .yaml or .yml is returned even if nothing is there: reading it says so.

    Raises:
        ConfigError: There is no such recipe or file; names the nearest recipes.
    """
    text = str(name)
    path = Path(name)
    known = recipe_names() if _may_be_name(text) else ()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
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
    """True if a text could name a recipe: no suffix, no way out of the folder."""
    return not text.startswith((".", "/", "~")) and "\\" not in text and "\0" not in text


def _nearest(text: str) -> str:
    names = recipe_names()
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    # A name without its folder: `fixmatch_cpu` for `eurosat/fixmatch_cpu`.
    near = near or [name for name in names if name.rpartition("/")[2] == text.rpartition("/")[2]][:3]
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    return f"{hint}`stssl recipes` lists all; a file of your own is given by its path, such as ./mine.yaml."


def described_recipes() -> list[str]:
    """List all recipes and sweeps, one a line: the name, and the first sentence of the file's comment."""
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
    """Return a recipe as YAML with its bases and every default written out; a sweep file as it is resolved.

    Variables such as `${EUROSAT}` that are not set stay as they are.

    Args:
        path: File of a recipe or a sweep.
        overrides: `dotted.key=value` changes.

    Raises:
        ConfigError: The file or an override is wrong.
    """
    tree = apply_overrides(load_tree(path), overrides)
    if "search" in tree:
        return dump_yaml(tree)
    kind = kind_of(tree)
    tree = merge({"optimizer": {"name": kind.optimizer_name}, "name": f"{path.parent.name}-{path.stem}-s0"}, tree)
    return validate(kind, tree, str(path), absolute=False).yaml()
