"""Plan the contents of a store, and arrange the patches of a shard as the plan says: pixel arrays and columns."""

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
        patches: Number of rows.
        shard: Number of patches in a shard.
        codec: A key of `CODECS`.
        arrays: Pixel arrays. Together they make up a patch.
        columns: Metadata arrays.
        label_sets: Names of the columns with labels.
        splits: Names of the splits. The column of a split is called `split_<name>`.
        statistics_split: Name of a split. Its training part gives the band statistics. If the store has no such split,
            all patches do.
        identity: Source of the conversion, without paths, hosts or times.
        maps: Arrays with the same rows that are no image bands.
        attributes: More attributes for the group.
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
        """Return the number of shards that the store will have."""
        return -(-self.patches // self.shard)

    def rows(self, shard: int) -> range:
        """Return which rows of the store a shard (a file of many patches) has."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.patches))

    def metadata(self, names: Sequence[str], patches: list[Patch], pixels: ColumnArrays) -> ColumnArrays:
        """Arrange the metadata of a shard's patches as columns: one array for each name, with one row for each patch.

        Args:
            names: Names of the patches.
            patches: The patches, one for each name.
            pixels: Pixels of all patches, by name of the array, for their hashes.
        """
        columns = {column.name: empty_column(column, len(patches)) for column in self.columns}
        for place, (name, patch) in enumerate(zip(names, patches, strict=True)):
            hashed = content_hash([block[place] for block in pixels.values()])
            made: Values = {"patch_id": name, "valid_bands": patch.valid_bands, "content_hash": hashed}
            for column, value in (patch.values | made | {"error_code": ERRORS[patch.error]}).items():
                columns[column][place] = value
        # The archives' splits list bad patches too. No training or scoring may use these.
        for split in self.splits:
            columns[f"split_{split}"][np.isin(columns["error_code"], UNUSABLE)] = NO_SPLIT
        return columns

    def counted(self, columns: ColumnArrays) -> NDArray[np.bool_]:
        """Return True for each patch that counts for the band statistics: the usable training patches.

        Without a split, all usable patches count for the statistics.
        """
        split = columns.get(f"split_{self.statistics_split}")
        whole = ~np.isin(columns["error_code"], UNUSABLE)
        return whole if split is None else whole & (split == SPLIT_CODES["train"])


def measured_masks(patches: list[Patch], array: PixelArray, counted: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Join the masks of the patches that count for band statistics: True for each pixel that the satellite measured.

    Args:
        patches: The n patches of a shard.
        array: Pixel array of the masks.
        counted: [n] True for the patches that count for statistics.

    Returns:
        [counted patches, bands, height, width]; None if all pixels are measured.
    """
    if not any(array.name in patch.measured for patch in patches):
        return None
    whole = np.ones(array.shape, np.bool_)
    kept = [patch for patch, own in zip(patches, counted, strict=True) if own]
    return np.stack([patch.measured.get(array.name, whole) for patch in kept]) if kept else None


def stacked(patches: list[Patch], array: PixelArray) -> NDArray[np.unsignedinteger]:
    """Join the pixels of n patches into one array [n, bands, height, width]. A patch without pixels gets zeros."""
    block = np.zeros((len(patches), *array.shape), array.dtype)
    for place, patch in enumerate(patches):
        if array.name in patch.arrays:
            block[place] = patch.arrays[array.name]
    return block


def empty_column(column: Column, rows: int) -> ColumnArray:
    """Make a metadata column of `rows` rows, in which each value is missing (it has the fill value)."""
    dtype: Any = object if column.dtype == "string" else column.dtype
    return np.full((rows, column.width) if column.width else rows, column.fill, dtype=dtype)
