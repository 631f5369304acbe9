"""Define the layout of a store: one Zarr v3 group for a data set of N patches, at native resolution.

Pixel arrays are [N, bands, height, width]. A chunk has one patch, and a shard has `SHARD` patches. Metadata arrays have
N rows, all in one chunk. A conversion never removes rows: an unreadable patch keeps its row, with an error code and
with the code `NO_SPLIT` in all splits.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray
from stssl.base.json_types import JsonMapping, JsonObject

Value = str | int | float | bool | np.generic | AnyArray
"""Value of one patch in one column."""
Values = dict[str, Value]
"""Values of a patch, by name of the column."""

ColumnArray = NDArray[Any]
"""Values of a column, [N] or [N, width]. Their type depends on the name of the column."""

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
    "foreign": 12,
    "bad_time": 13,
    "bad_split": 14,
    "bad_map": 15,
}
"""Codes of the column `error_code`, by name. 0 is a whole patch. `foreign` is a patch of another archive format."""

USABLE = frozenset({"ok", "bad_coordinates", "no_label", "bad_time", "bad_split", "bad_map"})
"""Names of the codes for patches that lack a value or a map. Training can use them without it."""
UNUSABLE = tuple(code for name, code in ERRORS.items() if name not in USABLE)
"""Codes of patches that no split may use. They have no pixels, or their pixels or labels may be wrong."""


@dataclass(frozen=True)
class PixelArray:
    """Describe one pixel array that a conversion will write to a store. It has all bands of one resolution.

    Attributes:
        name: `b10`, `b20`, `b60` or `rgb`; other names for maps.
        bands: Names of the bands, sorted as in the array.
        height: Height in pixels.
        width: Width in pixels.
        dtype: `uint16` or `uint8`.
        gsd_m: Ground sampling distance in meters; 0 if unknown.
        nodata: Value that means "not measured"; None if there is none. Statistics leave it out.
        long_name: Meaning of the values; empty for reflectance or brightness.
    """

    name: str
    bands: tuple[str, ...]
    height: int
    width: int
    dtype: str
    gsd_m: float
    nodata: int | None = None
    long_name: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of one patch: (bands, height, width)."""
        return (len(self.bands), self.height, self.width)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Return the names of the array's four dimensions, such as `patch`, `band_10m`, `y_10m` and `x_10m`.

        The last three differ between resolutions, because xarray wants dimensions of the same name to have the same
        size.
        """
        grid = {"b10": "10m", "b20": "20m", "b60": "60m"}.get(self.name, self.name)
        return ("patch", f"band_{grid}", f"y_{grid}", f"x_{grid}")

    @property
    def attributes(self) -> JsonObject:
        """Return the Zarr attributes of the pixel array, except band statistics: the end of a conversion adds these."""
        about: JsonObject = {"bands": list(self.bands), "gsd_m": self.gsd_m}
        reflectance = self.dtype == "uint16"
        about["long_name"] = self.long_name or ("surface reflectance" if reflectance else "brightness")
        about["units"] = "1e-4" if reflectance and not self.long_name else "1"
        return about if self.nodata is None else about | {"nodata": self.nodata}


@dataclass(frozen=True)
class Column:
    """Describe one metadata array (a column) of a store, which has a row for each patch.

    Attributes:
        name: Name of the array.
        dtype: NumPy's name of the type, or `string`.
        fill: Value that stands for a missing value.
        attributes: Zarr attributes of the array: units, class names, meanings of codes.
        width: Number of values for each patch, the size of the second dimension. 0 means one value, and no second
            dimension.
    """

    name: str
    dtype: str
    fill: str | int | float | bool
    attributes: JsonMapping = field(default_factory=dict)
    width: int = 0


class BadPatchError(Exception):
    """Report that a patch of the archive is damaged or incomplete, by an error code and in words."""

    def __init__(self, code: str, words: str) -> None:
        """Set the error code and the words that the error report shows.

        Args:
            code: Name of the error code: a key of `ERRORS`.
            words: What is wrong, without paths of this machine.
        """
        super().__init__(words)
        self.code = code


@dataclass
class Patch:
    """Hold the pixels, the metadata and the problems of one patch of an archive, before they go into the store.

    Attributes:
        arrays: Pixels [bands, height, width] by name of the pixel array; empty if the patch has no pixels.
        values: Metadata by name of the column. A missing column gets its fill value in the store.
        valid_bands: Bits: bit i is set if the i-th band, counted through all arrays, has pixels.
        measured: [bands, height, width] booleans by name of the array: False for pixels that are not measured. An
            array without such pixels is left out.
        problems: All problems, each as (name of the error code, words).
    """

    arrays: dict[str, AnyArray] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    valid_bands: int = 0
    measured: dict[str, AnyArray] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def complain(self, problem: BadPatchError) -> None:
        """Add an error to the list of the patch's problems. The patch still gets its row in the store."""
        self.problems.append((problem.code, printable(str(problem))))

    @property
    def error(self) -> str:
        """Return the name of the patch's error code, a key of `ERRORS`.

        It is that of the first problem that makes the patch unusable. If none does, it is that of the first problem. A
        patch without problems has `ok`.
        """
        names = [name for name, _ in self.problems]
        return next((name for name in names if name not in USABLE), names[0] if names else "ok")


def printable(words: str, most: int = 500) -> str:
    """Return a text from a foreign file with its control characters escaped: terminals can then show it safely.

    Args:
        words: The text.
        most: Largest number of characters of the text that are kept. Three dots replace the others.
    """
    # An escape sequence in the name of a file could change what a terminal shows.
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in words[:most])
    return shown if len(words) <= most else f"{shown}..."


def label_columns(name: str, classes: tuple[str, ...], multilabel: bool) -> Column:
    """Return the description of the column that a label set gets in a store. Its attributes hold the class names.

    Args:
        name: Name of the column.
        classes: Class names, sorted as in the column.
        multilabel: True if a patch may have any number of classes, False if it has one.
    """
    if multilabel:
        attributes: JsonObject = {"kind": "multi-label", "classes": [*classes], "unknown": UNKNOWN_LABEL}
        return Column(name, "uint8", UNKNOWN_LABEL, attributes, width=len(classes))
    return Column(name, "int16", -1, {"kind": "single-label", "classes": [*classes], "unknown": -1})


def split_column(name: str) -> Column:
    """Return the description of a split's column, which says train, validation or test for each patch, as a code.

    Args:
        name: Name of the split. The column is called `split_NAME`.
    """
    meanings = " ".join([*SPLIT_CODES, "none"])
    attributes: JsonObject = {"flag_values": [*SPLIT_CODES.values(), NO_SPLIT], "flag_meanings": meanings}
    return Column(f"split_{name}", "uint8", NO_SPLIT, attributes)


COMMON = (
    Column("patch_id", "string", ""),
    Column("lat", "float64", float("nan"), {"units": "degrees_north", "long_name": "latitude of the center, WGS 84"}),
    Column("lon", "float64", float("nan"), {"units": "degrees_east", "long_name": "longitude of the center, WGS 84"}),
    Column(
        "time",
        "int64",
        MISSING_TIME,
        {
            "long_name": "acquisition, UTC",
            "standard_name": "time",
            "units": "seconds since 1970-01-01",
            "calendar": "proleptic_gregorian",
            "_FillValue": MISSING_TIME,
        },
    ),
    Column("day_of_year", "int16", MISSING_DAY, {"long_name": "1 January is 1", "missing": MISSING_DAY}),
    Column("location_id", "int32", -1, {"long_name": "patches of one place share a number", "missing": -1}),
    Column("valid_bands", "uint16", 0, {"long_name": "bit i is set where the i-th band of all arrays has pixels"}),
    Column("content_hash", "uint8", 0, {"long_name": "BLAKE2b, 16 bytes, over the pixel arrays in order"}, width=16),
    Column("error_code", "uint8", 0, {"meanings": {**ERRORS}}),
)
"""Columns that every store has."""

GEOREFERENCE = (
    Column("utm_epsg", "int32", 0, {"long_name": "EPSG code of the patch's grid", "missing": 0}),
    Column("ulx", "float64", float("nan"), {"units": "m", "long_name": "easting of the upper left corner"}),
    Column("uly", "float64", float("nan"), {"units": "m", "long_name": "northing of the upper left corner"}),
)
"""Columns of georeferenced images. Patches with equal values show the same place on several dates."""

GRID = (
    Column("crs", "string", "", {"long_name": "coordinate system of the patch's grid, as EPSG:CODE or WKT"}),
    Column("corner_x", "float64", float("nan"), {"long_name": "left edge in units of crs"}),
    Column("corner_y", "float64", float("nan"), {"long_name": "upper edge in units of crs"}),
    Column("pixel_width", "float64", float("nan"), {"long_name": "width of a pixel in units of crs"}),
    Column("pixel_height", "float64", float("nan"), {"long_name": "height of a pixel in units of crs"}),
)
"""Columns of images in any coordinate system. With them, what is predicted for a patch can go back on a map."""

REGION = (
    Column("country", "string", ""),
    Column("season", "string", "", {"long_name": "meteorological season of the date, northern hemisphere"}),
)
CONDITIONS = (Column("seasonal_snow", "bool", False), Column("cloud_or_shadow", "bool", False))
"""Columns of BigEarthNet. Its authors recommend to leave out patches with snow, cloud or shadow."""
