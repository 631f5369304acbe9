"""Read the files of users within size limits: text (plain, gzip or bz2), lists of patch names, and JSON."""

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
from typing import BinaryIO

from pydantic import JsonValue

from stssl.base.errors import DataError, StsslError, shown
from stssl.base.json_types import JsonObject

MOST_BYTES = 512_000_000
"""Largest size in bytes of a list or table after unpacking. The names of all patches of a country take less."""
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NAME_HEADS = ("patch", "patch_id", "s2v1_name")
"""Names of a column of patch names, the preferred one first."""
PICKLES = (".pkl", ".pickle")
JSON_BYTES = 64 << 20
"""Largest size of a JSON file in bytes."""
GROWTH = 1 << 20
"""A file may grow by this many bytes between the question for its size and the reading."""
JSON_DEPTH = 100
"""Largest depth of JSON: how many objects and lists may lie inside each other."""


def read_unpacked(path: Path) -> bytes:
    """Return the content of a plain, bz2 or gzip file, unpacked.

    Raises:
        DataError: The file cannot be read, or it holds more than `MOST_BYTES`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"cannot read {path}: it is not a file")
        with _opened(path) as file:
            # Stop one byte after the allowed size: a small file may unpack to terabytes.
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{path} holds more than {MOST_BYTES:,} bytes: that is no list or table of patches. Divide it.")
    return data


def _opened(path: Path) -> BinaryIO | bz2.BZ2File | gzip.GzipFile:
    if path.suffix == ".bz2":
        return bz2.BZ2File(path)
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def read_text(path: Path) -> str:
    """Return the text of a plain, bz2 or gzip file.

    The text is UTF-8. It is UTF-16 or UTF-32 if the file begins with the byte order mark of that encoding.

    Raises:
        DataError: The file cannot be read, is too large, or is not text. The message names the line.
    """
    return decode_text(read_unpacked(path), path)


def decode_text(data: bytes, path: Path) -> str:
    """Return the text of a file, given its bytes: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        data: Content of the file.
        path: Path of the file, for error messages.

    Raises:
        DataError: The bytes are not text. The message names the line.
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


def refuse_pickle(path: Path) -> None:
    """Refuse a file whose name or first bytes say that it is a pickle. A missing file is accepted.

    Raises:
        DataError: The file is a pickle. The message says how to convert it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError:
        head = b""
    # Look at the first bytes too, since a pickle may have any name: pickles of protocols 2 to 5 begin with the byte
    # 0x80 and the number of the protocol.
    if path.suffix in PICKLES or (head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise DataError(
            f"{path} is a pickle, and opening a pickle can run any code. Convert it in the environment that wrote it: "
            f"import pandas; pandas.read_pickle({path.name!r})['patch'].to_csv({path.stem + '.csv'!r}, index=False)"
        )


def read_names(path: Path) -> frozenset[str]:
    """Return the set of patch names in a text file.

    The file has one name in each line, or is a CSV table. The names of a table are in the column `patch`, `patch_id` or
    `s2v1_name`; without such a column, they are in column 1.

    Raises:
        DataError: The file cannot be read, is a pickle, or is not text.
    """
    refuse_pickle(path)
    text = read_text(path)
    if (place := _name_column(text)) is None:
        return frozenset(name for line in text.splitlines() if (name := _first_cell(line)))
    try:
        rows = list(csv.reader(text.splitlines(keepends=True)))[1:]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}") from None
    return frozenset(name for row in rows if len(row) > place and (name := row[place].strip()))


def _name_column(text: str) -> int | None:
    """Return which column of a CSV table has the patch names, counted from 0; None if line 1 names no such column.

    Args:
        text: Text of the whole table.
    """
    head = [cell.strip().strip('"').lower() for cell in text.partition("\n")[0].split(",")]
    return next((head.index(name) for name in NAME_HEADS if name in head), None)


def _first_cell(line: str) -> str:
    """Return the text before the first comma, semicolon or tab of a line. Separators inside quotes do not count."""
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
    """Return the bytes of a plain file of at most `most` bytes. Refuse folders, pipes and devices without opening them.

    Args:
        path: File to read, as the user gave it.
        most: Largest size in bytes.
        error: Class of the error to raise.
        advice: Last sentence of the error message: what the user should do.

    Raises:
        StsslError: The file cannot be read or is too large. The error has the class `error` and names the file and
            the reason.
    """

    def wrong(reason: str) -> StsslError:
        return error(f"cannot read {shown(str(path), 300)}: {reason}. {advice}".rstrip())

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  takes what a user typed, as it is
            raise wrong("it is not a file")
        with open(path, "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            # `read` allocates memory for all the bytes that it is asked for. So ask for no more than the file may have.
            content = file.read(min(most, size + GROWTH) + 1) if size <= most else b""
    except OSError as problem:
        raise wrong(problem.strerror or type(problem).__name__) from None
    except ValueError:
        raise wrong("a path cannot hold such characters") from None
    if max(size, len(content)) > most:
        raise wrong(f"it is larger than {most:,} bytes")
    return content


def read_json(
    path: str | Path, *, error: type[StsslError] = DataError, most: int = JSON_BYTES, advice: str = ""
) -> JsonObject:
    """Read a file that holds a JSON object, and return the object as a dict.

    Args:
        path: File to read.
        error: Class of the error to raise.
        most: Largest size of the file in bytes.
        advice: Last sentence of the error message: what the user should do.

    Raises:
        StsslError: The file cannot be read, is cut off, or holds no JSON object. The error has the class `error` and
            names the file.
    """
    return parse_json(read_bounded(path, most, error, advice), str(path), error=error, advice=advice)


def parse_json(
    content: bytes | str, source: str, *, error: type[StsslError] = DataError, advice: str = ""
) -> JsonObject:
    """Return the JSON object in a text as a dict. Its objects and lists may lie at most `JSON_DEPTH` deep.

    Refuse infinite numbers and keys that an object has twice. Refuse texts with lone surrogates: these texts could not
    be written again. Accept NaN, since Python's `json` writes it.

    Args:
        content: JSON text, or its bytes in UTF-8.
        source: Name of the text in error messages.
        error: Class of the error to raise.
        advice: Last sentence of the error message: what the user should do.

    Raises:
        StsslError: The text is not such JSON. The error has the class `error` and names the source and the reason.
    """
    try:
        words = content if isinstance(content, str) else content.decode("utf-8-sig")
        value: JsonValue = json.loads(words, parse_float=_finite, object_pairs_hook=_once)
        _require_plain(value)
        if not isinstance(value, dict):
            raise ValueError("it must hold keys and values at its top level")
    except RecursionError:
        reason = f"it is nested more than {JSON_DEPTH} deep"
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except ValueError as problem:
        reason = "the file is empty" if not content.strip() else str(problem)
    else:
        return value
    raise error(f"{source} cannot be used as JSON: {reason}. {advice}".rstrip())


def _once(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    """Return a JSON object as a dict, given its pairs (key, value).

    Raises:
        ValueError: A key occurs twice, so its value is ambiguous.
    """
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key, 40)} stands in it twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _require_plain(value: JsonValue) -> None:
    """Check that a JSON value is not nested too deep, and that UTF-8 can write all its texts.

    Raises:
        RecursionError: The value has objects and lists that are nested too deep.
        ValueError: The value has a text with a lone surrogate.
    """
    rest: list[tuple[int, JsonValue]] = [(0, value)]
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
