"""Import the classes of all archive formats in `formats.FORMATS`."""

from importlib import import_module

from stssl.archives.base import ArchiveFormat
from stssl.archives.formats import FORMATS


def import_format(place: str) -> ArchiveFormat:
    """Import the class of an archive format, and return it.

    Args:
        place: Module in this folder and name of the class in it, such as `bigearthnet:BigEarthNet1`.
    """
    module, _, name = place.partition(":")
    found: ArchiveFormat = getattr(import_module(f"stssl.archives.{module}"), name)
    return found


ARCHIVES: dict[str, ArchiveFormat] = {name: import_format(place) for name, place in FORMATS.items()}
"""Name and class of each format."""
