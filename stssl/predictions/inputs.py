"""Find out what a user's input is (a store, a table or folder of images, a scene to cut into windows), and open it."""

from collections.abc import Sequence
from pathlib import Path

from stssl.archives.manifest import Manifest
from stssl.archives.safe_product import is_safe
from stssl.archives.scene_files import describe_file
from stssl.archives.scenes import Scenes
from stssl.archives.tables import IMAGES
from stssl.base.errors import ConfigError, DataError, shown
from stssl.base.paths import is_url, store_given
from stssl.predictions.patches import ArchivePatches, PatchSource, StorePatches
from stssl.predictions.preparation import side_of
from stssl.store.store import Store
from stssl.students.description import ModelDescription

TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".gz", ".bz2")
"""Endings of tables that list images."""


def open_patches(
    inputs: Sequence[str | Path],
    model: ModelDescription,
    bands: Sequence[str] = (),
    *,
    wanted: Sequence[str],
    stride: int | None = None,
) -> PatchSource:
    """Open the inputs of a command as a source of patches for a model, and return it.

    Args:
        inputs: Paths of a store (which may be a URL), a table that lists images, a folder or a pattern of images, or
            images. If the first image is georeferenced and larger than the model's patches, the images are scenes,
            which are cut into windows. So is a `.SAFE` folder.
        model: Description of the model, which says how large windows of scenes must be.
        bands: Names of the images' bands in their sequence; empty to read them from the images. A store must have none.
        wanted: Names of the bands that the model needs.
        stride: Distance of the windows of a scene in pixels; None for windows side by side.

    Raises:
        ConfigError: The options do not fit the input.
        DataError: The input does not exist, or cannot be read.
    """
    place = ", ".join(str(one) for one in inputs[:3]) + (", ..." if len(inputs) > 3 else "")
    names = ",".join(bands) or None
    first = str(inputs[0])
    if len(inputs) == 1 and is_store(first):
        if bands:
            raise ConfigError("a store names its bands itself: leave --bands out.")
        return StorePatches(Store.open(store_given(first, "INPUT")), wanted)
    stores = [one for one in inputs if is_store(str(one)) and not is_url(str(one))]
    if stores:
        raise ConfigError(f"{stores[0]} is a store. Give one store alone, or images alone.")
    if is_url(first):
        raise ConfigError(f"{shown(first, 200)}: only stores may be URLs. Copy the images to this machine.")
    paths = [Path(one).absolute() for one in inputs]
    if any(map(is_safe, paths)):
        scenes = Scenes(*paths, size=side_of(model), stride=stride, band_names=names, keep_bands=",".join(wanted))
        return _of_scenes(scenes, place, model)
    if len(paths) == 1 and not (paths[0].is_file() and paths[0].suffix.lower() in IMAGES):
        if paths[0].is_file() and paths[0].suffix.lower() not in TABLE_ENDINGS:
            raise DataError(
                f"{paths[0]} is neither an image, nor a table of images ({', '.join(TABLE_ENDINGS)}), nor a store."
            )
        return _of_images(Manifest(paths[0], band_names=names), place)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"there is no image {shown(str(missing[0]), 300)}.")
    side = side_of(model)
    if _is_scene(paths[0], side):
        return _of_scenes(Scenes(*paths, size=side, stride=stride, band_names=names), place, model)
    return _of_images(Manifest.listed(paths, names), place)


def _of_scenes(scenes: Scenes, place: str, model: ModelDescription) -> ArchivePatches:
    """Return the windows of scenes as a source of patches. If the model sees dates, add a remark on each undated scene.

    Args:
        scenes: The scenes, cut into windows.
        place: The input as the user wrote it, for messages.
        model: Description of the model.
    """
    advice = "Put it into the name of the file or folder"
    notes = [
        f"{name}: its name has no date (such as 20230614), which the model sees. {advice}."
        for name in (scenes.undated if model.network.role == "direct" else ())
    ]
    return ArchivePatches(scenes, place, scenes.files, [*scenes.remarks, *notes])


def _of_images(images: Manifest, place: str) -> ArchivePatches:
    """Return the images of a table, folder or list as a source of patches.

    Args:
        images: Archive of these images.
        place: The input as the user wrote it, for messages.
    """
    return ArchivePatches(images, place, images.files, images.notes)


def _is_scene(path: Path, side: int) -> bool:
    """Return True if an image is georeferenced and its longer side exceeds the model's patches.

    Args:
        path: File of the image.
        side: Width of the model's patches in pixels.
    """
    try:
        band = describe_file(path)[0]
    except DataError:
        return False
    return max(band.height, band.width) > side


def is_store(place: str) -> bool:
    """Return True if a user's input counts as a store: any URL, or a folder with a `zarr.json` or the ending `.zarr`.

    Args:
        place: Path or URL of the input.
    """
    path = Path(place)
    return is_url(place) or (path.is_dir() and ((path / "zarr.json").exists() or path.suffix == ".zarr"))
