"""Find the rows of a store by a list of patch names."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Ints
from stssl.base.errors import DataError
from stssl.base.logs import LOG
from stssl.base.textfiles import read_names


def as_text(column: AnyArray) -> NDArray[np.str_]:
    """Convert a column of texts to NumPy's fixed-width text type: every NumPy function accepts this type."""
    return np.array(column.tolist(), np.str_)


def rows_named(names: NDArray[np.str_], path: str, store: str) -> Ints:
    """Find the rows of the patches in a list. Skip names that the store lacks, and count them in a warning.

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
        )
    if len(rows) < len(wanted):
        LOG.warning("%s: %d of its %d names are not in %s", path, len(wanted - set(names.tolist())), len(wanted), store)
    return rows
