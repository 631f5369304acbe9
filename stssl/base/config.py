"""Read typed configurations: YAML files with `base:`, and overrides such as `section.key=value`.

First merge files and overrides as plain dicts. Then validate the result once. Errors name the key and the fix. The type
annotation of a key may hold a `Domain`: a hyperparameter search draws values for the key from it.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from stssl.base.errors import ConfigError, shown
from stssl.base.json_types import ConfigTree, JsonMapping, JsonObject
from stssl.base.mistakes import Problem, explain, one_for_each, without_tags
from stssl.base.paths import ELSEWHERE
from stssl.base.textfiles import read_bounded
from stssl.base.yaml_text import DEPTH, FILE_BYTES, parse_yaml, unclean

Tree = JsonObject
"""Keys and values of a recipe file."""


class Config(BaseModel):
    """Define the base class of recipes and their sections. An object holds checked values that cannot change later.

    Refuse unknown keys and values of a wrong type: the text "5" is no number.

    Attributes:
        renamed: New name of each top-level key that earlier releases called differently, for messages.
    """

    renamed: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Domain:
    """Define which values of a recipe key a hyperparameter search may try: a range of numbers, or a list of choices.

    Attributes:
        low: Smallest number of a range; None if `choices` are given.
        high: Largest number of a range, inclusive; None if `choices` are given.
        log: True to draw the logarithm uniformly. This makes each factor of ten equally likely.
        choices: Values to choose from. They replace the range.
        step: Distance between the numbers of a range; None allows every number in it.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[JsonValue, ...] = ()
    step: float | None = None


Positive = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
ImageSize = Annotated[int, Field(ge=2, le=4096)]
"""Side of an image in pixels. The smallest is 2, since a shift needs two pixels. No store has patches above 4096."""
Threads = Annotated[int, Field(ge=1, le=1024)]
"""Number of threads in one process."""
MOST_ROWS = 2**20
"""Largest number of patches in a global batch."""
BatchSize = Annotated[int, Field(ge=1, le=MOST_ROWS)]
"""Number of patches in a global batch."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share of a whole, 0..1."""
Switch = Annotated[bool, Domain(choices=(False, True))]
"""True or False. A search may choose between them."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of random numbers. numpy, torch and scikit-learn all accept this range."""

C = TypeVar("C", bound=Config)
MOST_BASES = 20
"""Largest number of files in a chain of `base:` keys."""
MOST_PROBLEMS = 20
"""Largest number of wrong keys in one message."""
YAML_ADVICE = "Give the path of a YAML file."


def merge(under: JsonMapping, over: JsonMapping) -> Tree:
    """Return a new recipe: two recipes (nested dicts) merged key by key.

    Where both have a value, that of `over` counts. If a section of `over` has another `name` than that of `under`, it
    replaces the whole section: the settings of one algorithm or encoder do not fit another. If `over` sets a section
    to `{}`, the section of `under` is dropped too, and validation fills in the defaults.
    """
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = value.get("name", old.get("name")) != old.get("name")
            merged[key] = dict(value) if renamed or not value else merge(old, value)
        else:
            merged[key] = value
    return merged


def load_with(path: str | Path, overrides: Iterable[str]) -> tuple[Tree, list[str]]:
    """Read a YAML recipe, merged over the base file that its `base:` key or an override `base=FILE` names.

    Args:
        path: File to read.
        overrides: Arguments such as `section.key=value`. The path in `base=FILE` is relative to the folder of `path`.
            It replaces the path of the key `base:`.

    Returns:
        The merged nested dict of the files, and the overrides other than `base=FILE`, which are not applied yet.

    Raises:
        ConfigError: A file is missing, too large or no mapping, or the files name each other in a circle.
    """
    pairs = [(text.partition("=")[0].strip(), text) for text in overrides]
    bases = [text.partition("=")[2].strip() for key, text in pairs if key == "base"]
    return load_tree(path, base=bases[-1] if bases else None), [text for key, text in pairs if key != "base"]


def load_tree(path: str | Path, seen: tuple[Path, ...] = (), base: str | None = None) -> Tree:
    """Read a YAML recipe, merge it over the file that its `base:` key names, and return the result as a nested dict.

    The base file may name a base too. The path after `base:` is relative to the folder of the file that has this key.

    Args:
        path: File to read.
        seen: Files that were already read in this chain of `base:` keys. Callers leave it out.
        base: Path of a base file that replaces the one of the file's `base:` key; None for no replacement.

    Raises:
        ConfigError: A file is missing, too large or no mapping, or the files name each other in a circle.
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
    own = tree.pop("base", None)
    if not isinstance(own, str | None):
        raise ConfigError(f"{path}: base must be the path of one file, not {shown(own)}")
    below = base or own
    return merge(load_tree(file.parent / below, (*seen, file)), tree) if below else tree


def _read_tree(path: str | Path) -> Tree:
    try:
        text = read_bounded(path, FILE_BYTES, ConfigError, YAML_ADVICE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text. {YAML_ADVICE}") from None
    return parse_tree(text, str(path))


def parse_tree(text: str, source: str) -> Tree:
    """Parse YAML text that must hold keys and values at its top level, and return them as a nested dict.

    Args:
        text: YAML text.
        source: Name of the file or argument in error messages.

    Raises:
        ConfigError: The text is no valid YAML, or its top level is empty, a list or a single value.
    """
    tree = parse_yaml(text, source)
    if not isinstance(tree, dict):
        kinds = {"str": "a text", "list": "a list"}
        what = "it is empty" if tree is None else f"it is {kinds.get(type(tree).__name__, 'a single value')}"
        raise ConfigError(f"{source} must hold keys and values at its top level, and {what}. {YAML_ADVICE}")
    return tree


def apply_overrides(tree: Tree, overrides: Iterable[str]) -> Tree:
    """Return a copy of a recipe (nested dict) with the values of arguments such as `section.key=value` merged in.

    Args:
        tree: The recipe.
        overrides: The arguments. The text after `=` is YAML.

    Raises:
        ConfigError: An argument has no `=`, a wrong key, or a value that is not YAML.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(part and part == part.strip() for part in parts) or len(parts) > DEPTH:
            raise ConfigError(f"override '{shown(override)}' must look like section.key=value")
        if problem := unclean(key):
            raise ConfigError(f"override '{shown(override)}': the key {problem}")
        try:
            value = parse_yaml(text, f"override {shown(override)}")
        except ConfigError as error:
            # A shell splits `data.split={name: blocks}` at its space, and the first piece ends without its bracket.
            # The parser's message does not explain this: so add the advice to quote the argument.
            split = text.count("{") > text.count("}") or text.count("[") > text.count("]")
            raise ConfigError(
                f"{error}{_QUOTE.format(key.strip(), '{...}' if '{' in text else '[...]')}" if split else str(error)
            ) from None
        tree = merge(tree, nested(key.strip(), value))
    return tree


_QUOTE = ". The shell split the argument at its spaces: quote it, '{}={}'"


def nested(dotted: str, value: JsonValue) -> Tree:
    """Return nested dicts that hold one value under a dotted key: `{a: {b: value}}` for the key `a.b`."""
    *above, last = dotted.split(".")
    tree = {last: value}
    for key in reversed(above):
        tree = {key: tree}
    return tree


def flatten(tree: JsonMapping, prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the pair (dotted key such as `a.b`, value) for each value in nested dicts. A list counts as one value.

    Args:
        tree: The nested dicts.
        prefix: Text before each key, such as `section.`.
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_keys(one: JsonMapping, other: JsonMapping) -> list[str]:
    """Return the sorted dotted keys, such as `a.b`, that differ in value between two recipes.

    A missing key counts as null.
    """
    left, right = dict(flatten(one)), dict(flatten(other))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def expand_variables(tree: JsonMapping, source: str, advise: Callable[[str], str] = lambda _: "") -> Tree:
    """Return a copy of a recipe. In its texts, each `${NAME}` becomes the value of the environment variable NAME.

    Args:
        tree: Nested dict of the recipe.
        source: Name of the recipe's file in error messages.
        advise: Function that takes the name of a variable that is not set, and returns more advice for the message.
            The advice begins with a space.

    Raises:
        ConfigError: A variable is not set, or its value has control characters. The message names the key and the
            variable.
    """
    return {name: _expanded(value, source, name, advise) for name, value in tree.items()}


def _expanded(value: JsonValue, source: str, key: str, advise: Callable[[str], str]) -> JsonValue:
    if isinstance(value, dict):
        return {name: _expanded(part, source, f"{key}.{name}", advise) for name, part in value.items()}
    if isinstance(value, list):
        return [_expanded(part, source, key, advise) for part in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)\}", lambda found: _variable(found[1], source, key, advise), value)


def _variable(name: str, source: str, key: str, advise: Callable[[str], str]) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"{source}: {key} needs the environment variable {name}, which is not set. "
            f"Run `export {name}=...`, or give {key}=... on the command line.{advise(name)}"
        )
    if problem := unclean(os.environ[name]):
        raise ConfigError(f"{source}: {key}: the value of the environment variable {name} {problem}")
    return os.environ[name]


def validate(model: type[C], tree: ConfigTree, source: str, absolute: bool = True, overrides: Sequence[str] = ()) -> C:
    """Check the plain values of a recipe or sweep file, and return them as a typed configuration object.

    Args:
        model: Class of the object to return.
        tree: Nested dict of the file.
        source: Name of the file or command in error messages.
        absolute: True to make paths absolute; False if another machine will run the recipe.
        overrides: Command-line arguments `key=value` that the tree contains already. If all wrong values come from
            them, the message names them in place of `source`.

    Raises:
        ConfigError: Some keys are wrong. The message lists each one with its dotted path, the allowed values, and the
            nearest right key.
    """
    # Convert to JSON first. Only in JSON does pydantic's strict mode accept a list for a tuple, and a text for an enum.
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
        wrong = [".".join(map(str, without_tags(problem["loc"], tree))) for problem in problems]
        blamed = [next((text for text in overrides if _sets(text, key)), None) for key in wrong]
        if blamed and None not in blamed:
            source = ", ".join(f"override '{shown(text)}'" for text in dict.fromkeys(blamed))
        raise ConfigError(f"{source}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)) from None


def _sets(override: str, key: str) -> bool:
    """Return True if an override `KEY=VALUE` sets the dotted key `key`, or a section or list that contains it."""
    given = override.partition("=")[0].strip()
    return key == given or key.startswith(f"{given}.")


def _explain(model: type[Config], tree: ConfigTree, problem: Problem) -> str:
    location = without_tags(problem["loc"], tree)
    if problem["type"] == "extra_forbidden" and len(location) == 1 and location[0] in model.renamed:
        old = str(location[0])
        return f"unknown key {old}: did you mean {model.renamed[old]}? (an earlier release called it {old})"
    entry = bool(location) and isinstance(location[-1], int)
    above = [str(part) for part in location[: -2 if entry else -1]]
    try:
        fields = fields_of(model, tree, above)
    # Go on without fields: they only improve messages. A path into a list or into free keys has no fields.
    except ConfigError:
        fields = {}
    return explain(problem, tree, fields)


def fields_of(model: type[Config], tree: ConfigTree, path: Sequence[str]) -> dict[str, FieldInfo]:
    """Return the pydantic fields of the section of a configuration to which `path` leads.

    Some sections have several kinds, such as the algorithm or the encoder. The section's key `name` chooses the kind.

    Args:
        model: Configuration class of the whole file.
        tree: Nested dict of the whole file, before validation.
        path: Keys that lead down to the section; empty for the top level.

    Returns:
        The section's fields by name; empty if the file names a kind that does not exist.

    Raises:
        ConfigError: The path does not exist in this class. The message names the nearest key.
    """
    current: type[Config] = model
    node: object = tree
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


def config_types(annotation: object) -> list[type[Config]]:
    """Return the subclasses of `Config` that a type annotation allows: the class itself, or those in a union.

    The list may be empty.
    """
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [part for argument in get_args(annotation) for part in config_types(argument)]
    return []


def part_name(part: type[Config]) -> str | None:
    """Return the value of the recipe key `name` that selects a Config class, or None if no single value does.

    For example, `name: fixmatch` selects the class with the settings of the algorithm FixMatch.
    """
    field = part.model_fields.get("name")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if len(values) == 1 else None
