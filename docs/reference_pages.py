"""Write the reference pages of recipes, sweeps and commands from the code's own types: nothing is said twice."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stssl.base.config import Config, Domain, config_types, part_name
from stssl.commands.cli import app
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.sweeps.spec import SweepConfig

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
TITLES = {Recipe: "Training recipe", PretrainRecipe: "Pretraining recipe", SweepConfig: "Sweep file"}


@dataclass(frozen=True)
class Row:
    """One key of a table.

    Attributes:
        key: Dotted key.
        kind: Type and bounds, in words.
        default: As YAML; empty if it must be given.
        domain: What `auto` searches; empty if it cannot be searched.
        meaning: From the key's docstring.
    """

    key: str
    kind: str
    default: str
    domain: str
    meaning: str


def write_pages(folder: Path) -> None:
    """Write all generated pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = "\n".join(model_page(model) for model in (Recipe, PretrainRecipe))
    (folder / "recipe.md").write_text(f"{RECIPE_HEAD}\n{recipes}")
    (folder / "sweep.md").write_text(f"# Keys of sweep files\n\n{model_page(SweepConfig)}")
    (folder / "commands.md").write_text(commands_page())


RECIPE_HEAD = """\
# Recipe keys

A recipe is a YAML file. `base: FILE` takes all keys of another file and changes some. Any key can be changed on the
command line: `stssl train RECIPE section.key=value`. A key that does not exist is an error that names the nearest one.
`base=FILE` takes another base; the path is relative to the recipe's folder.

*Search* is the domain that `auto` takes in a sweep. A part with a `name`, such as `algorithm`, has other keys for each
name.
"""


def meanings_of(part: type[Config]) -> dict[str, str]:
    """Read what each key of a part means from the `Attributes:` of its docstring and those of its bases."""
    found: dict[str, str] = {}
    for one in reversed(part.__mro__):
        _, there, section = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", section) if there else ():
            name, colon, text = entry.strip().partition(":")
            if colon:
                # Docstrings speak Python, recipes YAML.
                found[name] = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    return found


def about(part: type[Config]) -> str:
    """Return a part's docstring without its list of keys."""
    return inspect.cleandoc(part.__doc__ or "").partition("\n\nAttributes:")[0]


def model_page(model: type[Config]) -> str:
    """Describe all keys of a model, one section for each part."""
    title = TITLES[model]
    meanings = meanings_of(model)
    plain = {name: field for name, field in model.model_fields.items() if not parts_of(field)}
    rows = [row_of(name, field, meanings.get(name, "")) for name, field in plain.items()]
    text = [f"## {title}\n", about(model), "", table(rows)]
    for name, field in model.model_fields.items():
        if parts_of(field):
            text += sections(name, field, meanings.get(name, ""), level=3)
    return "\n".join(text) + "\n"


def sections(key: str, field: FieldInfo, meaning: str, *, level: int) -> Iterator[str]:
    """Describe a part, and each of its variants where a `name` chooses one.

    Args:
        key: Dotted key of the part.
        field: Its field.
        meaning: What it is for.
        level: Level of its heading.
    """
    parts = parts_of(field)
    yield f"{'#' * level} `{key}`\n"
    if meaning and len(parts) > 1:  # a single part says it again in its docstring
        yield f"{meaning}\n"
    for part in parts:
        name, below = part_name(part), level + 1
        if name is not None:
            below += 1
            yield f"{'#' * (level + 1)} `{key}: {{name: {name}}}`\n"
        yield f"{about(part)}\n"
        meanings = meanings_of(part)
        fields = {own: inner for own, inner in part.model_fields.items() if own != "name" or name is None}
        rows = [
            row_of(f"{key}.{own}", inner, meanings.get(own, "")) for own, inner in fields.items() if not parts_of(inner)
        ]
        if rows:
            yield table(rows)
        for own, inner in fields.items():
            if parts_of(inner):
                yield from sections(f"{key}.{own}", inner, meanings.get(own, ""), level=min(below, 6))


def parts_of(field: FieldInfo) -> list[type[Config]]:
    """List the configuration classes that a field may hold; none for plain values."""
    return config_types(field.annotation)


def row_of(key: str, field: FieldInfo, meaning: str) -> Row:
    """Describe a key with a plain value."""
    bounds = [
        f"{sign} {_number(getattr(fact, own))}"
        for fact in facts(field)
        for own, sign in BOUNDS.items()
        if hasattr(fact, own)
    ]
    kind = " ".join([words_of(field.annotation), *([f"({', '.join(bounds)})"] if bounds else [])])
    domains = [domain_words(fact) for fact in facts(field) if isinstance(fact, Domain)]
    if not domains and searched_literals(field.annotation):
        domains = [kind]
    return Row(key, kind, default_of(field), "; ".join(domains), meaning)


def _number(value: float) -> str:
    """Write a number without an exponent where it is whole."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def facts(field: FieldInfo) -> Iterator[Any]:
    """Yield bounds and domains, also those inside an optional type."""
    yield from field.metadata
    yield from inner_facts(field.annotation)


def inner_facts(annotation: Any) -> Iterator[Any]:
    """Yield the facts of the parts of a type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from unpacked(get_args(annotation)[1:])
        yield from inner_facts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from inner_facts(part)


def unpacked(found: tuple[Any, ...]) -> Iterator[Any]:
    """Yield facts, also those that pydantic keeps inside a `Field`."""
    for fact in found:
        yield from fact.metadata if isinstance(fact, FieldInfo) else (fact,)


def words_of(annotation: Any) -> str:
    """Say what kind of value a type is."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return words_of(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words_of(part) for part in get_args(annotation)))
    if origin is tuple:
        inner = [part for part in get_args(annotation) if part is not Ellipsis]
        return (
            f"list of {words_of(inner[0])}"
            if Ellipsis in get_args(annotation)
            else f"[{', '.join(map(words_of, inner))}]"
        )
    if origin in (dict, list) or annotation in (dict, list):
        return "mapping" if (origin or annotation) is dict else "list"
    plain = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", NoneType: "null"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def searched_literals(annotation: Any) -> bool:
    """True for a choice of words, whose domain is the words."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) > 1


def default_of(field: FieldInfo) -> str:
    """Write a default as YAML; empty if the key must be given."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return ""
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, default=str)}`"


def domain_words(domain: Domain) -> str:
    """Say what a search draws."""
    if domain.choices:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in domain.choices)
    step = f", steps of {domain.step:g}" if domain.step else ""
    return f"{domain.low:g} to {domain.high:g}{', log' if domain.log else ''}{step}"


def table(rows: list[Row]) -> str:
    """Write a table of keys."""
    lines = ["| key | meaning | value | default | search |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (f"`{row.key}`", row.meaning, row.kind, row.default or "required", row.domain)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


EXIT_CODES = """## Exit codes

| exit code | meaning |
| --- | --- |
| 0 | The command did what it says. A result that is already there counts, too. |
| 1 | `stssl verify` found damage, a submitted job failed, or the program has a defect, which it shows as a traceback. |
| 2 | An argument, a file, a store or the machine is at fault. One line says what is wrong, where, and what to do. |
| 130 | Ctrl-C ended the command (128 plus the number of the signal). |
| 143 | Another program asked the command to end (SIGTERM, also 128 plus the number of the signal). |

A missing or unknown argument also prints the usage. `stssl submit` ends with the exit code of its job.
"""


def commands_page() -> str:
    """Describe every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    text = [
        "# Commands\n",
        "`stssl COMMAND --help` prints the same.\n",
        EXIT_CODES,
    ]
    for name in sorted(group.commands):
        text += command_section(name, group.commands[name])
    return "\n".join(text)


def command_section(name: str, command: Any) -> Iterator[str]:
    """Describe one command, and the commands inside a group."""
    yield f"## `stssl {name}`\n"
    yield f"{(command.help or '').strip()}\n"
    rows = []
    for option in command.params:
        if getattr(option, "hidden", False) or option.name == "help":
            continue
        shown = ", ".join(f"`{one}`" for one in option.opts if one.startswith("-"))
        shown = shown or f"`{getattr(option, 'metavar', None) or (option.name or '').upper()}`"
        default = "" if option.default in (None, (), False) or callable(option.default) else f"`{option.default}`"
        rows.append((shown, str(getattr(option, "help", "") or ""), "required" if option.required else default))
    if rows:
        yield "| argument or option | meaning | default |\n| --- | --- | --- |"
        yield "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"
    for inner in sorted(getattr(command, "commands", ())):
        yield from command_section(f"{name} {inner}", command.commands[inner])
