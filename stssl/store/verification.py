"""Verify that a store did not change since its conversion, by the checksums of shards and the hashes of patches."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray
from stssl.base.errors import DataError
from stssl.base.hashing import content_hash
from stssl.base.remote import is_remote
from stssl.store.disk import DiskCache
from stssl.store.files import files_at
from stssl.store.reader import StoreReader
from stssl.store.schema import ERRORS, Patch
from stssl.store.store import Store
from stssl.store.zarr_metadata import COLUMN_HASHES, differing_entries, read_array

BATCH = 64
CACHE_BYTES = 4_000_000_000
MOST_FINDINGS = 1000


@dataclass(frozen=True)
class Findings:
    """Hold the result of a check of a store: how many patches were checked, and what is wrong.

    Attributes:
        patches: Number of checked patches.
        compared: Number of patches that the check compared with the archive.
        problems: A sentence for each problem. If there are more than `MOST_FINDINGS`, a last one says that the check
            stopped.
    """

    patches: int
    compared: int
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the problems as a list of lines.

        If several patches have the same problem, one line tells their number.
        """
        found: dict[str, list[str]] = {}
        for problem in self.problems:
            found.setdefault(problem.partition(": ")[2] or problem, []).append(problem)
        return [same[0] if len(same) == 1 else f"{len(same):,} patches, the first {same[0]}" for same in found.values()]


def verify(
    path: str | Path,
    original: Callable[[int], Patch] | None = None,
    names: Callable[[int], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Compare a store with its checksums and hashes. If `original` is given, also compare it with the archive.

    Compare the index of every shard (a file of many patches) with its checksum, and every patch with its hash. Compare
    every column with its hash and with the number of patches. With `original`, compare every patch and its maps with
    the archive.

    Args:
        path: Path or URL of the store.
        original: Function that gets a store row and reads from the archive the patch that this row should have.
        names: Function that gets a store row and returns the archive's name of its patch. None compares no names.
        progress: Function that is called with the number of checked patches and the number of all patches.

    Returns:
        The number of checked patches, and a sentence for each problem.

    Raises:
        DataError: The path has no finished store, or a needed metadata column is missing or broken.
    """
    store = Store.open(path)
    _check_columns(store)
    problems, checked = [*_changed_descriptions(store), *_changed_columns(store)], 0
    # Use a new, empty cache, so that the check reads the bytes in the object store: the usual cache may have others.
    folder = tempfile.TemporaryDirectory(prefix="stssl-verify-") if is_remote(store.path) else None
    cache = DiskCache(folder.name, CACHE_BYTES) if folder else None
    readers = [store.reader(store.bands, cache=cache), *([store.map_reader(cache)] if store.maps else [])]
    hashes, ids = store.unchecked("content_hash"), store.unchecked("patch_id").astype(str)
    for start in range(0, store.size, BATCH):
        rows = np.arange(start, min(start + BATCH, store.size))
        pixels, maps = _blocks(readers[0], rows), _blocks(readers[-1], rows) if store.maps else [{}] * len(rows)
        for row, found, own_maps in zip(rows.tolist(), pixels, maps, strict=True):
            name = ids[row]
            problems += [f"{name}: {block}" for block in (found, own_maps) if isinstance(block, DataError)]
            if isinstance(found, dict) and not np.array_equal(content_hash([*found.values()]), hashes[row]):
                problems.append(f"{name} (row {row}): its pixels are not those that were converted")
            if original is not None:
                patch = original(row)
                problems += _compare(name, names(row) if names else name, patch, hashes[row], store)
                problems += _compare_maps(name, patch, own_maps)
        checked = int(rows[-1]) + 1
        if progress:
            progress(checked, store.size)
        if len(problems) > MOST_FINDINGS:
            problems = [*problems[:MOST_FINDINGS], "and more: stopped"]
            break
    for reader in readers:
        reader.close()
    if folder:
        folder.cleanup()
    return Findings(checked, checked if original else 0, tuple(problems))


def _changed_descriptions(store: Store) -> list[str]:
    """Return a sentence for each array whose own `zarr.json` is lost, damaged or unlike its copy in the store's file.

    Other programs read an array's own file. This program reads the copy in the store's `zarr.json`.
    """
    problems = []
    for name, copy in store.description.arrays.items():
        try:
            own = read_array(store.path, name)
        except DataError as error:
            problems.append(str(error))
            continue
        # Report nothing for an empty folder: the checks of patches and columns report what it has lost.
        if own is None and (files_at(store.path) / name).names():
            problems.append(f"{name}/zarr.json is missing: programs other than this one need it")
        elif own is not None and (differ := differing_entries(own, copy)):
            problems.append(f"{name}/zarr.json: {', '.join(differ)} differs from the copy in the store's zarr.json")
    return problems


def _changed_columns(store: Store) -> list[str]:
    """Return a sentence for each metadata column that changed since the conversion.

    For older stores, which have no hashes, the list is empty. zarr reads a lost chunk as missing values and raises no
    error. The hash of the column finds this.
    """
    return [
        f"column {name}: its values are not those that were converted"
        for name in store.attrs.get(COLUMN_HASHES, {})
        if not store.is_converted(name, store.unchecked(name))
    ]


def _check_columns(store: Store) -> None:
    """Check that all needed metadata columns exist, have one row for each patch, and have known codes.

    Raises:
        DataError: A column is missing, or has a wrong size or an unknown code.
    """
    problems = []
    needed = ("patch_id", "lat", "lon", "time", "content_hash", "error_code", "valid_bands", *store.label_sets)
    for name in (*needed, *(f"split_{split}" for split in store.split_names)):
        if not store.has_column(name):
            problems.append(f"column {name} is missing")
        elif len(store.unchecked(name)) != store.size:
            problems.append(f"column {name} has {len(store.unchecked(name))} rows, and the store {store.size} patches")
    if store.has_column("error_code"):
        codes = np.setdiff1d(store.unchecked("error_code"), list(ERRORS.values()))
        problems += [f"error_code has the unknown code {code}" for code in codes]
    if problems:
        raise DataError(f"{store.path}: {'; '.join(problems)}. Convert the archive again.")


def _blocks(reader: StoreReader, rows: NDArray[np.int64]) -> list[dict[str, AnyArray] | DataError]:
    """Read the pixels of some patches. If some of them are damaged, still read the others.

    Args:
        reader: Reader of the images or maps of a store.
        rows: Store rows of the patches.

    Returns:
        List with an entry for each row: a dict of arrays [bands, height, width] by name, or the error of reading this
            patch.
    """
    try:
        blocks = reader.read(rows)
    except DataError as error:
        # Read the rows one by one: a damaged patch must not hide the other patches of its batch from the check.
        if len(rows) == 1:
            return [error]
        return [found for row in rows for found in _blocks(reader, np.array([row]))]
    return [{name: block[place] for name, block in blocks.items()} for place in range(len(rows))]


def _compare(name: str, original_name: str, patch: Patch, stored: NDArray[np.uint8], store: Store) -> list[str]:
    """Compare one patch of the store with the archive, by name and by a hash of its pixels.

    Args:
        name: Name of the patch in the store.
        original_name: Name that the archive has for this patch.
        patch: The patch as the archive has it.
        stored: Hash of the patch's pixels in the store, as bytes.
        store: The store, whose pixel arrays give the shapes of missing pixels.

    Returns:
        List with a sentence on the difference; empty if there is none.
    """
    if name != original_name:
        return [f"{name}: the archive has {original_name} in its place"]
    blank = {
        group.name: np.zeros((len(group.bands), group.height, group.width), group.dtype)
        for group in store.groups.values()
    }
    arrays = [patch.arrays.get(group, zeros) for group, zeros in blank.items()]
    same = np.array_equal(content_hash(arrays), stored)
    return [] if same else [f"{name}: its pixels differ from the archive's"]


def _compare_maps(name: str, patch: Patch, maps: dict[str, AnyArray] | DataError) -> list[str]:
    """Return a sentence for each map of a patch in the store that differs from the archive's map.

    If the archive has no map for the patch, the store must have zeros.

    Args:
        name: Name of the patch, for messages.
        patch: The patch as the archive has it.
        maps: Maps of the patch in the store, by name, or the error of reading them, which gives no sentence here.
    """
    if isinstance(maps, DataError):
        return []
    differ = [key for key, block in maps.items() if not np.array_equal(block, patch.arrays.get(key, 0 * block))]
    return [f"{name}: its {key} differs from the archive's" for key in differ]
