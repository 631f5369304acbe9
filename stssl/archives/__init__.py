"""Read data sets as their makers publish them ("archives"), and convert them to stores (Zarr groups for training).

Each archive format, such as `eurosat`, has a class. The class lists the patches of an archive and reads them one by
one. `formats` lists all formats, and `conversion` writes the store. A new format needs a class in a module of this
folder and one line in `formats`: the command line takes the format's options from the class, and the conformance test
tries the class. `synthetic` writes made-up archives for trials without real data.

This package imports `FORMATS` at once. It imports each other name below at its first use, since these names need
rasterio and pyarrow.
"""

from typing import TYPE_CHECKING

from stssl.archives.formats import FORMATS
from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.archives.base import Archive, ArchiveFormat, Example, ExamplePatch, Option
    from stssl.archives.conversion import Options, Summary, convert_archive, open_archive, verify_store
    from stssl.archives.registry import ARCHIVES
    from stssl.archives.synthetic import synthesize_archive

__all__ = [
    "ARCHIVES",
    "FORMATS",
    "Archive",
    "ArchiveFormat",
    "Example",
    "ExamplePatch",
    "Option",
    "Options",
    "Summary",
    "convert_archive",
    "open_archive",
    "synthesize_archive",
    "verify_store",
]

_MODULES = {
    "base": ("Archive", "ArchiveFormat", "Example", "ExamplePatch", "Option"),
    "conversion": ("Options", "Summary", "convert_archive", "open_archive", "verify_store"),
    "registry": ("ARCHIVES",),
    "synthetic": ("synthesize_archive",),
}

__getattr__ = lazy_names(__name__, _MODULES)
