"""Whether a store is what its conversion wrote: every index checked, every patch decoded and hashed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.data.hashing import content_hash
from stssl.data.store import Store
from stssl.errors import DataError
from stssl.schema import ERRORS, Patch

BATCH = 64
MOST_FINDINGS = 1000


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        patches: Patches that were checked.
        compared: Those of them that were compared with the archive.
        problems: Words on each thing that is wrong; at most `MOST_FINDINGS`.
    """

    patches: int
    compared: int
    problems: tuple[str, ...]


def verify(
    path: str | Path,
    original: Callable[[int], Patch] | None = None,
    names: Callable[[int], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Check a store.

    Every shard's index against its checksum, every patch against its hash, every column against the number of patches;
    with the archive's reader also every patch against its pixels there.

    Args:
        path: Path or URL of the store.
        original: Reads a row's patch from the archive.
        names: The archive's name of a row.
        progress: Called with the number of checked and of all patches.

    Raises:
        DataError: There is no finished store.
    """
    store = Store.open(path)
    _check_columns(store)
    problems: list[str] = []
    reader = store.reader(store.bands)
    hashes, ids = store.column("content_hash"), store.column("patch_id").astype(str)
    for start in range(0, store.size, BATCH):
        rows = np.arange(start, min(start + BATCH, store.size))
        for row, found in zip(rows.tolist(), _hashes(reader, rows), strict=True):
            name = ids[row]
            if isinstance(found, DataError):
                problems.append(f"{name}: {found}")
            elif not np.array_equal(found, hashes[row]):
                problems.append(f"{name} (row {row}): its pixels are not those that were converted")
            if original is not None:
                problems += _compare(name, names(row) if names else name, original(row), hashes[row], store)
        if progress:
            progress(int(rows[-1]) + 1, store.size)
        if len(problems) > MOST_FINDINGS:
            problems = [*problems[:MOST_FINDINGS], "and more: stopped"]
            break
    reader.close()
    return Findings(store.size, store.size if original else 0, tuple(problems))


def _check_columns(store: Store) -> None:
    """Make sure that the metadata arrays are there, whole and of known codes."""
    problems = []
    needed = ("patch_id", "lat", "lon", "time", "content_hash", "error_code", "valid_bands", *store.label_sets)
    for name in (*needed, *(f"split_{split}" for split in store.split_names)):
        if not store.has_column(name):
            problems.append(f"column {name} is missing")
        elif len(store.column(name)) != store.size:
            problems.append(f"column {name} has {len(store.column(name))} rows, and the store {store.size} patches")
    if store.has_column("error_code"):
        codes = np.setdiff1d(store.column("error_code"), list(ERRORS.values()))
        problems += [f"error_code has the unknown code {code}" for code in codes]
    if problems:
        raise DataError(f"{store.path}: {'; '.join(problems)}. Convert the archive again.")


def _hashes(reader: Any, rows: NDArray[np.int64]) -> list[NDArray[np.uint8] | DataError]:
    """Hash of each row's pixels, or why it cannot be read."""
    try:
        blocks = reader.read(rows)
    except DataError as error:
        if len(rows) == 1:
            return [error]
        return [found for row in rows for found in _hashes(reader, np.array([row]))]
    return [content_hash([block[place] for block in blocks.values()]) for place in range(len(rows))]


def _compare(name: str, original_name: str, patch: Patch, stored: NDArray[np.uint8], store: Store) -> list[str]:
    """Problems of one patch against the archive's."""
    if name != original_name:
        return [f"{name}: the archive has {original_name} in its place"]
    blank = {
        group.name: np.zeros((len(group.bands), group.height, group.width), group.dtype)
        for group in store.groups.values()
    }
    arrays = [patch.arrays.get(group, zeros) for group, zeros in blank.items()]
    same = np.array_equal(content_hash(arrays), stored)
    return [] if same else [f"{name}: its pixels differ from the archive's"]
