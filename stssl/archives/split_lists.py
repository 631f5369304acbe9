"""Read splits from lists of patch names. The lists lie beside the archive or in a folder that the user gives."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.errors import DataError
from stssl.base.textfiles import read_names
from stssl.store.schema import NO_SPLIT, SPLIT_CODES

LIST_ENDINGS = (".txt", ".csv", ".csv.bz2", ".csv.gz", ".txt.bz2", ".txt.gz")
PART_NAMES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
"""Parts of a split, and the possible names of each part's list."""


def find_list(folders: Iterable[Path], *stems: str) -> Path | None:
    """Find the file of a list in some folders, by its name without ending. Try all usual endings of lists.

    Args:
        folders: Folders to search, the first one first.
        *stems: Names without ending, the preferred one first.

    Returns:
        Path of the file; None if no such file exists.
    """
    for folder in folders:
        for stem in stems:
            for ending in LIST_ENDINGS:
                if (folder / (stem + ending)).is_file():
                    return folder / (stem + ending)
    return None


def find_split(folders: Iterable[Path]) -> dict[str, frozenset[str]] | None:
    """Read a split into train, validation and test from three lists of patch names, called train, val and test.

    Args:
        folders: Folders to search, the first one first.

    Returns:
        Each part and its patch names; None if no lists exist.

    Raises:
        DataError: Some of the lists exist and others are missing.
    """
    folders = tuple(folders)
    found = {part: find_list(folders, *stems) for part, stems in PART_NAMES.items()}
    if not any(found.values()):
        return None
    missing = [part for part, path in found.items() if path is None]
    if missing:
        there = ", ".join(path.name for path in found.values() if path)
        raise DataError(f"{folders[0]} has {there}, but no list for {' and '.join(missing)} (such as test.csv)")
    return {part: read_names(path) for part, path in found.items() if path}


def split_codes(names: tuple[str, ...], folders: Sequence[Path]) -> NDArray[np.uint8] | None:
    """Read a split from lists of patch names. Return the code of train, validation or test for each patch.

    Return None if no lists exist.

    Args:
        names: Names of all N patches.
        folders: Folders to search, the first one first.

    Raises:
        DataError: A list is missing, or two lists name the same patch.
    """
    parts = find_split(folders)
    if parts is None:
        return None
    for one, other in itertools.combinations(parts, 2):
        if both := parts[one] & parts[other]:
            where = " or ".join(dict.fromkeys(str(folder) for folder in folders))
            raise DataError(
                f"the lists of {one} and {other} in {where} share {len(both):,} patches (such as {min(both)}): "
                "a split's lists must not overlap"
            )
    code_of = {name: SPLIT_CODES[part] for part, listed in parts.items() for name in listed}
    return np.array([code_of.get(name, NO_SPLIT) for name in names], np.uint8)


def listed_splits(names: tuple[str, ...], splits: Mapping[str, Path] | None) -> dict[str, NDArray[np.uint8]]:
    """Read the splits that the user gave as folders of lists. Return [N] codes of train, validation or test for each.

    Args:
        names: Names of all N patches.
        splits: Name and folder of each split.

    Raises:
        DataError: A folder has no lists, or its lists name none of the patches.
    """
    found = {}
    for split, folder in (splits or {}).items():
        codes = split_codes(names, (folder,))
        if codes is None:
            raise DataError(f"{folder} has no lists train, val and test (.txt, .csv, .csv.bz2) for the split '{split}'")
        if (codes == NO_SPLIT).all():
            raise DataError(f"the lists in {folder} name none of the archive's {len(names):,} patches")
        found[split] = codes
    return found


def split_notes(names: tuple[str, ...], splits: Mapping[str, Path] | None) -> tuple[str, ...]:
    """Describe how well the lists fit the archive: count names without a patch, and patches in no list.

    Args:
        names: Names of all N patches.
        splits: Name and folder of each split.

    Returns:
        Lines for the user; empty if names and patches agree.
    """
    known = frozenset(names)
    found = []
    for split, folder in (splits or {}).items():
        listed = frozenset().union(*(find_split((folder,)) or {}).values())
        strangers = listed - known
        left = len(known - listed)
        if strangers:
            what = f"{len(strangers):,} of the {len(listed):,} names in its lists are no patches of the archive"
            found.append(f"split {split}: {what} (such as {min(strangers)})")
        if left:
            found.append(f"split {split}: {left:,} of the {len(known):,} patches are in none of its lists")
    return tuple(found)
