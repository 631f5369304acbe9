"""Text files that users bring, plain or packed, and the lists of patch names in them."""

import bz2
import gzip
import zlib
from pathlib import Path

from stssl.errors import DataError

_UNPACK = {".bz2": bz2.decompress, ".gz": gzip.decompress}


def read_text(path: Path) -> str:
    """Text of a plain, bz2 or gzip file.

    Raises:
        DataError: It cannot be read, or is not text.
    """
    try:
        return _UNPACK.get(path.suffix, bytes)(path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def read_names(path: Path) -> frozenset[str]:
    """Patch names of a list: one a line, the first column where there are several.

    Raises:
        DataError: It cannot be read, or is not text.
    """
    lines = (line.split(",")[0].strip().strip('"') for line in read_text(path).splitlines())
    return frozenset(name for name in lines if name)
