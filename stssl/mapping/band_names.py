"""Find the bands that a student needs in image files, by the names that files give to their bands."""

import re
from collections.abc import Collection
from pathlib import Path

_STATED = re.compile(r"B(0?\d|1[0-2]|8A)", re.IGNORECASE)
_SENTINEL = re.compile(r"B0?(\d{1,2})", re.IGNORECASE)


def canonical(name: str) -> str:
    """Return a band's name in one spelling, so that names can be compared: `B04` for `B4`, `b04` and `B04`.

    Names that are not `B` and a number, such as `NIR`, become lower case.
    """
    match = _SENTINEL.fullmatch(name.strip())
    return f"B{int(match[1]):02d}" if match else name.strip().casefold()


def matching(text: str, wanted: Collection[str]) -> str | None:
    """Find the student's band that a description in a file names: `B4` or `B4, central wavelength 665 nm` names `B04`.

    Args:
        text: Description of a band in a file.
        wanted: Names of the student's bands.

    Returns:
        Name of the student's band; None if the text names none of them.
    """
    known = {canonical(name): name for name in wanted}
    if canonical(text) in known:
        return known[canonical(text)]
    start = re.split(r"[,;:(\s]", text.strip(), maxsplit=1)[0]
    return known.get(canonical(start)) if start else None


def matching_file(path: Path, wanted: Collection[str]) -> str | None:
    """Find the student's band that a file's name contains, such as `B04` in `T32UMC_20220614_B04_10m.jp2`.

    Args:
        path: A file of one band.
        wanted: Names of the student's bands.

    Returns:
        Name of the student's band; None if the name has none of them, or several.
    """
    known = {canonical(name): name for name in wanted}
    parts = re.split(r"[^A-Za-z0-9]+", path.stem)
    found = {known[canonical(part)] for part in parts if canonical(part) in known}
    whole = known.get(canonical(path.stem))
    return whole or (found.pop() if len(found) == 1 else None)


def stated_band(path: Path) -> str | None:
    """Return the name of a Sentinel-2 band that a file's name contains, such as `B04` in `T32UMC_B04_10m.jp2`.

    Return None if the name contains none, or several.

    Args:
        path: A file of one band.
    """
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", path.stem) if _STATED.fullmatch(part)]
    return parts[0] if len(parts) == 1 else None
