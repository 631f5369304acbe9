"""Typed configuration trees: YAML with `base:` inheritance, dotted overrides, errors that name the key and the fix.

A tree of plain dicts is merged first (files, then overrides) and validated once. A value's annotation may carry the
`Domain` that a search draws it from, so that there is one list of what can be tuned.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stssl.base.errors import ConfigError, shown
from stssl.base.mistakes import explain, one_for_each, without_tags
from stssl.base.paths import ELSEWHERE
from stssl.base.textfiles import read_bounded
from stssl.base.yaml_text import DEPTH, FILE_BYTES, parse_yaml, unclean

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every part of a recipe: immutable, without silent conversions or unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Domain:
    """Set the values a search may draw: `choices`, or the range `low`..`high`, in steps of `step`."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    step: float | None = None


Positive = Annotated[int, Field(ge=1)]
ImageSize = Annotated[int, Field(ge=2, le=4096)]
"""Side in pixels: shifts of images need two, and no store has larger patches."""
Threads = Annotated[int, Field(ge=1, le=1024)]
"""Of one process."""
MOST_ROWS = 2**20
Rows = Annotated[int, Field(ge=1, le=MOST_ROWS)]
"""Patches of a global batch."""
Share = Annotated[float, Field(ge=0, le=1)]
Switch = Annotated[bool, Domain(choices=(False, True))]
"""Yes or no, as a value that a search may choose."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of anything random: all generators that are used take these."""

C = TypeVar("C", bound=Config)
MOST_BASES = 20
MOST_PROBLEMS = 20
YAML_ADVICE = "Give the path of a YAML file."


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Deep merge; a part whose `name` changes, or that is given as `{}`, is replaced whole."""
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = value.get("name", old.get("name")) != old.get("name")
            merged[key] = dict(value) if renamed or not value else merge(old, value)
        else:
            merged[key] = value
    return merged


def load_tree(path: str | Path, seen: tuple[Path, ...] = ()) -> Tree:
    """Read a YAML file and the files that its `base:` keys name (relative to the naming file), nearest last.

    Raises:
        ConfigError: A file is missing, too large, not a mapping, or names itself as its base.
    """
    try:
        file = Path(path).resolve()
    except (OSError, RuntimeError, ValueError):
        raise ConfigError(f"cannot read {shown(str(path))}: it is no path to a file. {YAML_ADVICE}") from None
    if file in seen:
        raise ConfigError(f"{path}: base files name each other in a circle: {' -> '.join(map(str, (*seen, file)))}")
    if len(seen) >= MOST_BASES:
        raise ConfigError(f"{seen[0]}: more than {MOST_BASES} files name each other as base; write fewer")
    try:
        tree = _read_tree(path)
    except ConfigError as error:
        raise ConfigError(f"{seen[-1]}: base: {error}" if seen else str(error)) from None
    base = tree.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: base must be the path of one file, not {shown(base)}")
    return merge(load_tree(file.parent / base, (*seen, file)), tree) if base else tree


def _read_tree(path: str | Path) -> Tree:
    try:
        text = read_bounded(path, FILE_BYTES, ConfigError, YAML_ADVICE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text. {YAML_ADVICE}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        kinds = {"str": "a text", "list": "a list"}
        what = "it is empty" if tree is None else f"it is {kinds.get(type(tree).__name__, 'a single value')}"
        raise ConfigError(f"{path} must hold keys and values at its top level, and {what}. {YAML_ADVICE}")
    return tree


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Merge `dotted.key=value` arguments (values in YAML) into a tree.

    Raises:
        ConfigError: An argument has no `=`, its key has an empty or too many parts, or its value is not YAML.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(part and part == part.strip() for part in parts) or len(parts) > DEPTH:
            raise ConfigError(f"override '{shown(override)}' must look like section.key=value")
        if problem := unclean(key):
            raise ConfigError(f"override '{shown(override)}': the key {problem}")
        tree = merge(tree, nested(key.strip(), parse_yaml(text, f"override {shown(override)}")))
    return tree


def nested(dotted: str, value: Any) -> Tree:
    """The tree `{a: {b: value}}` of `a.b`."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value; lists count as values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ or that only one tree has, sorted."""
    left, right = dict(flatten(one)), dict(flatten(other))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def expand_variables(tree: Any, source: str, key: str = "") -> Any:
    """Replace `${NAME}` in strings by environment variables.

    Args:
        tree: Tree of plain values.
        source: Name of the file in messages.
        key: Dotted path of `tree` in the file, for messages.

    Raises:
        ConfigError: A variable is not set; names the key and the variable.
    """
    if isinstance(tree, dict):
        return {name: expand_variables(value, source, f"{key}.{name}".lstrip(".")) for name, value in tree.items()}
    if isinstance(tree, list):
        return [expand_variables(value, source, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    return re.sub(r"\$\{(\w+)\}", lambda found: _variable(found[1], source, key), tree)


def _variable(name: str, source: str, key: str) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"{source}: {key} needs the environment variable {name}, which is not set. "
            f"Run `export {name}=...`, or give {key}=... on the command line."
        )
    if problem := unclean(os.environ[name]):
        raise ConfigError(f"{source}: {key}: the value of the environment variable {name} {problem}")
    return os.environ[name]


def validate(model: type[C], tree: Mapping[str, Any], source: str, absolute: bool = True) -> C:
    """Build `model` from a tree, its paths absolute.

    Args:
        model: What to build.
        tree: Its values.
        source: What names it in errors.
        absolute: Whether paths become absolute, as they must where this machine carries it out.

    Raises:
        ConfigError: Lists every wrong key with its dotted path, what is allowed, and the nearest right key.
    """
    try:
        text = json.dumps(tree)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} has a value of a kind that recipes do not know: {error}") from None
    try:
        return model.model_validate_json(text, context=None if absolute else ELSEWHERE)
    except ValidationError as error:
        problems = one_for_each(error.errors(include_url=False), tree)
        lines = list(dict.fromkeys(shown(_explain(model, tree, problem), 1000) for problem in problems[:MOST_PROBLEMS]))
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
        raise ConfigError(f"{source}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)) from None


def _explain(model: type[Config], tree: Mapping[str, Any], problem: Any) -> str:
    location = without_tags(problem["loc"], tree)
    entry = bool(location) and isinstance(location[-1], int)
    above = [str(part) for part in location[: -2 if entry else -1]]
    try:
        fields = fields_of(model, tree, above)
    except ConfigError:  # an entry of a list or of a free mapping
        fields = {}
    return explain(problem, tree, fields)


def fields_of(model: type[Config], tree: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Find the fields (name -> pydantic FieldInfo) of the part at `path`, chosen by the `name` that the tree gives it.

    Args:
        model: Configuration class of the whole tree.
        tree: Plain values.
        path: Keys down to the part.

    Raises:
        ConfigError: The path does not exist in this model; names the nearest key.
    """
    current: type[Config] = model
    node: Any = tree
    for depth, key in enumerate(path):
        node = node.get(key, {}) if isinstance(node, Mapping) else {}
        field = current.model_fields.get(key)
        if field is None:
            near = difflib.get_close_matches(key, current.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(current.model_fields))}"
            raise ConfigError(f"unknown key {'.'.join(path[: depth + 1])}: {hint}")
        parts = config_types(field.annotation)
        name = node.get("name") if isinstance(node, Mapping) else None
        chosen = [part for part in parts if name is None or part_name(part) in (None, name)]
        if not chosen:
            return {}
        current = chosen[0]
    return dict(current.model_fields)


def config_types(annotation: Any) -> list[type[Config]]:
    """The Config classes in a (possibly annotated, possibly union) type."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [part for argument in get_args(annotation) for part in config_types(argument)]
    return []


def part_name(part: type[Config]) -> str | None:
    """The `name` by which a polymorphic part is chosen, if it has one fixed name."""
    field = part.model_fields.get("name")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if len(values) == 1 else None
