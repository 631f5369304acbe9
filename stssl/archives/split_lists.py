"""Read splits from lists of patch names, or from a table of patch names and parts.

The lists lie beside the archive or in a folder that the user gives.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.archives.tables import ABOUT, ID_NAMES, columns_of, read_table
from stssl.base.errors import DataError, shown
from stssl.base.textfiles import PICKLES, read_names, refuse_pickle
from stssl.store.lists import SAMPLE, V1_NAME, other_version
from stssl.store.schema import NO_SPLIT, SPLIT_CODES

LIST_ENDINGS = (".txt", ".csv", ".csv.bz2", ".csv.gz", ".txt.bz2", ".txt.gz")
PART_NAMES = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
"""Parts of a split, and the possible names of each part's list."""
TRAINING_LISTS = ("train*_lb_*", "train*_ulb_*")
"""Lists of the public code of "Context Matters": labeled and unlabeled training patches. Together they are `train`."""


def find_list(folders: Iterable[Path], *stems: str) -> Path | None:
    """Return the path of a file with a list of patch names, found by its name without ending.

    Args:
        folders: Folders to search, the preferred one first.
        *stems: Possible names of the file without ending, the preferred one first. All usual endings are tried.

    Returns:
        Path of the first file that exists; None if there is no such file.
    """
    for folder in folders:
        for stem in stems:
            for ending in LIST_ENDINGS:
                if (folder / (stem + ending)).is_file():
                    return folder / (stem + ending)
    return None


def find_split(folders: Iterable[Path]) -> dict[str, frozenset[str]] | None:
    """Read a split from three lists of patch names, which are files called train, val and test with a usual ending.

    Args:
        folders: Folders to search, the preferred one first.

    Returns:
        A dict from part (`train`, `validation`, `test`) to its patch names; None if no lists exist.

    Raises:
        DataError: Some of the lists exist and others are missing, or a list is a pickle.
    """
    folders = tuple(folders)
    found = {part: _lists_of(folders, part) for part in PART_NAMES}
    if not any(found.values()):
        return None
    missing = [part for part, paths in found.items() if not paths]
    if missing:
        there = ", ".join(path.name for paths in found.values() for path in paths)
        raise DataError(f"{folders[0]} has {there}, but no list for {' and '.join(missing)} (such as test.csv)")
    return {part: frozenset().union(*map(read_names, paths)) for part, paths in found.items()}


def _lists_of(folders: Sequence[Path], part: str) -> list[Path]:
    """Return the paths of the lists of a part of a split (train, validation or test); an empty list if there are none.

    A part has one list. Training may have two: the lists of labeled and of unlabeled patches, as in the public code of
    "Context Matters".

    Args:
        folders: Folders to search, the preferred one first.
        part: `train`, `validation` or `test`.

    Raises:
        DataError: The only list of the part is a pickle, which is never read.
    """
    if (own := find_list(folders, *PART_NAMES[part])) is not None:
        return [own]
    patterns = TRAINING_LISTS if part == "train" else ()
    names = [stem + ending for stem in patterns for ending in LIST_ENDINGS]
    found = sorted({path for folder in folders for name in names for path in folder.glob(name) if path.is_file()})
    if found:
        return found
    stems = (*PART_NAMES[part], *patterns)
    pickles = (path for folder in folders for stem in stems for end in PICKLES for path in folder.glob(stem + end))
    for path in pickles:
        refuse_pickle(path)
    return []


def split_codes(names: tuple[str, ...], folders: Sequence[Path]) -> NDArray[np.uint8] | None:
    """Read a split from lists of patch names. Return a code of `SPLIT_CODES` for each patch: an array [N].

    A patch in no list gets `NO_SPLIT`. Return None if no lists exist.

    Args:
        names: Names of all N patches.
        folders: Folders to search for the lists, the preferred one first.

    Raises:
        DataError: A list is missing, or two lists name the same patch.
    """
    parts = find_split(folders)
    return None if parts is None else _codes(names, parts, " or ".join(dict.fromkeys(map(str, folders))))


def _codes(names: tuple[str, ...], parts: Mapping[str, frozenset[str]], where: str) -> NDArray[np.uint8]:
    """Return for each patch the code of its part of a split (train, validation or test): an array [N].

    A patch in no part gets `NO_SPLIT`.

    Args:
        names: Names of all N patches.
        parts: Name of each part, and the names of its patches.
        where: Path of the lists or the table that the parts come from, for messages.

    Raises:
        DataError: Two parts have the same patch.
    """
    for one, other in itertools.combinations(parts, 2):
        if both := parts[one] & parts[other]:
            raise DataError(
                f"the lists of {one} and {other} in {where} share {len(both):,} patches (such as {min(both)}): "
                "a split's lists must not overlap"
            )
    code_of = {name: SPLIT_CODES[part] for part, listed in parts.items() for name in listed}
    return np.array([code_of.get(name, NO_SPLIT) for name in names], np.uint8)


def given_split(place: Path, names: Sequence[str] = ()) -> dict[str, frozenset[str]]:
    """Read a split that the user gave: from a folder of lists, or from a table with the columns `patch` and `split`.

    Args:
        place: Folder or table.
        names: Names of the archive's patches. If they have the form of BigEarthNet v1.0, the table's column `s2v1_name`
            is used for patch names, if there is one.

    Returns:
        A dict from part (`train`, `validation`, `test`) to its patch names.

    Raises:
        DataError: The folder has no lists, the table lacks a column, or a cell names no part of a split.
    """
    if place.is_dir():
        if found := find_split((place,)):
            return found
        raise DataError(f"{place} has no lists train, val and test (.txt, .csv, .csv.bz2)")
    refuse_pickle(place)
    first = names[:SAMPLE]
    earlier = ("s2v1_name",) if first and all(map(V1_NAME.fullmatch, first)) else ()
    columns = columns_of(read_table(place), {"name": (*earlier, *ID_NAMES), "split": ABOUT["split"]}, place)
    if len(columns) < 2:
        raise DataError(
            f"{place} needs the columns patch and split (train, val or test). Without a column split, give a folder "
            "with one list for each part: train.csv, val.csv and test.csv."
        )
    part_of = {name: part for part, names in PART_NAMES.items() for name in names}
    parts: dict[str, set[str]] = {part: set() for part in PART_NAMES}
    for row, (given, cell) in enumerate(zip(columns["name"], columns["split"], strict=True), 1):
        name, word = "" if given is None else str(given).strip(), str(cell or "").strip().lower()
        if word and word not in part_of:
            raise DataError(f"{place}: the split of {name} is '{shown(str(cell))}'. Give train, val or test.")
        if word and not name:
            raise DataError(
                f"{place}: row {row} (after the header) has the split {word}, but no patch. Name the patch."
            )
        if word:
            parts[part_of[word]].add(name)
    return {part: frozenset(listed) for part, listed in parts.items()}


def listed_splits(names: tuple[str, ...], splits: Mapping[str, Path] | None) -> dict[str, NDArray[np.uint8]]:
    """Read the splits that the user gave as folders of lists or as tables.

    Args:
        names: Names of all N patches of the archive.
        splits: Name of each split, and its folder or table; None if the user gave none.

    Returns:
        A dict from split to the codes of the patches, [N]: a code of `SPLIT_CODES`, or `NO_SPLIT` for a patch in no
        part.

    Raises:
        DataError: A folder has no lists, two lists name the same patch, or the lists name none of the patches.
    """
    found = {}
    for split, place in (splits or {}).items():
        try:
            parts = given_split(place, names)
        except DataError as error:
            raise DataError(f"split '{split}': {error}") from None
        codes = _codes(names, parts, str(place))
        if (codes == NO_SPLIT).all():
            listed = frozenset().union(*parts.values())
            hint = other_version(listed, names[:SAMPLE])
            raise DataError(f"the lists in {place} name none of the archive's {len(names):,} patches.{hint}")
        found[split] = codes
    return found


def split_notes(names: tuple[str, ...], splits: Mapping[str, Path] | None) -> tuple[str, ...]:
    """Return remarks on how well the user's splits fit the archive.

    Args:
        names: Names of all N patches of the archive.
        splits: Name of each split, and its folder or table; None if the user gave none.

    Returns:
        Lines of text for the user: numbers of patches in each part, names that no patch has, and patches in no part.
    """
    known = frozenset(names)
    found = []
    for split, place in (splits or {}).items():
        parts = given_split(place, names)
        counts = ", ".join(f"{len(listed & known):,} {part}" for part, listed in parts.items())
        found.append(f"split {split}: {counts}")
        listed = frozenset().union(*parts.values())
        strangers = listed - known
        left = len(known - listed)
        if strangers:
            what = f"{len(strangers):,} of the {len(listed):,} names in its lists are no patches of the archive"
            hint = other_version(strangers, names[:SAMPLE])
            found.append(f"split {split}: {what} (such as {min(strangers)}).{hint}")
        if left:
            found.append(f"split {split}: {left:,} of the {len(known):,} patches are in none of its lists")
    return tuple(found)
