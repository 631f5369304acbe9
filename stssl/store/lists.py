"""Find the patches of a store that a list of names asks for."""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Ints
from stssl.base.errors import DataError
from stssl.base.logs import LOG
from stssl.base.textfiles import read_names

SAMPLE = 100
"""Number of a store's names that tell which version of an archive it holds."""


def as_text(column: AnyArray) -> NDArray[np.str_]:
    """Return a column of texts as an array of NumPy's fixed-width text type, which every NumPy function accepts."""
    return np.array(column.tolist(), np.str_)


V1_NAME = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d{4,6}_\d+_\d+")
V2_NAME = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}(_\d+_\d+)?")
"""Names of patches in BigEarthNet v1.0 and v2.0."""


def other_version(listed: Collection[str], known: Collection[str]) -> str:
    """Return a sentence for a message if a list names patches of another version of BigEarthNet than the store has.

    Args:
        listed: Some names of a user's list.
        known: Some names of the patches of the store or archive.

    Returns:
        A sentence that begins with a space; empty if the names are of the same version, or of another data set.
    """
    versions = ((V1_NAME, "1.0", V2_NAME, "2.0"), (V2_NAME, "2.0", V1_NAME, "1.0"))
    for own, here, other, there in versions:
        if known and listed and all(map(own.fullmatch, known)) and any(map(other.fullmatch, listed)):
            return (
                f" The list names patches of BigEarthNet v{there}, and these are of v{here}: metadata.parquet of v2.0 "
                "has both names (columns patch_id and s2v1_name)."
            )
    return ""


def rows_named(names: NDArray[np.str_], path: str, store: str) -> Ints:
    """Return the store rows [n] of the patches that a user's list names, from low to high.

    Skip names that the store does not have, and tell their number in a warning.

    Args:
        names: [N] names of the N patches of the store.
        path: File of the list: txt, csv, csv.bz2 or csv.gz. Each line begins with one name.
        store: Name of the store in messages.

    Raises:
        DataError: The file cannot be read, or the store has none of its patches.
    """
    wanted = read_names(Path(path))
    # Return rows from low to high, not in the list's sequence: two lists of the same names must give equal runs.
    rows = np.flatnonzero(np.isin(names, list(wanted)))
    if len(rows) == 0:
        raise DataError(
            f"{path} names {len(wanted)} patches and {store} has none of them. Is it the list of this data set?"
            + other_version(wanted, names[:SAMPLE].tolist())
        )
    if len(rows) < len(wanted):
        strangers = wanted - set(names.tolist())
        words = "%s: %d of its %d names are not in %s (such as %s).%s"
        hint = other_version(strangers, names[:SAMPLE].tolist())
        LOG.warning(words, path, len(strangers), len(wanted), store, min(strangers, default=""), hint)
    return rows
