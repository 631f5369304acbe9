"""Read and write the YAML of recipes, within limits on size, depth and number of values.

Read only plain values: texts, numbers, true and false, null, lists, and mappings with texts as keys. Numbers follow
YAML 1.2, since YAML 1.1 has surprises. So `1e-4` is a number, and `010`, `1:30:00` and dates are texts. A key that
needs a number refuses these texts.
"""

import math
import re
import unicodedata

import yaml
from pydantic import JsonValue

from stssl.base.errors import ConfigError, shown

FILE_BYTES = 1 << 20
"""Largest size of a YAML file in bytes."""
NODES = 20_000
"""Largest number of values in a file. An alias counts as all the values that it stands for."""
DEPTH = 50
"""Largest depth: how many mappings and lists may lie inside each other."""
_STR, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "merge"))
_UNREAD = ("timestamp", "int", "float", "value")
_DIGITS = r"\d+(_\d+)*"
_NUMBERS: tuple[tuple[str, str], ...] = (
    (_INT, r"[-+]?(0|[1-9]\d*(_\d+)*|0b[01]+(_[01]+)*|0x[0-9a-fA-F]+(_[0-9a-fA-F]+)*)"),
    (_FLOAT, rf"[-+]?({_DIGITS}\.({_DIGITS})?|\.{_DIGITS}|{_DIGITS}(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)"),
    (_FLOAT, r"\.(nan|NaN|NAN)"),
)


class _Loader(yaml.SafeLoader):
    """Read YAML safely. Refuse tags, repeated keys, keys that are no texts, and too many values.

    Count all values that an alias stands for: ten lines of aliases of aliases can stand for billions of values (an
    attack called "billion laughs").
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes, self.depth = 0, 0
        self.sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML leaves it untyped
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self.sizes:
                raise _wrong(event, f"*{anchor} stands within its own anchor &{anchor}")
            self._count(event, self.sizes.get(anchor or "", 1))
            return super().compose_node(parent, index)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _STR):
            raise _wrong(event, f"the tag {tag} is not read here; write a plain value")
        before, self.depth = self.nodes, self.depth + 1
        if self.depth > DEPTH:
            raise _wrong(event, f"values are nested more than {DEPTH} deep")
        self._count(event, 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if anchor is not None:
            self.sizes[anchor] = self.nodes - before
        return node

    def _count(self, event: yaml.Event, more: int) -> None:
        self.nodes += more
        if self.nodes > NODES:
            raise _wrong(event, f"the file holds more than {NODES:,} values, each alias counted as what it stands for")

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STR:
                what = f"key {shown(key.value)}" if isinstance(key, yaml.ScalarNode) else "a key"
                raise _wrong(key, f"{what} is not a text; put a name there, in quotes where it looks like a number")
            if key.value in seen:
                raise _wrong(key, f"key {shown(key.value)} stands twice")
            seen.add(key.value)
        return node

    def integer(self, node: yaml.ScalarNode) -> int:
        """Return the whole number in a YAML scalar (the node of a single value).

        Raises:
            ConfigError: The number does not fit into 64 bits.
        """
        text = node.value.replace("_", "")
        # 64 bits fit into 80 characters, even in binary notation. For longer texts, `int` may raise its own error.
        value = int(text, 0) if len(text) <= 80 else 1 << 64
        if not -(1 << 63) <= value < 1 << 63:
            raise _wrong(node, f"the number {shown(node.value)} does not fit into 64 bits")
        return value

    def real(self, node: yaml.ScalarNode) -> float:
        """Return the number with a fraction or an exponent in a YAML scalar (the node of a single value).

        Raises:
            ConfigError: The number is not finite.
        """
        text = node.value.replace("_", "").lower()
        value = math.inf if text.endswith((".inf", ".nan")) else float(text)
        if not math.isfinite(value):
            raise _wrong(node, f"{shown(node.value)} is not a finite number")
        return value


class _Dumper(yaml.SafeDumper):
    """Write YAML. Quote each text that a reader of YAML 1.1 or 1.2 would take for a number or a date."""


_kept = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _UNREAD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = _kept
_Dumper.yaml_implicit_resolvers = {first: [*found] for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}
for _tag, _pattern in _NUMBERS:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list("-+0123456789."))
_Loader.add_constructor(_INT, _Loader.integer)
_Loader.add_constructor(_FLOAT, _Loader.real)


def _wrong(place: yaml.Event | yaml.Node, what: str) -> ConfigError:
    line = 0 if place.start_mark is None else place.start_mark.line
    return ConfigError(f"line {line + 1}: {what}")


def parse_yaml(text: str, source: str) -> JsonValue:
    """Parse YAML text, and return its plain values: texts, numbers, booleans, None, lists and dicts.

    Args:
        text: YAML of at most `FILE_BYTES` characters.
        source: Name of the file or argument in error messages.

    Raises:
        ConfigError: The text is not valid YAML, has values that are not plain, or exceeds a limit. The message names
            the line or the key.
    """
    if len(text) > FILE_BYTES:
        raise ConfigError(f"{source} is larger than {FILE_BYTES >> 20} MB")
    try:
        # `_Loader` is a SafeLoader, so a hostile file cannot build objects.
        tree: JsonValue = yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: int() or chr() refused an escape sequence
        raise ConfigError(f"{source} is not valid YAML: {shown(' '.join(str(error).split()), 400)}") from None
    _require_clean(tree, source)
    return tree


def dump_yaml(tree: object) -> str:
    """Return plain values as YAML text. `parse_yaml` and other YAML readers get equal values back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def unclean(text: str) -> str | None:
    """Return words about the first control character or lone surrogate in a text; None if the text has none.

    Tabs and line breaks are allowed. The other characters do not belong in a path, and would confuse a terminal.
    """
    if text.isascii() and text.isprintable():
        return None
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and character not in "\t\n\r\x85"):
            return f"holds the control character U+{ord(character):04X}"
    return None


def _require_clean(tree: JsonValue, source: str) -> None:
    """Check that YAML values have no control characters, and are not nested too deep: aliases can hide deep values.

    Args:
        tree: The parsed values.
        source: Name of the file or argument in the error.

    Raises:
        ConfigError: A key or value is refused. The message names the key.
    """
    # Use a stack, not recursion: a deep tree must meet this limit before Python's recursion limit.
    rest: list[tuple[str, int, JsonValue]] = [("", 0, tree)]
    while rest:
        key, depth, value = rest.pop()
        if depth > DEPTH:
            raise ConfigError(f"{source}: {shown(key)}: values are nested more than {DEPTH} deep")
        if isinstance(value, dict):
            for name, part in value.items():
                if problem := unclean(name):
                    raise ConfigError(f"{source}: the key {shown(name)} {problem}")
                rest.append((f"{key}.{name}".lstrip(".") if depth < 8 else key, depth + 1, part))
        elif isinstance(value, list):
            rest += [(f"{key}[{i}]" if depth < 8 else key, depth + 1, part) for i, part in enumerate(value)]
        elif isinstance(value, str) and (problem := unclean(value)):
            raise ConfigError(f"{source}: {shown(key) or 'the value'} {problem}")
