"""Lists of patch names: which rows of a store they mean."""

import bz2
import gzip
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.errors import DataError
from stssl.randomness import Ints

_UNPACK: dict[str, Callable[[bytes], bytes]] = {".bz2": bz2.decompress, ".gz": gzip.decompress}


def text(column: NDArray[Any]) -> NDArray[np.str_]:
    """A column of strings as NumPy's fixed-width type, which every function takes."""
    return np.array(column.tolist(), np.str_)


def rows_named(names: NDArray[np.str_], path: str, store: str) -> Ints:
    """Rows of the patches that a list names (txt, csv, csv.bz2, csv.gz; one a line, the first column).

    Names that the store lacks are counted in a warning and passed over.

    Raises:
        DataError: The file cannot be read, or the store has none of its patches.
    """
    try:
        data = _UNPACK.get(Path(path).suffix, bytes)(Path(path).read_bytes())
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read the list {path}: {error}") from None
    wanted = {line.split(",")[0].strip().strip('"') for line in lines} - {""}
    rows = np.flatnonzero(np.isin(names, list(wanted)))
    if len(rows) == 0:
        raise DataError(
            f"{path} names {len(wanted)} patches and {store} has none of them. Is it the list of this data set?"
        )
    if len(rows) < len(wanted):
        logging.getLogger("stssl").warning(
            "%s: %d of its %d names are not in %s", path, len(wanted - set(names.tolist())), len(wanted), store
        )
    return rows
