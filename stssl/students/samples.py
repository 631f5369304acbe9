"""Write a few patches of a run, and places of its training patches, beside its student's weights file.

`stssl export` compares exported files with the student on these patches, and draws the places on a map.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray
from stssl.base.errors import RunError, first_line
from stssl.base.whole_files import open_plain, write_whole

SAMPLES_FILE = "samples.npz"
SAMPLES = 8
"""Number of patches to keep."""
MOST_PLACES = 2000
"""Largest number of places of training patches to keep."""
REWRITE = "Remove done.json of the run and give the run's command again: it writes the file anew, without training."
"""What to do if the file is missing or damaged."""


@dataclass(frozen=True)
class Samples:
    """Hold a few validation patches of a run, and places of its training patches.

    Attributes:
        images: [n, bands, H, W] stored values.
        metadata: [n, 4] metadata of these patches with the columns of `MetadataColumn`; NaN for missing values.
        places: [m, 2] latitude and longitude of training patches in degrees.
    """

    images: AnyArray
    metadata: NDArray[np.float32]
    places: NDArray[np.float32]


def write_samples(path: Path, samples: Samples) -> None:
    """Write the patches and places in `samples` into the `.npz` file `path`.

    Raises:
        RunError: The file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=samples.images, metadata=samples.metadata, places=samples.places)
    write_whole(path, buffer.getbuffer())


def read_samples(path: Path) -> Samples:
    """Read the `.npz` file `path` that `write_samples` wrote, and return its patches and places.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with open_plain(path) as file, np.load(file, allow_pickle=False) as arrays:
            images, metadata, places = (arrays[name] for name in ("images", "metadata", "places"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or first_line(error)}. {REWRITE}") from None
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}. {REWRITE}") from None
    fits = images.ndim == 4 and metadata.shape == (len(images), 4) and places.ndim == 2 and places.shape[1] == 2
    if not fits or images.dtype.kind not in "uf" or not len(images):
        raise RunError(f"{path} is damaged: it has no patches. {REWRITE}")
    return Samples(images, metadata.astype(np.float32), places.astype(np.float32))
