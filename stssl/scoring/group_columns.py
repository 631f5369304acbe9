"""Read from a column of a store, such as `country`, to which group each patch belongs."""

from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.base.arrays import Ints
from stssl.base.batch import PLACE
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonMapping
from stssl.recipes.run_data import RunData
from stssl.store.lists import as_text
from stssl.store.schema import MISSING_DAY, MISSING_TIME, NO_SPLIT
from stssl.store.store import Store

MADE = ("block", "month")
"""Columns that are made from others: the square of latitude and longitude, and the month of the date."""
UNKNOWN = "unknown"
"""Name of the group of the patches without a value."""


def squares_of(data: RunData, rows: Ints, degrees: float) -> NDArray[np.str_]:
    """Return the name [n] of the square of latitude and longitude in which each of n patches lies.

    The name is the square's south-west corner; it is empty for a patch without a place.

    Args:
        data: Open data with the places.
        rows: [n] row numbers of the patches in the store.
        degrees: Side of a square in degrees.
    """
    lat, lon = data.metadata[torch.from_numpy(rows)][:, list(PLACE)].double().numpy().T
    known = np.isfinite(lat) & np.isfinite(lon)
    corners = [np.floor(np.where(known, values, 0) / degrees) * degrees for values in (lat, lon)]
    names = [f"{south:.6g} {west:.6g}" if there else "" for south, west, there in zip(*corners, known, strict=True)]
    return np.array(names, dtype="<U32")


def values_of(data: RunData, rows: Ints, column: str, degrees: float) -> NDArray[np.str_]:
    """Read from a column, such as `country`, the name of the group to which each patch belongs.

    Args:
        data: Open data: the store and the metadata.
        rows: [n] row numbers of the patches in the store.
        column: A column of the store; or `block` (a square of latitude and longitude) or `month`.
        degrees: Side of a block in degrees.

    Returns:
        [n] names of groups; `unknown` if a patch has no value.

    Raises:
        ConfigError: The store lacks the column, or the column has several values a patch, or numbers that are no
            categories.
    """
    if column == "block":
        found = squares_of(data, rows, degrees)
    elif column == "month":
        found = _months(data, rows)
    elif not data.store.has_column(column):
        known = sorted(name for name in data.store.description.arrays if has_groups(data.store, name))
        raise ConfigError(f"--by: {data.store.path} has no column '{column}'. It has: {', '.join([*MADE, *known])}.")
    elif not has_groups(data.store, column):
        raise ConfigError(f"--by: {column} is no column of groups. Give one with a word or whole number a patch.")
    else:
        found = _named(data, rows, column)
    return np.where(found == "", UNKNOWN, found)


def has_groups(store: Store, column: str) -> bool:
    """Return True if a column of the store has one word, flag or whole number for each patch, whose values are groups.

    Return False for `patch_id`, `time` and `content_hash`: nearly every patch has another value.

    Args:
        store: The store.
        column: Name of the column; False if the store lacks it.
    """
    if not store.has_column(column) or column in ("patch_id", "time", "content_hash"):
        return False
    about = store.description.arrays[column]
    return len(about["shape"]) == 1 and not str(about["data_type"]).startswith("float")


def has_value(store: Store, column: str) -> NDArray[np.bool_]:
    """Return for each patch of a store if it has a value in a column of groups, such as `country`.

    Return an array [n] for n patches. The column stands for a missing value by an empty text, a number below 0 if it
    numbers classes, or the number that the store names.
    """
    values, about = np.asarray(store.column(column)), store.column_attributes(column)
    if values.dtype.kind in "OUT":
        return np.asarray(as_text(values) != "")
    if "classes" in about:
        return np.asarray(values >= 0)
    missing = _missing_number(about, column)
    return np.ones(len(values), bool) if missing is None else np.asarray(values != missing)


def _missing_number(about: JsonMapping, column: str) -> object:
    """Return the number that stands for a missing value in a column with the attributes `about`; None if none does."""
    return about.get("missing", NO_SPLIT if column.startswith("split_") else None)


def _named(data: RunData, rows: Ints, column: str) -> NDArray[np.str_]:
    values = np.asarray(data.store.column(column))[rows]
    about = data.store.column_attributes(column)
    if values.dtype.kind in "OUT":
        return as_text(values)
    if "classes" in about:
        classes = np.array(["", *about["classes"]])
        return np.asarray(classes[np.where(values < 0, -1, values).astype(np.int64) + 1], np.str_)
    if "flag_values" in about and "flag_meanings" in about:
        meanings = dict(zip(about["flag_values"], str(about["flag_meanings"]).split(), strict=False))
        return np.array([meanings.get(int(value), str(value)) for value in values], np.str_)
    missing = _missing_number(about, column)
    if values.dtype.kind == "b":
        return np.where(values, "yes", "no")
    return np.where(values == missing, "", values.astype(np.str_)) if missing is not None else values.astype(np.str_)


def _months(data: RunData, rows: Ints) -> NDArray[np.str_]:
    """Return the month [n] of each of the n patches `rows` (numbers in the store), `01` to `12`; empty if unknown.

    The month comes from the patch's time or, if this is missing, from its day of the year.
    """
    time, day = (np.asarray(data.store.column(name))[rows] for name in ("time", "day_of_year"))
    found = np.full(len(rows), "", "<U2")
    dated = time != MISSING_TIME
    found[dated] = [f"{datetime.fromtimestamp(int(one), UTC).month:02d}" for one in time[dated]]
    left = ~dated & (day != MISSING_DAY)
    found[left] = [f"{datetime.strptime(f'2001 {min(int(one), 365)}', '%Y %j').month:02d}" for one in day[left]]
    return found
