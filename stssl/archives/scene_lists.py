"""Find the scenes that paths name: files with all bands, and folders of files with one band each."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stssl.archives.cells import time_of
from stssl.archives.scene_files import SCENE_ENDINGS, SceneImage, arrange_scene, canonical_band, describe_file
from stssl.base.errors import ConfigError, DataError
from stssl.store.schema import BadPatchError, Values

_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?:T(\d{2})(\d{2})(\d{2}))?(?!\d)")


@dataclass(frozen=True)
class FoundScene:
    """Hold a scene, or what is wrong with it.

    Attributes:
        name: Name of the scene, without folders.
        image: The scene; None if it cannot be read.
        problem: What is wrong with it.
        date: Columns of its date; empty if it is unknown.
    """

    name: str
    image: SceneImage | None
    problem: str = ""
    date: Values = field(default_factory=dict)


def given_date(date: str) -> Values:
    """Read the date that the user gave for all scenes.

    Raises:
        ConfigError: It is not ISO 8601.
    """
    try:
        return time_of(date)
    except BadPatchError as problem:
        raise ConfigError(f"--date: {problem}") from None


def _date_in(name: str) -> Values:
    """Find a date in the name of a file or folder, such as 20230614, 2023-06-14 or 20230614T101031."""
    match = _DATE.search(name)
    if match is None:
        return {}
    year, month, day, *clock = match.groups()
    text = f"{year}-{month}-{day}" + (f"T{':'.join(clock)}" if all(clock) else "")
    try:
        return time_of(text)
    except BadPatchError:
        return {}


def find_scenes(paths: Sequence[Path], names: Sequence[str] | None, when: Values | None) -> Iterator[FoundScene]:
    """Yield the scenes that paths name. A scene that cannot be read keeps the reason.

    Args:
        paths: Files and folders. A folder of files with one band each is one scene.
        names: Names of the bands; None takes those of the files.
        when: Columns of the date of all scenes; None reads it from names.

    Raises:
        ConfigError: The number of names is wrong.
        DataError: A folder has no scene.
    """
    for path in paths:
        if not path.is_dir():
            yield _scene(path.stem, [path], names, when)
            continue
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in SCENE_ENDINGS)
        if not files and path.suffix.upper() == ".SAFE":
            raise DataError(
                f"{path} is a Sentinel-2 product, which is not cut into patches. `stssl predict` maps it. To convert "
                "it, write its bands into one GeoTIFF (gdalbuildvrt -separate, then gdal_translate)."
            )
        if not files:
            raise DataError(f"{path} has no scenes: no file ends in {', '.join(SCENE_ENDINGS)}.")
        if len(files) > 1 and _one_band_each(files):
            yield _scene(path.name, files, names, when)
            continue
        for file in files:
            yield _scene(file.stem, [file], names, when)


def _one_band_each(files: Sequence[Path]) -> bool:
    """Return True if all files that can be read have one band."""
    counts = set()
    for file in files:
        try:
            counts.add(len(describe_file(file)))
        except DataError:
            continue
    return counts == {1}


def _scene(name: str, files: Sequence[Path], names: Sequence[str] | None, when: Values | None) -> FoundScene:
    """Describe one scene. If it cannot be read, keep the reason."""
    date = _date_in(name) if when is None else when
    try:
        bands = [band for file in files for band in describe_file(file)]
        if len(files) > 1:
            bands = [replace(band, name=_band_of(band.path)) for band in bands]
        if names is not None and len(names) != len(bands):
            raise ConfigError(f"--band-names has {len(names)} names, and {name} has {len(bands)} bands.")
        own = bands if names is None else [replace(one, name=new) for one, new in zip(bands, names, strict=True)]
        return FoundScene(name, arrange_scene(name, own), date=date)
    except DataError as error:
        return FoundScene(name, None, str(error), date)


def _band_of(path: Path) -> str:
    """Return the band that a file's name names, such as `B04` in `T32UMC_B04_10m.jp2`; else the name itself."""
    found = [
        part for part in re.split(r"[^A-Za-z0-9]+", path.stem) if re.fullmatch(r"B(\d{1,2}|8A)", part, re.IGNORECASE)
    ]
    return canonical_band(found[-1]) if found else path.stem


def numbered(scenes: Sequence[FoundScene]) -> Iterator[FoundScene]:
    """Give scenes of equal names a number."""
    count: dict[str, int] = {}
    for scene in scenes:
        count[scene.name] = count.get(scene.name, 0) + 1
        number = count[scene.name]
        yield scene if number == 1 else replace(scene, name=f"{scene.name}~{number}")
