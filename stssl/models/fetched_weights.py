"""Download the weights that a run exported to an object store, and the run's files that describe them."""

from pathlib import Path

from stssl.base.errors import ConfigError
from stssl.base.mirror import mirror_of
from stssl.base.paths import bucket_folder
from stssl.models.sealed import EXPORTS

_BESIDE = ("recipe.yaml", "record.json", "done.json")
"""Files of a run that commands read together with its weights."""


def fetched_weights(url: str) -> Path:
    """Download the exported weights of a run from an object store to a local folder of this process.

    Args:
        url: URL of a run's folder, of its folder of checkpoints, or of a weights file in it.

    Returns:
        The local folder, which has the layout of a run's folder. If the URL names a file: local path of that file.

    Raises:
        ConfigError: The URL is not one of an object store, or there are no weights below it.
        DataError: The object store cannot be read.
    """
    place = run_of_weights(url)
    inside = next((name for name in EXPORTS if url.rstrip("/").endswith(f"/{name}")), "")
    mirror = mirror_of(place)
    folders = ("checkpoints/", "")
    found = mirror.pull(lambda name: name in _BESIDE or name.startswith("evaluation/") or _is_export(name, folders))
    weights = [name for name in found if _is_export(name, folders)]
    if not weights or (inside and not any(name.endswith(inside) for name in weights)):
        raise ConfigError(
            f"{url} has no {inside or ' or '.join(EXPORTS)}: it is no run's folder, or the run is not finished. The "
            "command that started a run finishes it."
        )
    if not inside:
        return mirror.folder
    return mirror.folder / next(name for name in weights if name.endswith(inside))


def run_of_weights(url: str) -> str:
    """Return the URL of a run's folder, given the URL of this folder or of a place in it that has weights.

    Args:
        url: URL of a run's folder, of its folder of checkpoints, or of a weights file in it.

    Raises:
        ConfigError: The URL is not one of an object store.
    """
    try:
        place = bucket_folder(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name in (*EXPORTS, "checkpoints"):
        place = place.removesuffix(f"/{name}")
    return place


def _is_export(name: str, folders: tuple[str, ...]) -> bool:
    return any(name == folder + file for folder in folders for file in (*EXPORTS, "samples.npz"))
