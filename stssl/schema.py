"""The store's layout: what a converted archive looks like as a Zarr v3 group.

One group a data set, native resolution. Pixel arrays are (N, bands, height, width) with one patch a chunk and
`SHARD` patches a shard; metadata arrays are over (N), one chunk each. Rows are never removed: an unreadable patch
keeps its row, an error code, and the split code `NO_SPLIT`.
"""

from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
SHARD = 512
NO_SPLIT = 255
MISSING_TIME = -(2**63)
MISSING_DAY = -1
UNKNOWN_LABEL = 255
SPLIT_CODES = {"train": 0, "validation": 1, "test": 2}

ERRORS = {
    "ok": 0,
    "missing_band": 1,
    "unreadable": 2,
    "wrong_size": 3,
    "duplicate": 4,
    "no_pixels": 5,
    "no_metadata": 6,
    "nodata": 7,
    "bad_coordinates": 8,
    "unknown_label": 9,
    "no_label": 10,
    "bad_metadata": 11,
}
"""Names of the codes in `error_code`; 0 is a whole patch."""

USABLE = frozenset({"ok", "bad_coordinates", "no_label"})
UNUSABLE = tuple(code for name, code in ERRORS.items() if name not in USABLE)
"""Codes of patches that take no part in any split: without pixels, or with pixels or labels that may be wrong."""


@dataclass(frozen=True)
class PixelArray:
    """One array of pixels: all bands of one resolution.

    Attributes:
        name: `b10`, `b20`, `b60` or `rgb`.
        bands: Names in stored order.
        height: Pixels.
        width: Pixels.
        dtype: `uint16` or `uint8`.
        gsd_m: Ground sampling distance in metres; 0 where unknown.
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    dtype: str
    gsd_m: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return (len(self.bands), self.height, self.width)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names that differ between resolutions, since xarray gives equal names equal sizes."""
        return ("patch", f"band_{self.name}", f"y_{self.name}", f"x_{self.name}")


@dataclass(frozen=True)
class Column:
    """One metadata array over the patches.

    Attributes:
        name: Of the array.
        dtype: NumPy's name, or `string`.
        fill: What stands for a missing value.
        attributes: Written beside it: units, class names, meanings of codes.
    """

    name: str
    dtype: str
    fill: Any
    attributes: dict[str, Any] = field(default_factory=dict)
    width: int = 0


def label_columns(name: str, classes: tuple[str, ...], multilabel: bool) -> Column:
    """The column of a label set, with class names in its attributes."""
    if multilabel:
        attributes = {"kind": "multi-label", "classes": list(classes), "unknown": UNKNOWN_LABEL}
        return Column(name, "uint8", UNKNOWN_LABEL, attributes, width=len(classes))
    return Column(name, "int16", -1, {"kind": "single-label", "classes": list(classes), "unknown": -1})


def split_column(name: str) -> Column:
    """The column of a stored split."""
    attributes = {"flag_values": [*SPLIT_CODES.values(), NO_SPLIT], "flag_meanings": " ".join([*SPLIT_CODES, "none"])}
    return Column(f"split_{name}", "uint8", NO_SPLIT, attributes)


COMMON = (
    Column("patch_id", "string", ""),
    Column("lat", "float64", float("nan"), {"units": "degrees_north", "long_name": "latitude of the centre, WGS 84"}),
    Column("lon", "float64", float("nan"), {"units": "degrees_east", "long_name": "longitude of the centre, WGS 84"}),
    Column(
        "time",
        "int64",
        MISSING_TIME,
        {"long_name": "acquisition, UTC", "unit_of_count": "seconds since 1970-01-01", "missing": str(MISSING_TIME)},
    ),
    Column("day_of_year", "int16", MISSING_DAY, {"long_name": "1 January is 1", "missing": MISSING_DAY}),
    Column("location_id", "int32", -1, {"long_name": "patches of one place share a number", "missing": -1}),
    Column("valid_bands", "uint16", 0, {"long_name": "bit i is set where the i-th band of all arrays has pixels"}),
    Column("content_hash", "uint8", 0, {"long_name": "BLAKE2b-128 of the pixel arrays in order"}, width=16),
    Column("error_code", "uint8", 0, {"meanings": ERRORS}),
)
"""Columns that every store has."""
