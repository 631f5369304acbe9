"""Damage the contents of a file at random: its bytes, numbers, lines, cells, or values of its JSON or YAML."""

import json
import random
import re
from typing import Any

import yaml

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400)
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e-9, 1e308, -1e308, 1e30, float("inf"), float("nan"))
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../x",
    "/",
    "/dev/zero",
    "~",
    "~nobody-of-that-name/x",
    "a\0b",
    "\ud800",
    "\x1b[2J",
    "é日本",
    "x" * 5000,
    "${HOME}",
    "${NOT_SET_ANYWHERE}",
    "s3://x/y",
    "<script>",
    "1e5",
    "none",
    "nan",
    "a\nb",
    "a,b;c",
)
RAW = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b"\t",
    b",",
    b";",
    b":",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a ",
    b"*a",
    b"!!int ",
    b"? ",
    b"- ",
    b"---\n",
    b"%YAML 9.9\n",
    b"<<: ",
    b"0x",
    b"1:30:00",
    b"1e999",
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\xed\xa0\x80",
)


def flipped(dice: random.Random, data: bytes) -> bytes:
    """Change one to eight bytes at random positions."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8) if data else 0):
        changed[dice.randrange(len(data))] ^= dice.randint(1, 255)
    return bytes(changed)


def flipped_at_the_end(dice: random.Random, data: bytes) -> bytes:
    """Change one to eight of the last 1,100 bytes, where some formats keep their index."""
    cut = max(0, len(data) - 1100)
    return data[:cut] + flipped(dice, data[cut:])


def cut_off(dice: random.Random, data: bytes) -> bytes:
    """Cut off the end of the file at a random position."""
    return data[: dice.randint(0, len(data))]


def without_part(dice: random.Random, data: bytes) -> bytes:
    """Remove up to 40 bytes at a random position."""
    start = dice.randint(0, len(data))
    return data[:start] + data[start + dice.randint(1, 40) :]


def repeated_part(dice: random.Random, data: bytes) -> bytes:
    """Repeat up to 60 bytes of the file once or many times."""
    start = dice.randint(0, len(data))
    stop = start + dice.randint(1, 60)
    return data[:stop] + data[start:stop] * dice.choice((1, 1, 3, 50)) + data[stop:]


def with_bytes(dice: random.Random, data: bytes) -> bytes:
    """Insert bytes that have a meaning for parsers, such as brackets, at a random position."""
    start = dice.randint(0, len(data))
    return data[:start] + dice.choice(RAW) + data[start:]


def with_number(dice: random.Random, data: bytes) -> bytes:
    """Replace one number in a text by another, such as a very large one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return data
    one = dice.choice(found)
    return data[: one.start()] + str(dice.choice((*NUMBERS, *FLOATS))).encode() + data[one.end() :]


def with_lines(dice: random.Random, data: bytes) -> bytes:
    """Swap two lines of a text, repeat a line, or overwrite one by another."""
    lines = data.splitlines(keepends=True) or [b""]
    one, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    kind = dice.randrange(3)
    if kind == 0:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 1:
        lines.insert(one, lines[other])
    else:
        lines[one] = lines[other]
    return b"".join(lines)


def with_cell(dice: random.Random, data: bytes) -> bytes:
    """Replace one cell of a CSV table, or the separator of all cells."""
    if dice.random() < 0.1:
        return data.replace(b",", dice.choice((b";", b"\t", b"|", b"")))
    lines = data.split(b"\n")
    row = dice.randrange(len(lines))
    cells = lines[row].split(b",")
    word = str(dice.choice((*TEXTS, *NUMBERS, *FLOATS)))
    cells[dice.randrange(len(cells))] = word.encode("utf-8", "surrogatepass")
    lines[row] = b",".join(cells)
    return b"\n".join(lines)


def tree_in_json(dice: random.Random, data: bytes) -> bytes:
    """Replace, rename or remove one value of a JSON file."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return flipped(dice, data)
    return json.dumps(changed(dice, tree)).encode()


def tree_in_yaml(dice: random.Random, data: bytes) -> bytes:
    """Replace, rename or remove one value of a YAML file."""
    try:
        tree = yaml.safe_load(data)
        return yaml.safe_dump(changed(dice, tree), sort_keys=False, allow_unicode=False).encode("utf-8", "replace")
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, IndexError, KeyError):
        return flipped(dice, data)


def row_in_json(dice: random.Random, data: bytes) -> bytes:
    """Replace, rename or remove one value in a file with one JSON object in each line."""
    lines = data.split(b"\n")
    row = dice.randrange(len(lines))
    lines[row] = tree_in_json(dice, lines[row])
    return b"\n".join(lines)


def changed(dice: random.Random, tree: Any) -> Any:
    """Copy nested lists and mappings with one random change."""
    tree = json.loads(json.dumps(tree))
    places: list[tuple[Any, Any]] = []
    rest = [tree]
    while rest:
        part = rest.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        places += [(part, key) for key in keys]
        rest += [part[key] for key in keys]
    if not places:
        return _value(dice)
    part, key = dice.choice(places)
    kind = dice.random()
    if kind < 0.15:
        del part[key]
    elif kind < 0.3 and isinstance(part, dict):
        part[dice.choice((*TEXTS, f"{key}x", str(key)[:-1], "name", "base", "search", "pretext"))] = part.pop(key)
    elif kind < 0.4:
        other, place = dice.choice(places)
        part[key] = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else other))
    else:
        part[key] = _value(dice)
    return tree


def _value(dice: random.Random) -> Any:
    kinds: tuple[tuple[Any, ...], ...] = (
        NUMBERS,
        FLOATS,
        TEXTS,
        (None, True, False, [], {}, [[]], [None], {"name": "x"}, [0] * 3, _deep(60)),
    )
    return dice.choice(dice.choice(kinds))


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


BYTES = (flipped, cut_off, without_part, repeated_part, with_bytes)
TEXT = (*BYTES, with_number, with_lines)
