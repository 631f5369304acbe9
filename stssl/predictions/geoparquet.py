"""Write tables of patches as Parquet. If patches have places, write GeoParquet 1.1, which mapping programs show.

Geometries are longitudes and latitudes (OGC:CRS84), written as WKB. If the corners are known for all patches that have
a place, the geometries are the outlines of the patches, else their centers.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from stssl.archives.grids import Doubles, footprint
from stssl.base.errors import RunError
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import write_whole
from stssl.store.schema import ColumnArray

GEOMETRY = "geometry"
NOTES = "stssl"
"""Key of the file's metadata that says where the table comes from."""
GROUP_ROWS = 50_000
"""Number of rows in a row group of a Parquet file."""


def outlines(columns: Mapping[str, ColumnArray], ground: float, pixels: int) -> Doubles:
    """Compute the outlines of n patches from the metadata columns that say where they lie.

    Leave out outlines that cross the meridian of 180 degrees: on a map, they would span the whole Earth.

    Args:
        columns: Metadata columns of the n patches, by name.
        ground: Width of a patch in meters, for columns `utm_epsg`, `ulx` and `uly`; 0 if unknown.
        pixels: Width of a patch in pixels, for columns `crs`, `corner_x` and so on.

    Returns:
        [n, 5, 2] longitudes and latitudes of the corners, counterclockwise, the first one again at the end; NaN where
            unknown or left out.
    """
    count = len(columns["lat"])
    out = np.full((count, 5, 2), np.nan)
    if "crs" in columns:
        names = [str(name) for name in columns["crs"]]
        left, top = columns["corner_x"].astype(float), columns["corner_y"].astype(float)
        width, height = columns["pixel_width"] * pixels, columns["pixel_height"] * pixels
    elif "utm_epsg" in columns and ground:
        names = [f"EPSG:{code}" if code else "" for code in columns["utm_epsg"]]
        left, top = columns["ulx"].astype(float), columns["uly"].astype(float)
        width = height = np.full(count, ground)
    else:
        return out
    for crs in sorted(set(names) - {""}):
        rows = np.flatnonzero([name == crs for name in names] & np.isfinite(left + top + width + height))
        xs = left[rows, None] + width[rows, None] * np.array([0, 0, 1, 1, 0])
        ys = top[rows, None] - height[rows, None] * np.array([0, 1, 1, 0, 0])
        lon, lat = footprint(crs, xs.reshape(-1).tolist(), ys.reshape(-1).tolist())
        out[rows] = np.stack([lon, lat], 1).reshape(len(rows), 5, 2)
    # Leave out outlines that cross the meridian of 180 degrees: on a map, they would span the whole Earth.
    out[np.ptp(out[:, :, 0], axis=1) > 180] = np.nan
    return out


def point_bytes(place: Sequence[float]) -> bytes:
    """Return a point as WKB bytes, little endian.

    Args:
        place: Longitude and latitude of the point.
    """
    return struct.pack("<BI2d", 1, 1, *place)


def polygon_bytes(ring: Doubles) -> bytes:
    """Return a polygon with one ring as WKB bytes, little endian.

    Args:
        ring: [n, 2] longitudes and latitudes of the ring's n points. The last point is the first one again.
    """
    return struct.pack("<BIII", 1, 3, 1, len(ring)) + ring.astype("<f8").tobytes()


def write_places_table(path: Path, table: pyarrow.Table, centers: Doubles, rings: Doubles, about: JsonObject) -> None:
    """Write a table of n patches as Parquet. If a patch has a place, add geometries, which make it a GeoParquet file.

    Args:
        path: File to write.
        table: Table with one row for each patch.
        centers: [n, 2] longitudes and latitudes of the patches' centers; NaN where unknown.
        rings: [n, 5, 2] longitudes and latitudes of the patches' outlines; NaN where unknown.
        about: What made the table, and from what: the entry `stssl` of the file's metadata.

    Raises:
        RunError: The file cannot be written.
    """
    placed = np.asarray(np.isfinite(centers).all(1))
    notes: dict[str, str] = {NOTES: json.dumps(about)}
    if placed.any():
        outlined = bool(np.isfinite(rings[placed]).all())
        shapes = [
            (polygon_bytes(ring) if outlined else point_bytes(center)) if there else None
            for center, ring, there in zip(centers, rings, placed, strict=True)
        ]
        table = table.add_column(1, GEOMETRY, pyarrow.array(shapes, pyarrow.binary()))
        points = rings[placed].reshape(-1, 2) if outlined else centers[placed]
        notes["geo"] = json.dumps(_geo("Polygon" if outlined else "Point", points))
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **notes})
    try:
        write_whole(
            path, lambda file: pyarrow.parquet.write_table(table, file, row_group_size=GROUP_ROWS, compression="zstd")
        )
    except pyarrow.ArrowException as error:
        raise RunError(f"cannot write {path}: {error}") from None


def _geo(kind: str, points: Doubles) -> JsonObject:
    """Return the entry `geo` of a GeoParquet file's metadata: type and bounding box of the geometries.

    Args:
        kind: Type of all geometries, `Polygon` or `Point`.
        points: [points, 2] longitudes and latitudes of all points of the geometries, none of them NaN.
    """
    box = [*points.min(0).tolist(), *points.max(0).tolist()]
    column: JsonObject = {"encoding": "WKB", "geometry_types": [kind], "bbox": box, "orientation": "counterclockwise"}
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
