"""Recognize how the files of a sharded Zarr array are laid out, by its `zarr.json`.

The fast reader (`shards`) knows only the layout of `stssl convert`: one patch in a chunk, the index at the end of a
shard, Blosc or no codec, then crc32c.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stssl.store.encode import SHARD_CHECKSUMS

MOST_PIXELS, MOST_PATCHES = 2**28, 2**28
"""Largest number of values in a patch, and of patches in an array. A damaged description must not fill the memory."""

ZarrTree = Mapping[str, Any]
"""Contents of a `zarr.json`. `rules` checks the type of each value before other code uses it."""


@dataclass(frozen=True)
class Layout:
    """Describe how the files of one pixel array are laid out, for the reader that reads them directly.

    Attributes:
        shape: Shape of the array: patches, bands, height, width.
        shard: Number of patches in a shard (a file of many patches).
        dtype: Type of the values.
        blosc: True if patches are Blosc frames, False if they are uncompressed.
        fill: Value of all pixels of a patch that the shard file leaves out.
    """

    shape: tuple[int, ...]
    shard: int
    dtype: np.dtype[np.unsignedinteger]
    blosc: bool
    fill: int
    checked: bool = False
    """True if the crc32c of each patch follows the patch."""
    checksums: tuple[int, ...] = ()
    """Checksum of the end of each shard. Older stores have none."""

    @property
    def patch_bytes(self) -> int:
        """Return the size of one decoded patch in bytes."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize

    @property
    def shards(self) -> int:
        """Return the number of shard files (files of many patches) that the array has."""
        return -(-self.shape[0] // self.shard)


def direct_layout(folder: Path) -> Layout | None:
    """Return how the files of an array in a local folder are laid out.

    Return None if the folder has no readable `zarr.json`, or if the fast reader (`shards`) does not know the layout.

    Args:
        folder: Folder of the array.
    """
    try:
        return known_layout(json.loads((folder / "zarr.json").read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def known_layout(meta: ZarrTree) -> Layout | None:
    """Return how the files of an array are laid out, as its `zarr.json` says.

    Return None if the fast reader (`shards`) does not know the layout.

    Args:
        meta: Contents of the `zarr.json`.
    """
    try:
        (sharding,) = meta["codecs"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        inner = sharding["configuration"]
        codecs = [codec["name"] for codec in inner["codecs"]]
        checked = codecs[-1] == "crc32c"
        codecs = codecs[: len(codecs) - checked]
        endian = inner["codecs"][0].get("configuration", {}).get("endian", "little")
        known = (
            meta["zarr_format"] == 3
            and meta["chunk_grid"]["name"] == "regular"
            and meta["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and not meta.get("storage_transformers")
            and meta["data_type"] in ("uint8", "uint16")
            and sharding["name"] == "sharding_indexed"
            and codecs in (["bytes"], ["bytes", "blosc"])
            and endian == "little"
            and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner["index_codecs"][0]["configuration"] == {"endian": "little"}
            and inner.get("index_location", "end") == "end"
            and inner["chunk_shape"] == [1, *meta["shape"][1:]]
            and outer[1:] == meta["shape"][1:]
            and len(outer) == 4
        )
        if not known:
            return None
        dtype = np.dtype(str(meta["data_type"])).newbyteorder("<")
        sums = tuple(meta.get("attributes", {}).get(SHARD_CHECKSUMS, ())) if checked else ()
        made = Layout(
            tuple(meta["shape"]), outer[0], dtype, codecs[-1] == "blosc", int(meta["fill_value"]), checked, sums
        )
        return made if _is_possible(made) else None
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def _is_possible(layout: Layout) -> bool:
    """Return True if the numbers of a layout, which come from a file, have the right types and are within limits."""
    numbers = (*layout.shape, layout.shard, *layout.checksums)
    return (
        all(type(number) is int for number in numbers)
        and all(0 < number < 2**31 for number in numbers[:5])
        and math.prod(layout.shape[1:]) <= MOST_PIXELS
        and layout.shard <= MOST_PATCHES
        and layout.shards * layout.shard <= MOST_PATCHES
        and (not layout.checksums or len(layout.checksums) == layout.shards)
        and 0 <= layout.fill <= np.iinfo(layout.dtype).max
    )
