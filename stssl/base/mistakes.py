"""Turn pydantic's errors into messages about recipes. Each wrong value gets one line that shows its right form."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stssl.base.errors import shown

Problem = ErrorDetails
"""One error of a pydantic validation."""
KeyPath = Sequence[str | int]
"""Keys and list positions that lead to a value."""
Fields = Mapping[str, FieldInfo]
"""Fields of one part of a configuration by name."""

_PASSWORD = re.compile(r"://[^/@\s]*@")
"""User and password in a URL."""
_UNION = re.compile(r"[\[\](),]|^(str|int|float|bool|none|constrained-\w+|[A-Z]\w*)$")
"""Names that pydantic gives to the members of a union without a discriminator."""
_ARRAYS = ("tuple_type", "list_type", "set_type")
_PARTS = ("model_type", "model_attributes_type", "dict_type")


def without_tags(location: KeyPath, tree: object) -> list[str | int]:
    """Return the keys and list positions that lead to a wrong value in a recipe file.

    Args:
        location: Path of a pydantic error. If a key may have several types, pydantic adds the name of a type to it.
            Drop these names.
        tree: Nested dict of the file.
    """
    return [part for part, tag in _marked(location, tree) if not tag]


def _marked(location: KeyPath, tree: object) -> Iterator[tuple[str | int, bool]]:
    """Yield the pair (item, flag) for each item on the path of a pydantic error.

    The flag is True if pydantic added the item to name a type. It is False for a key or a list position.

    Args:
        location: Path of the error.
        tree: Nested dict of the recipe file, which shows which items are its keys.
    """
    kept = False
    for index, part in enumerate(location):
        if isinstance(tree, Mapping):
            # Only the last item can be a key that the file lacks. An earlier unknown item is the name of a type.
            above = index + 1 < len(location)
            if part not in tree and (above or tree.get("name") == part or _UNION.search(str(part))):
                yield part, True
                continue
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif isinstance(part, str) and kept:
            yield part, True
            continue
        kept = True
        yield part, False


def one_for_each(problems: Sequence[Problem], tree: object) -> list[Problem]:
    """Return only those of pydantic's errors that help the user to correct the wrong values of a recipe.

    If a key may have several types, pydantic reports errors for each type. Return only the errors for the type that the
    user probably meant.

    Args:
        problems: All errors that pydantic reported.
        tree: Nested dict of the recipe file.
    """
    groups: dict[tuple[str | int, ...], list[Problem]] = {}
    for problem in problems:
        if problem["type"] == "too_short" and problem["input"]:
            continue  # pydantic does not count wrong entries, and each of them has its own error already
        groups.setdefault(_union_of(problem["loc"], tree), []).append(problem)
    return [one for place, group in groups.items() for one in (_meant(place, group, tree) if place else group)]


def _union_of(location: KeyPath, tree: object) -> tuple[str | int, ...]:
    """Return the path of the first key that may have several types, on the path of a pydantic error; () if none may.

    Args:
        location: Path of the error.
        tree: Nested dict of the recipe file.
    """
    place: list[str | int] = []
    name: object = None
    node = tree
    for part, tag in _marked(location, tree):
        if tag and part != name:
            return tuple(place)
        if not tag:
            place.append(part)
            node = node.get(part) if isinstance(node, Mapping) else None
            name = node.get("name") if isinstance(node, Mapping) else None
    return ()


def _meant(place: tuple[str | int, ...], group: list[Problem], tree: object) -> list[Problem]:
    """Return pydantic's errors for the type that the user probably meant. The key may have several types.

    If no type is near to the given value, return one error that describes all accepted types.

    Args:
        place: Path of the key.
        group: All errors that pydantic reported for the key.
        tree: Nested dict of the recipe file.
    """
    value = tree
    for part in place:
        value = value.get(part) if isinstance(value, Mapping) else value[int(part)] if isinstance(value, list) else None
    here = [problem for problem in group if tuple(without_tags(problem["loc"], tree)) == place]
    deeper = [problem for problem in group if problem not in here]
    if isinstance(value, Mapping | list) and deeper:
        return deeper
    other = () if isinstance(value, str) else ("literal_error",)
    kinds = [one for one in here if not one["type"].endswith("_type") and one["type"] not in other]
    if len(here) == 1 or kinds:
        return kinds[:1] or here
    forms = dict.fromkeys(_form(problem) for problem in here)
    return [{**here[0], "type": "union", "msg": f"Give {' or '.join(forms)}", "input": value}]


def _form(problem: Problem) -> str:
    """Return words for the values that a type accepts, such as `a list`, given the pydantic error about this type."""
    if problem["type"] in _ARRAYS:
        return "a list"
    if problem["type"] in _PARTS:
        return "a part, such as {name: ...}"
    return str(problem["msg"].removeprefix("Input should be "))


def explain(problem: Problem, tree: object, fields: Fields) -> str:
    """Return one line about a wrong value of a recipe: its key, the allowed values, and the given value.

    Args:
        problem: Error that pydantic reported.
        tree: Nested dict of the file before validation.
        fields: Pydantic fields of the section that has the wrong key, by name.
    """
    location = without_tags(problem["loc"], tree)
    if problem["type"] == "string_type" and location and isinstance(location[-1], int):
        # Leave out the number and the value of the entry: all wrong entries then give the same line, shown once.
        location, problem = location[:-1], {**problem, "input": {}}
    path, kind, value = ".".join(map(str, location)), problem["type"], problem["input"]
    given = (
        ""
        if kind == "missing" or isinstance(value, dict)
        else f" (given: {shown(_PASSWORD.sub('://***@', repr(value)))})"
    )
    if kind == "extra_forbidden":
        return f"unknown key {path}: {_nearest(str(location[-1]), sorted(fields))}"
    form = _form_of(problem, location, fields)
    if form:
        return f"{path}.{form}" if kind == "union_tag_invalid" else f"{path}: {form}{given}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message}{given}" if path else message


def _form_of(problem: Problem, location: KeyPath, fields: Fields) -> str | None:
    """Return advice on a wrong value: its right form, or the nearest known name.

    Return None if pydantic's own message is good enough.

    Args:
        problem: Error that pydantic reported.
        location: Keys and list positions that lead to the value in the recipe.
        fields: Pydantic fields of the section that has the key, by name.
    """
    path, kind, value = ".".join(map(str, location)), problem["type"], problem["input"]
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        near = difflib.get_close_matches(context["tag"], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"give one of {context['expected_tags']}"
        return f"name: there is no '{shown(context['tag'])}': {hint}"
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        near = difflib.get_close_matches(value, known, n=1)
        return f"{problem['msg']}; did you mean {near[0]}?" if near else None
    if kind == "string_type" and isinstance(getattr(_field(location, fields), "default", None), tuple):
        return f"give names, such as {path}={_list_form(location, fields, value)}"
    if kind == "union_tag_not_found":
        return f"say which one by its name, such as {path}={{name: ...}}{_default_name(location, fields)}"
    if kind not in (*_PARTS, *_ARRAYS):
        return None
    what, form = ("keys and values", _part_form) if kind in _PARTS else ("a list", _list_form)
    return f"give {what}, such as {path}={form(location, fields, value)}"


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def _field(location: KeyPath, fields: Fields) -> FieldInfo | None:
    return fields.get(str(location[-1])) if location else None


def _default_name(location: KeyPath, fields: Fields) -> str:
    name = getattr(getattr(_field(location, fields), "default", None), "name", None)
    return f" (the default: {name})" if name else ""


def _part_form(location: KeyPath, fields: Fields, value: object) -> str:
    """Return an example of a section of a recipe, such as `{name: ...}`. The user gave a single value in its place.

    Args:
        location: Keys that lead to the section in the recipe.
        fields: Pydantic fields around the section, by name.
        value: What the user gave.
    """
    field = _field(location, fields)
    if getattr(field, "discriminator", None) == "name" and isinstance(value, str) and re.fullmatch(r"[\w-]+", value):
        return f"{{name: {value}}}"
    return "{name: ...}" if getattr(field, "discriminator", None) == "name" else "{KEY: VALUE}"


def _list_form(location: KeyPath, fields: Fields, value: object) -> str:
    """Return an example of a list in a recipe, such as `[a,b]`: the key's default, else the given value in brackets.

    Args:
        location: Keys that lead to the list in the recipe.
        fields: Pydantic fields of the section that has the key, by name.
        value: What the user gave in place of a list.
    """
    default = getattr(_field(location, fields), "default", None)
    items = default if isinstance(default, tuple | list) and default else re.split(r"[\s,;]+", str(value).strip())
    return f"[{','.join(str(item) for item in items if str(item))[:60]}]"
