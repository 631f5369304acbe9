"""Find the scenes that paths name: files with all bands, folders of files with one band each, Sentinel-2 products."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stssl.archives.cells import time_of
from stssl.archives.raster_files import SCENE_ENDINGS
from stssl.archives.safe_product import METADATA, SafeProduct, is_safe, read_safe
from stssl.archives.scene_files import SceneBand, SceneImage, arrange_scene, canonical_band, describe_file, other_names
from stssl.base.errors import ConfigError, DataError
from stssl.store.schema import BadPatchError, Values

_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?:T(\d{2})(\d{2})(\d{2}))?(?!\d)")


@dataclass(frozen=True)
class BandChoice:
    """Hold the user's options for the bands of scenes: their names, and which bands the patches get.

    Attributes:
        names: Names of the bands, in the sequence of the bands in a scene; None takes the names in the files.
        kept: Names of the bands to keep; None keeps all.
    """

    names: tuple[str, ...] | None = None
    kept: tuple[str, ...] | None = None

    def needed(self, bands: Iterable[str]) -> list[str]:
        """Return the names in `bands` that the user wants to keep, so that the caller opens no other band.

        If a wanted name is missing, return all names in `bands`: the error that `applied` then raises lists them.
        """
        found, wanted = list(bands), {canonical_band(name) for name in self.kept or ()}
        return [band for band in found if band in wanted] if wanted and wanted <= set(found) else found

    def applied(self, scene: str, bands: Sequence[SceneBand]) -> list[SceneBand]:
        """Rename the bands of a scene to the user's names, and return those that the user wants to keep.

        The input is not changed.

        Args:
            scene: Name of the scene, for messages.
            bands: All bands of the scene.

        Raises:
            ConfigError: The number of names is wrong, or they contradict names that the files state.
            DataError: A band to keep is missing.
        """
        if self.names is not None:
            if len(self.names) != len(bands):
                raise ConfigError(f"--band-names has {len(self.names)} names, and {scene} has {len(bands)} bands.")
            if any(one.stated and canonical_band(new) != one.name for one, new in zip(bands, self.names, strict=True)):
                raise other_names(self.names, scene, [band.name for band in bands])
            bands = [replace(one, name=new) for one, new in zip(bands, self.names, strict=True)]
        if self.kept is None:
            return list(bands)
        known = {canonical_band(band.name): band for band in bands}
        missing = [name for name in self.kept if canonical_band(name) not in known]
        if missing:
            raise DataError(f"{scene} has no band {', '.join(missing)} (it has: {', '.join(known)}).")
        return [known[canonical_band(name)] for name in dict.fromkeys(self.kept)]


@dataclass(frozen=True)
class FoundScene:
    """Hold a scene that was found at a path, or the reason why it cannot be read.

    Attributes:
        name: Name of the scene, without folders.
        image: Description of the scene; None if it cannot be read.
        problem: Reason why the scene cannot be read; empty if it can.
        date: Time of the scene as a dict of store columns; empty if it is unknown.
    """

    name: str
    image: SceneImage | None
    problem: str = ""
    date: Values = field(default_factory=dict)


def given_date(date: str) -> Values:
    """Convert the date that the user gave for all scenes to a dict of store columns: time, day of year, season.

    Raises:
        ConfigError: The date is not written as ISO 8601, or its year is out of range.
    """
    try:
        return time_of(date)
    except BadPatchError as problem:
        raise ConfigError(f"--date: {problem}") from None


def _date_in(name: str) -> Values:
    """Find a date such as 20230614 or 20230614T101031 in a name. Return it as a dict of store columns.

    The dict has time, day of year and season. It is empty if the name has no such date.
    """
    match = _DATE.search(name)
    if match is None:
        return {}
    year, month, day, *clock = match.groups()
    text = f"{year}-{month}-{day}" + (f"T{':'.join(clock)}" if all(clock) else "")
    try:
        return time_of(text)
    except BadPatchError:
        return {}


def find_scenes(paths: Sequence[Path], choice: BandChoice, when: Values | None) -> Iterator[FoundScene]:
    """Yield a description of each scene at some paths. For a scene that cannot be read, it has the reason instead.

    Args:
        paths: Files and folders. A folder of files with one band each is one scene; so is a `.SAFE` folder. In other
            folders, each file and each `.SAFE` folder is a scene.
        choice: The user's names for the bands, and which bands to keep.
        when: Time of all scenes as a dict of store columns; None takes it from file names, or from a product's
            metadata.

    Raises:
        ConfigError: The number of band names is wrong, or they contradict names that the files state.
        DataError: A folder has no scene.
    """
    for path in paths:
        if is_safe(path):
            yield _product(path, choice, when)
            continue
        if not path.is_dir():
            yield _scene(path.stem, [path], choice, when)
            continue
        products = sorted(one for one in path.iterdir() if one.is_dir() and is_safe(one))
        yield from (_product(one, choice, when) for one in products)
        files = sorted(one for one in path.iterdir() if one.suffix.lower() in SCENE_ENDINGS)
        if not files and not products:
            raise DataError(
                f"{path} has no scenes: no file ends in {', '.join(SCENE_ENDINGS)}, and there is no .SAFE folder."
            )
        if len(files) > 1 and _one_band_each(files):
            yield _scene(path.name, files, choice, when)
            continue
        for file in files:
            yield _scene(file.stem, [file], choice, when)


def _one_band_each(files: Sequence[Path]) -> bool:
    """Return True if each of the files that can be read has one band; False if no file can be read."""
    counts = set()
    for file in files:
        try:
            counts.add(len(describe_file(file)))
        except DataError:
            continue
    return counts == {1}


def _scene(name: str, files: Sequence[Path], choice: BandChoice, when: Values | None) -> FoundScene:
    """Return the scene with the bands in some files; if it cannot be read, the reason instead.

    Args:
        name: Name of the scene.
        files: One file with all bands, or several files with one band each.
        choice: The user's names for the bands, and which bands to keep.
        when: Time of the scene as a dict of store columns; None takes it from `name`.

    Raises:
        ConfigError: The number of the user's band names is wrong, or they contradict names that the files state.
    """
    date = _date_in(name) if when is None else when
    try:
        bands = [band for file in files for band in describe_file(file)]
        if len(files) > 1:
            bands = [replace(band, name=_band_of(band.path), stated=_names_band(band.path)) for band in bands]
        return FoundScene(name, arrange_scene(name, choice.applied(name, bands)), date=date)
    except DataError as error:
        return FoundScene(name, None, str(error), date)


def _product(path: Path, choice: BandChoice, when: Values | None) -> FoundScene:
    """Return a Sentinel-2 product of level 2A as a scene; if it cannot be read, the reason instead.

    Args:
        path: The `.SAFE` folder, or its metadata file.
        choice: Which bands to keep.
        when: Time of the scene as a dict of store columns; None takes it from the metadata.

    Raises:
        ConfigError: The user named the bands, though the product names them itself.
    """
    folder = path.parent if path.name == METADATA else path
    name, date = folder.name.removesuffix(".SAFE"), when or {}
    if choice.names is not None:
        raise ConfigError(f"{folder.name} names its bands itself: leave the names of bands out.")
    try:
        product = read_safe(path)
        date = time_of(product.date) if when is None and product.date else date
        images = {band: _image(product, band) for band in choice.needed(product.images)}
        own = [
            replace(describe_file(file)[0], name=band, numbers=product.numbers(band)) for band, file in images.items()
        ]
        return FoundScene(name, arrange_scene(name, choice.applied(name, own)), date=date)
    except (DataError, BadPatchError) as error:
        return FoundScene(name, None, str(error), date)


def _image(product: SafeProduct, band: str) -> Path:
    """Return the path of the image with the smallest pixels of a band in a Sentinel-2 product.

    Args:
        product: Metadata of the product.
        band: Name of the band, such as `B04`.

    Raises:
        DataError: The product has several granules.
    """
    images = product.images_of(band, None)
    if len(images) > 1:
        raise DataError(f"{product.folder.name} has {len(images)} granules. Give a product of one granule.")
    return images[0]


def _band_of(path: Path) -> str:
    """Return the name of the band in a file's name, such as `B04` for `T32UMC_B04_10m.jp2`; the last one of several.

    Without a band, return the file's name without its ending.
    """
    found = _band_parts(path)
    return canonical_band(found[-1]) if found else path.stem


def _names_band(path: Path) -> bool:
    """Return True if a file's name contains the name of exactly one band, such as `B04`."""
    return len(_band_parts(path)) == 1


def _band_parts(path: Path) -> list[str]:
    """Return those words in a file's name that are names of Sentinel-2 bands, such as `B04`."""
    parts = re.split(r"[^A-Za-z0-9]+", path.stem)
    return [part for part in parts if re.fullmatch(r"B(\d{1,2}|8A)", part, re.IGNORECASE)]


def numbered(scenes: Sequence[FoundScene]) -> Iterator[FoundScene]:
    """Yield the scenes with names that differ: the second scene of a name gets `~2` at its end, the third `~3`."""
    count: dict[str, int] = {}
    for scene in scenes:
        count[scene.name] = count.get(scene.name, 0) + 1
        number = count[scene.name]
        yield scene if number == 1 else replace(scene, name=f"{scene.name}~{number}")
