"""Text files that users bring, plain or packed, and the lists of patch names in them; JSON within limits."""

import bz2
import codecs
import csv
import gzip
import json
import math
import os
import stat
import zlib
from pathlib import Path
from typing import IO, Any, TypeVar

from stssl.base.errors import DataError, StsslError, shown

MOST_BYTES = 512_000_000
"""What a list or table may hold, unpacked; more than the names of every patch of a country take."""
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
JSON_BYTES = 64 << 20
GROWTH = 1 << 20
"""What may be added to a file between asking for its size and reading it."""
JSON_DEPTH = 100

T = TypeVar("T")


def read_unpacked(path: Path) -> bytes:
    """Bytes of a plain, bz2 or gzip file; never more than `MOST_BYTES` of them are unpacked.

    Raises:
        DataError: It cannot be read, or holds more.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"cannot read {path}: it is not a file")
        with _opened(path) as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{path} holds more than {MOST_BYTES:,} bytes: that is no list or table of patches. Divide it.")
    return data


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".bz2":
        return bz2.open(path)
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_text(path: Path) -> str:
    """Text of a plain, bz2 or gzip file, in UTF-8 or, where its first bytes say so, UTF-16 or UTF-32.

    Raises:
        DataError: It cannot be read, is too large, or is not text; names the line.
    """
    return decode_text(read_unpacked(path), path)


def decode_text(data: bytes, path: Path) -> str:
    """The text in a file's bytes.

    Raises:
        DataError: They are not text; names the line.
    """
    encoding = next((name for mark, name in _WIDE if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"cannot read {path}: line {line} is not {encoding.removesuffix('-sig').upper()} "
            f"(byte 0x{data[error.start]:02x}). Save it as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"cannot read {path}: line {line} has a NUL character. Save it as text in UTF-8.")
    return text


def read_names(path: Path) -> frozenset[str]:
    """Patch names of a list: one a line, the first column where there are several.

    Raises:
        DataError: It cannot be read, or is not text.
    """
    return frozenset(name for line in read_text(path).splitlines() if (name := _first_cell(line)))


def _first_cell(line: str) -> str:
    """Return the text before a line's first comma, semicolon or tab, unless quotes enclose it."""
    line = line.strip()
    if not line.startswith('"'):
        for separator in ",;\t":
            line = line.partition(separator)[0]
        return line.strip()
    try:
        return next(csv.reader([line]))[0].strip()
    except csv.Error:
        return line.strip('"').strip()


def read_bounded(path: str | Path, most: int, error: type[StsslError] = DataError, advice: str = "") -> bytes:
    """Bytes of a plain file of at most `most` bytes; folders, pipes and devices are not opened.

    Args:
        path: The file.
        most: Its largest size.
        error: What to raise.
        advice: What to do about it, a sentence at the end of the message.

    Raises:
        StsslError: Of the kind `error`: names the file and the reason.
    """

    def wrong(reason: str) -> StsslError:
        return error(f"cannot read {shown(str(path), 300)}: {reason}. {advice}".rstrip())

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  takes what a user typed, as it is
            raise wrong("it is not a file")
        with open(path, "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            # Room is taken for all that is asked for: no more than the file has, and what may be added meanwhile.
            content = file.read(min(most, size + GROWTH) + 1) if size <= most else b""
    except OSError as problem:
        raise wrong(problem.strerror or type(problem).__name__) from None
    except ValueError:
        raise wrong("a path cannot hold such characters") from None
    if max(size, len(content)) > most:
        raise wrong(f"it is larger than {most:,} bytes")
    return content


def read_json(
    path: str | Path,
    kind: type[T] = dict,  # type: ignore[assignment]
    *,
    error: type[StsslError] = DataError,
    most: int = JSON_BYTES,
    advice: str = "",
) -> T:
    """Value of a JSON file, of a kind (`dict`, `list`) that it must have.

    Args:
        path: The file.
        kind: The type of the value.
        error: What to raise.
        most: The file's largest size.
        advice: What to do about it, a sentence at the end of the message.

    Raises:
        StsslError: Of the kind `error`: the file cannot be read, is cut off, or is not such JSON; names it.
    """
    return parse_json(read_bounded(path, most, error, advice), str(path), kind, error=error, advice=advice)


def parse_json(
    content: bytes | str,
    source: str,
    kind: type[T] = dict,  # type: ignore[assignment]
    *,
    error: type[StsslError] = DataError,
    advice: str = "",
) -> T:
    """Value of JSON text, at most `JSON_DEPTH` deep, with finite numbers and texts that can be written.

    NaN is taken as Python writes it. `source` names the text in errors; for the rest see `read_json`.

    Raises:
        StsslError: Of the kind `error`; names the source and the reason.
    """
    try:
        words = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(words, parse_float=_finite, object_pairs_hook=_once)
        _require_plain(value)
        if not isinstance(value, kind):
            kinds = {"dict": "keys and values", "list": "a list"}
            raise ValueError(f"it must hold {kinds.get(kind.__name__, kind.__name__)} at its top level")
    except RecursionError:
        reason = f"it is nested more than {JSON_DEPTH} deep"
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except ValueError as problem:
        reason = "the file is empty" if not content.strip() else str(problem)
    else:
        return value
    raise error(f"{source} cannot be used as JSON: {reason}. {advice}".rstrip())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once each, since nobody can say which of two values is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice, 40)} stands in it twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _require_plain(value: Any) -> None:
    """Refuse what later code could not walk through or write down.

    Raises:
        RecursionError: Too deep.
        ValueError: A text is no Unicode.
    """
    rest = [(0, value)]
    while rest:
        depth, one = rest.pop()
        if depth > JSON_DEPTH:
            raise RecursionError
        if isinstance(one, dict):
            rest += [(depth + 1, part) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            rest += [(depth + 1, part) for part in one]
        elif isinstance(one, str) and not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
            raise ValueError("a text in it holds half a character (a lone surrogate)")
