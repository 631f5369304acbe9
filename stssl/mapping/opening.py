"""Find the files of a scene: GeoTIFFs, files of one band each, a mosaic, or a Sentinel-2 product."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stssl.archives.raster_files import MOST_NAME, SCENE_ENDINGS
from stssl.archives.safe_product import SafeProduct, is_safe, read_safe
from stssl.base.errors import ConfigError, DataError, shown
from stssl.mapping.band_names import matching, matching_file, stated_band
from stssl.mapping.layers import Source
from stssl.mapping.needs import SceneNeeds
from stssl.mapping.rasters import Raster, describe_raster
from stssl.mapping.scene import Chosen, Scene, arrange


def scene_files(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the absolute paths of a scene's files, without duplicates.

    Args:
        inputs: Files, folders, or patterns such as `tiles/*.tif`.

    Raises:
        DataError: A file does not exist, or a folder or pattern has no image.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in SCENE_ENDINGS)
            if not inside:
                raise DataError(f"{path} has no files {', '.join(SCENE_ENDINGS)} and is no Sentinel-2 .SAFE folder.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            matches = _matches(path)
            if not matches:
                raise DataError(f"there is no file or folder {shown(str(given), MOST_NAME)}.")
            found += matches
    return list(dict.fromkeys(path.absolute() for path in found))


def _matches(pattern: Path) -> list[Path]:
    """Return the sorted paths that match a pattern such as `tiles/*.tif`; none if it has no wildcard."""
    parts = pattern.absolute().parts
    plain = next((number for number, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return sorted(Path(*parts[:plain]).glob("/".join(parts[plain:]))) if plain < len(parts) else []


def open_scene(
    inputs: Sequence[str | Path], needs: SceneNeeds, bands: Sequence[str] = (), *, resample: bool = False
) -> Scene:
    """Find the files and bands of a scene, check that they fit the students, and return the scene.

    Args:
        inputs: A `.SAFE` folder, or files, folders and patterns of GeoTIFFs.
        needs: Requirements of the students.
        bands: Names of the bands: for each band of every file or, if all files have one band, for each file. Empty to
            read the names from the files.
        resample: True to accept a scene with another pixel size than the student's.

    Raises:
        ConfigError: The pixel size differs from the student's, or `bands` does not fit the files.
        DataError: A file cannot be used, a band is missing, or the files do not fit together.
    """
    if any(is_safe(Path(one)) for one in inputs):
        if len(inputs) > 1:
            raise ConfigError("give one .SAFE folder alone. Other files cannot be added to it.")
        if bands:
            raise ConfigError("a .SAFE folder names its bands itself: leave --bands out.")
        product = read_safe(Path(inputs[0]).absolute())
        chosen = list(_of_product(product, needs))
        return arrange(product.folder.name, chosen, needs, resample=resample, date=product.date)
    files = scene_files(inputs)
    chosen = [one for one in _of_files([describe_raster(path) for path in files], needs, bands) if one.bands]
    missing = [band for band in needs.bands if not any(band in one.bands for one in chosen)]
    if missing:
        raise DataError(_missing(missing, files, bands))
    return arrange(Path(inputs[0]).name if len(inputs) == 1 else files[0].name, chosen, needs, resample=resample)


def _missing(missing: Sequence[str], files: Sequence[Path], given: Sequence[str]) -> str:
    """Return the error message about missing bands: which bands the scene lacks, which ones it has, and what to do.

    Args:
        missing: Names of the bands that the scene lacks.
        files: Files of the scene.
        given: Names of bands that the user gave; empty if none.
    """
    if given:
        return (
            f"the scene has no band {', '.join(missing)}, which the student needs: --bands names "
            f"{', '.join(shown(name, 30) for name in given[:20])}. Name all bands that the student needs, or give a "
            "scene that has them."
        )
    there = [own.description or f"number {own.index}" for own in describe_raster(files[0]).bands]
    where = f"{files[0]} has {', '.join(shown(name, 30) for name in there[:20])}"
    others = f" and {len(files) - 1} other files" if len(files) > 1 else ""
    return (
        f"the scene has no band {', '.join(missing)}, which the student needs ({where}{others}). Give the names of the "
        "bands with --bands B02,B03,..., or a scene that has them."
    )


def _of_product(product: SafeProduct, needs: SceneNeeds) -> Iterator[Chosen]:
    """Find the files of a Sentinel-2 product that have a band that the students need.

    Args:
        product: The product.
        needs: Requirements of the students.

    Yields:
        Each file together with its band, and how to read it.

    Raises:
        DataError: The product does not have a band, or a file has values of another type.
    """
    for band, about in needs.bands.items():
        name = matching(band, product.images)
        if name is None:
            raise DataError(
                f"{product.folder.name} has no band {band}, which the student needs (it has "
                f"{', '.join(sorted(product.images))}). Give a product or a student of other bands."
            )
        for path in product.images_of(name, about.meters):
            raster = describe_raster(path)
            _require_type(raster, 0, needs)
            own = raster.bands[0]
            yield Chosen(raster, {band: Source(0, own.index, own.masked, product.numbers(name))})


def _of_files(rasters: Sequence[Raster], needs: SceneNeeds, bands: Sequence[str]) -> Iterator[Chosen]:
    """Find the bands that the students need in the files of a scene.

    Args:
        rasters: Descriptions of the files.
        needs: Requirements of the students.
        bands: Names of bands that the user gave. If there are none, the names come from the files.

    Yields:
        Each file together with those of its bands that the students need; without bands if it has none of them.

    Raises:
        ConfigError: The names that the user gave do not fit a file.
        DataError: A file has a band twice, or values of another type.
    """
    single = all(len(one.bands) == 1 for one in rasters)
    named = [matching(band, needs.bands) for band in bands]
    by_file = single and len(bands) == len(rasters) and len(bands) > 1
    for number, raster in enumerate(rasters):
        if bands and not by_file and len(raster.bands) != len(bands):
            raise ConfigError(
                f"--bands names {len(bands)} bands, and {raster.path} has {len(raster.bands)}. Name each band of a "
                "file once, or each of the files of one band."
            )
        if bands:
            _require_same_names(raster, [bands[number]] if by_file else bands, single=single)
        if by_file:
            names = [named[number]]
        elif bands:
            names = named
        else:
            names = [matching(own.description, needs.bands) for own in raster.bands]
            names = [matching_file(raster.path, needs.bands)] if single and names == [None] else names
        found: dict[str, Source] = {}
        for place, name in enumerate(names):
            if name is None:
                continue
            if name in found:
                raise DataError(f"{raster.path} has band {name} twice. Give the names of its bands with --bands.")
            _require_type(raster, place, needs)
            own = raster.bands[place]
            found[name] = Source(0, own.index, own.masked, own.numbers)
        yield Chosen(raster, found)


def _require_same_names(raster: Raster, given: Sequence[str], *, single: bool) -> None:
    """Refuse band names of the user that contradict the names in a file, because bands could be mixed up unnoticed.

    Args:
        raster: Description of the file.
        given: Names that the user gave to its bands.
        single: True if all files of the scene have one band. If so, a band's name may also come from the file's name.

    Raises:
        ConfigError: The file gives a band another name.
    """
    own = [band.description for band in raster.bands]
    if single and own == [""]:
        found = stated_band(raster.path)
        own = [found or ""]
    if any(stated and matching(stated, [name]) is None for stated, name in zip(own, given, strict=True)):
        raise ConfigError(
            f"--bands names {', '.join(shown(name, 30) for name in given[:20])}, and {raster.path} names its bands "
            f"{', '.join(shown(name or '?', 30) for name in own[:20])}. "
            "Leave --bands out: only files without names need it."
        )


def _require_type(raster: Raster, place: int, needs: SceneNeeds) -> None:
    """Raise a DataError if a band's stored values have another type than those that the student was trained on.

    Args:
        raster: Description of the file.
        place: Position of the band in the file, from 0.
        needs: Requirements of the students.
    """
    dtype = raster.bands[place].dtype
    if dtype != needs.dtype:
        raise DataError(
            f"{raster.path} has values of type {dtype}, and the student was trained on {needs.dtype}: the numbers mean "
            f"something else. Give the scene with its original numbers (gdal_translate -ot changes a type)."
        )
