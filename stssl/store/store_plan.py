"""Plan the arrays of a store, and arrange the patches of each shard (a file of many patches) as the plan says."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stssl.base.hashing import content_hash
from stssl.base.json_types import JsonObject
from stssl.store.schema import (
    ERRORS,
    NO_SPLIT,
    SPLIT_CODES,
    UNUSABLE,
    Column,
    ColumnArray,
    Patch,
    PixelArray,
    Values,
)

CODECS: dict[str, Literal["lz4", "zstd"] | None] = {"lz4": "lz4", "zstd": "zstd", "none": None}
ColumnArrays = dict[str, ColumnArray]


@dataclass(frozen=True)
class StorePlan:
    """Describe the store that a conversion writes: its arrays, columns and splits.

    Attributes:
        patches: Number of patches, each of which is one row of the store.
        shard: Number of patches in a shard (a file of many patches).
        codec: Name of the compression of pixels, a key of `CODECS`.
        arrays: Descriptions of the pixel arrays of the images. Each patch has pixels in all of them.
        columns: Descriptions of the metadata arrays.
        label_sets: Names of the metadata columns with labels.
        splits: Names of the splits. The column of a split is called `split_NAME`.
        statistics_split: Name of the split whose training patches give the band statistics. If the store has no such
            split, all patches do.
        identity: What is converted, and with which options, without paths, hosts or times. A conversion that resumes
            compares it with the identity in the store.
        maps: Descriptions of pixel arrays without image bands, such as a map of land cover.
        attributes: More attributes for the Zarr group of the store.
    """

    patches: int
    shard: int
    codec: str
    arrays: tuple[PixelArray, ...]
    columns: tuple[Column, ...]
    label_sets: tuple[str, ...]
    splits: tuple[str, ...]
    statistics_split: str
    identity: JsonObject
    maps: tuple[PixelArray, ...] = ()
    attributes: JsonObject = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """Return how many shards (files of many patches) each pixel array of the store will have."""
        return -(-self.patches // self.shard)

    def rows(self, shard: int) -> range:
        """Return the range of the store rows whose patches are in the shard (a file of many patches) `shard`."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.patches))

    def metadata(self, names: Sequence[str], patches: list[Patch], pixels: ColumnArrays) -> ColumnArrays:
        """Return the metadata of a shard's patches: for each column's name, an array with one row for each patch.

        Take unusable patches out of all splits.

        Args:
            names: Names of the patches.
            patches: The n patches, one for each name. A value that a patch lacks gets the column's fill value.
            pixels: Pixels [n, bands, height, width] of all patches, by name of the array. Their hashes become a column.
        """
        columns = {column.name: empty_column(column, len(patches)) for column in self.columns}
        for place, (name, patch) in enumerate(zip(names, patches, strict=True)):
            hashed = content_hash([block[place] for block in pixels.values()])
            made: Values = {"patch_id": name, "valid_bands": patch.valid_bands, "content_hash": hashed}
            for column, value in (patch.values | made | {"error_code": ERRORS[patch.error]}).items():
                columns[column][place] = value
        # Take unusable patches out of all splits: the archives' splits list them too, but training and scoring must not
        # use them.
        for split in self.splits:
            columns[f"split_{split}"][np.isin(columns["error_code"], UNUSABLE)] = NO_SPLIT
        return columns

    def counted(self, columns: ColumnArrays) -> NDArray[np.bool_]:
        """Return a mask [patches] of a shard (a file of many patches): True if a patch counts for the band statistics.

        Those that count are the usable training patches of the split `statistics_split`. If the store has no such
        split, they are all usable patches.

        Args:
            columns: Metadata columns of the shard's patches, by name.
        """
        split = columns.get(f"split_{self.statistics_split}")
        whole = ~np.isin(columns["error_code"], UNUSABLE)
        return whole if split is None else whole & (split == SPLIT_CODES["train"])


def measured_masks(patches: list[Patch], array: PixelArray, counted: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Join the masks of measured pixels of those patches in a shard that count for the band statistics.

    Args:
        patches: The n patches of the shard (a file of many patches).
        array: Pixel array to which the masks belong.
        counted: [n] True for the patches that count for the statistics.

    Returns:
        [counted patches, bands, height, width], True for each pixel that the satellite measured; None if it measured
            all pixels of the shard, or if no patch counts.
    """
    if not any(array.name in patch.measured for patch in patches):
        return None
    whole = np.ones(array.shape, np.bool_)
    kept = [patch for patch, own in zip(patches, counted, strict=True) if own]
    return np.stack([patch.measured.get(array.name, whole) for patch in kept]) if kept else None


def stacked(patches: list[Patch], array: PixelArray) -> NDArray[np.unsignedinteger]:
    """Return the pixels that n patches have for a pixel array, joined into one array [n, bands, height, width].

    A patch without such pixels gets zeros.

    Args:
        patches: The n patches.
        array: Description of the pixel array.
    """
    block = np.zeros((len(patches), *array.shape), array.dtype)
    for place, patch in enumerate(patches):
        if array.name in patch.arrays:
            block[place] = patch.arrays[array.name]
    return block


def empty_column(column: Column, rows: int) -> ColumnArray:
    """Return an array of values of a metadata column for `rows` patches, all of them missing (the fill value).

    Args:
        column: Description of the column.
        rows: Number of patches.
    """
    dtype: Any = object if column.dtype == "string" else column.dtype
    return np.full((rows, column.width) if column.width else rows, column.fill, dtype=dtype)
