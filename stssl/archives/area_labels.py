"""Measure which share of a patch each class covers, from polygons or from a raster of class indexes.

Polygons are read from GeoJSON and GeoPackage by pyogrio and shapely (extra `polygons`), and rasters from GeoTIFF. A
file is refused if its first bytes are those of another format, since some formats make GDAL read any other file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds

from stssl.archives.grids import ImageGrid, system_of
from stssl.archives.images import IMAGE_SETTINGS
from stssl.archives.label_cells import is_missing
from stssl.archives.raster_files import SCENE_DRIVERS, scene_driver
from stssl.archives.scene_files import open_scene_file
from stssl.archives.tables import ABOUT, choose_columns
from stssl.base.errors import ConfigError, DataError, first_line, shown
from stssl.base.whole_files import open_plain

if TYPE_CHECKING:
    import shapely

Shares = NDArray[np.float64]
MOST_CLASSES = 256
"""Largest number of classes in a raster or in polygons."""
LONGEST_EDGE = 0.01
"""Longest straight edge of a polygon in degrees: longer edges are divided before they are projected."""
_GEOPACKAGE = b"SQLite format 3\0"


class AreaLabels(Protocol):
    """Define the methods that a map of classes (polygons or a raster) must have, to measure the classes in a patch.

    Attributes:
        classes: Names of the classes.
        notes: Remarks for the user, one line each, such as the number of shapes that are left out.
    """

    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def touches(self, grid: ImageGrid, height: int, width: int) -> bool:
        """Return True if this map of classes and an image may overlap. Only the rectangles around both are compared.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the image.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        ...

    def shares(self, grid: ImageGrid, side: int) -> Shares:
        """Measure which share of the area of a patch each class covers.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the patch.
            side: Width and height of the patch in pixels.

        Returns:
            Shares [classes] from 0 to 1, in the sequence of `classes`.
        """
        ...


def open_labels(path: Path, attribute: str | None, classes: str | None) -> AreaLabels:
    """Open a map of classes (polygons or a raster), and return an object that measures which classes cover a patch.

    Args:
        path: GeoJSON, GeoPackage or GeoTIFF file.
        attribute: Attribute of the polygons that holds the class name; None chooses one with a usual name, such as
            `label`. For a raster, it must be None.
        classes: Names of a raster's class indexes, such as `1=forest,2=water`; None takes the numbers as names. For
            polygons, it must be None.

    Raises:
        ConfigError: `attribute` or `classes` does not fit the file, or shapely and pyogrio are not installed.
        DataError: The file cannot be read.
    """
    try:
        with open_plain(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise DataError(f"--labels: cannot read {shown(str(path), 300)}: {error.strerror}") from None
    if start.startswith(_GEOPACKAGE) or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        if classes is not None:
            raise ConfigError(f"--classes names the indexes of a raster, and {path} has polygons: give --attribute.")
        return PolygonLabels(path, attribute)
    if attribute is not None:
        raise ConfigError(f"--attribute is of polygons (GeoJSON, GeoPackage), and {path} is none of these.")
    return RasterLabels(path, classes)


@dataclass
class _Shapes:
    """Hold polygons in one coordinate system, with a spatial index that finds the polygons near a rectangle.

    Attributes:
        shapes: [n] shapely polygons; empty ones for polygons outside the area of the coordinate system.
        tree: Spatial index of `shapes`.
    """

    shapes: NDArray[np.object_]
    tree: "shapely.STRtree"


class PolygonLabels:
    """Measure which share of a patch each class covers, from polygons.

    An area where several polygons of one class overlap counts once.
    """

    def __init__(self, path: Path, attribute: str | None) -> None:
        """Read the polygons in a file, and the class name of each.

        Other shapes, and polygons without a class name, are left out.

        Args:
            path: GeoJSON or GeoPackage file.
            attribute: Attribute of the polygons that holds the class name; None chooses one with a usual name, such as
                `label`.

        Raises:
            ConfigError: The file has no such attribute, or shapely or pyogrio is not installed.
            DataError: The file cannot be read, has no polygons with a class name, or has more than `MOST_CLASSES`
                classes.
        """
        shapely = _shapely()
        meta, shapes, values, attribute = _read_polygons(path, attribute)
        self._path, self._crs = path, _crs_of(meta, path)
        areal = np.isin(shapely.get_type_id(shapes), (3, 6))
        named = np.array([not is_missing(value) for value in values], np.bool_)
        kept = areal & named
        if not kept.any():
            raise DataError(f"--labels: {path} has no polygon with a value of '{attribute}'.")
        names = [" ".join(_text(value).split()) for value in values[kept]]
        self.classes = tuple(sorted(set(names)))
        if len(self.classes) > MOST_CLASSES:
            raise DataError(
                f"--labels: '{attribute}' of {path} has {len(self.classes):,} values, and a store has at most "
                f"{MOST_CLASSES} classes. Give another --attribute."
            )
        self._class = np.array([self.classes.index(name) for name in names])
        self._bytes = shapely.to_wkb(shapely.force_2d(shapely.make_valid(shapes[kept])))
        self.notes = (
            f"labels from the attribute '{attribute}' of {int(kept.sum()):,} polygons",
            *(
                (f"{int((~kept).sum()):,} shapes are no polygons or have no value of '{attribute}'",)
                if not kept.all()
                else ()
            ),
        )
        self._placed: dict[str, _Shapes] = {}

    def __getstate__(self) -> dict[str, object]:
        """Return the dict of attributes to pickle, without projected polygons and spatial indexes.

        Another process projects the polygons again.
        """
        return self.__dict__ | {"_placed": {}}

    def touches(self, grid: ImageGrid, height: int, width: int) -> bool:
        """Return True if the rectangle around at least one polygon meets an image.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the image.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        box = (grid.x, grid.y - height * grid.height, grid.x + width * grid.width, grid.y)
        return len(self._in(grid.crs).tree.query(_shapely().box(*box))) > 0

    def shares(self, grid: ImageGrid, side: int) -> Shares:
        """Measure which share of the area of a patch the polygons of each class cover.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the patch.
            side: Width and height of the patch in pixels.

        Returns:
            Shares [classes] from 0 to 1, in the sequence of `classes`.

        Raises:
            DataError: The polygons cannot be projected.
        """
        shapely = _shapely()
        here = self._in(grid.crs)
        box = (grid.x, grid.y - side * grid.height, grid.x + side * grid.width, grid.y)
        found = here.tree.query(shapely.box(*box))
        parts = shapely.clip_by_rect(here.shapes[found], *box)
        out = np.zeros(len(self.classes))
        for place in np.unique(self._class[found]):
            own = parts[self._class[found] == place]
            joined = own[0] if len(own) == 1 else shapely.union_all(shapely.make_valid(own))
            out[place] = shapely.area(joined) / (side * side * grid.width * grid.height)
        return np.minimum(out, 1.0)

    def _in(self, crs: str) -> _Shapes:
        """Return all polygons, projected to the coordinate system `crs`, with a spatial index.

        Store the result in this object for later calls.
        """
        if crs not in self._placed:
            shapely = _shapely()
            shapes, target = shapely.from_wkb(self._bytes), system_of(crs)
            if self._crs != target:
                if self._crs.is_geographic:
                    shapes = shapely.segmentize(shapes, LONGEST_EDGE)
                shapes = shapely.transform(shapes, lambda points: _moved(points, self._crs, target, self._path))
                # PROJ gives infinite coordinates to polygons outside the area of the coordinate system. They lie far
                # from the scene, so replace them by empty ones, which no search finds.
                shapes[~np.isfinite(shapely.bounds(shapes)).all(1)] = shapely.Polygon()
            self._placed[crs] = _Shapes(shapes, shapely.STRtree(shapes))
        return self._placed[crs]


def _shapely() -> Any:
    try:
        import pyogrio  # noqa: F401  # both come with one extra
        import shapely
    except ImportError:
        raise ConfigError("--labels: polygons need shapely and pyogrio: pip install 'stssl[polygons]'") from None
    return shapely


def _read_polygons(path: Path, attribute: str | None) -> tuple[dict[str, Any], Any, NDArray[np.object_], str]:
    """Read the polygons in a file, and the value of the attribute that holds their class names.

    Args:
        path: GeoJSON or GeoPackage file.
        attribute: Name of the attribute; None chooses one with a usual name, such as `label`.

    Returns:
        A tuple of four: the file's metadata (a dict, with the coordinate system under `crs`), the shapely shapes [n],
        the value of the attribute for each shape [n], and the name of the attribute.

    Raises:
        ConfigError: The file has no such attribute, or no attribute has a usual name.
        DataError: The file cannot be read, or does not have exactly one layer.
    """
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    shapely = _shapely()
    try:
        layers = pyogrio.list_layers(path)
        if len(layers) != 1:
            names = ", ".join(str(name) for name, _ in layers) or "none"
            raise DataError(f"--labels: {path} has {len(layers)} layers ({names}). Give a file with one layer.")
        fields = [str(name) for name in pyogrio.read_info(path)["fields"]]
        chosen = _attribute(fields, attribute, path)
        meta, _, shapes, (values,) = pyogrio.raw.read(path, columns=[chosen])
        return meta, shapely.from_wkb(shapes), np.asarray(values, object), chosen
    except (DataSourceError, DataLayerError, shapely.errors.ShapelyError, ValueError, RuntimeError, OSError) as error:
        raise DataError(f"--labels: cannot read {path}: {shown(first_line(error), 200)}") from None


def _attribute(fields: Sequence[str], wanted: str | None, path: Path) -> str:
    """Return the name of the attribute that holds the class names of the polygons in a file.

    Args:
        fields: Names of all attributes in the file.
        wanted: Name that the user gave; None chooses an attribute with a usual name, such as `label`, or the only one.
        path: The file, for messages.

    Raises:
        ConfigError: `wanted` is not in `fields`, or no attribute can be chosen.
    """
    known = ", ".join(fields) or "none"
    if wanted is not None:
        if wanted not in fields:
            raise ConfigError(f"--attribute {wanted}: {path} has no such attribute. It has: {known}.")
        return wanted
    found = choose_columns(list(fields), {"label": ABOUT["label"]}, path).used.get("label")
    if found is None and len(fields) != 1:
        raise ConfigError(f"--labels: give --attribute, the attribute with the class names. {path} has: {known}.")
    return found or fields[0]


def _crs_of(meta: Mapping[str, Any], path: Path) -> CRS:
    if not meta.get("crs"):
        raise DataError(f"--labels: {path} has no coordinate system (CRS). Set one: ogr2ogr -a_srs EPSG:CODE.")
    with rasterio.Env():
        return CRS.from_user_input(meta["crs"])


def _text(value: object) -> str:
    """Return the value of a polygon's attribute as text, which is a class name. The number 7.0 becomes `7`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _moved(points: NDArray[np.float64], source: CRS, target: CRS, path: Path) -> NDArray[np.float64]:
    try:
        xs, ys = transform(source, target, points[:, 0].tolist(), points[:, 1].tolist())
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise DataError(f"--labels: {path} cannot be projected to {target}: {first_line(error)}") from None
    return np.stack([xs, ys], 1)


@dataclass
class RasterLabels:
    """Measure which share of a patch each class covers, from a raster of class indexes.

    Each pixel of the patch has the class of the nearest pixel of the raster.

    Attributes:
        path: GeoTIFF with one band of whole numbers, the class indexes.
        names: Names of the indexes, such as `1=forest,2=water`; None takes the numbers as names.
        classes: Names of the classes that occur in the raster.
        notes: Remarks for the user, one line each, such as indexes without a name.
    """

    path: Path
    names: str | None
    classes: tuple[str, ...] = field(init=False)
    notes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read the raster once to find the class indexes that occur in it, and name the classes.

        Raises:
            ConfigError: `names` has another form than INDEX=NAME,INDEX=NAME, or has an index twice.
            DataError: The file is no GeoTIFF with one band of whole numbers, cannot be read, or has no index with a
                name.
        """
        if scene_driver(self.path) != SCENE_DRIVERS[0]:
            raise DataError(f"--labels: {self.path} is neither GeoJSON, GeoPackage nor GeoTIFF.")
        with open_scene_file(self.path, SCENE_DRIVERS[0]) as file, rasterio.Env(**IMAGE_SETTINGS):
            if file.count != 1 or np.dtype(file.dtypes[0]).kind not in "iu" or file.crs is None:
                raise DataError(
                    f"--labels: {self.path} has {file.count} bands of {file.dtypes[0]}"
                    f"{'' if file.crs else ' and no CRS'}. Give a georeferenced raster with one band of class indexes."
                )
            occurring: set[int] = set()
            for _, window in file.block_windows(1):
                values, there = file.read(1, window=window), file.read_masks(1, window=window) > 0
                occurring |= set(np.unique(values[there]).tolist())
                if len(occurring) > MOST_CLASSES:
                    raise DataError(f"--labels: {self.path} has more than {MOST_CLASSES} values: no class indexes.")
        given = {value: str(value) for value in sorted(occurring)} if self.names is None else _parsed(self.names)
        self._values = {value: name for value, name in given.items() if value in occurring}
        if not self._values:
            raise DataError(f"--labels: {self.path} has none of the indexes {', '.join(map(str, given)) or '(empty)'}.")
        self.classes = tuple(dict.fromkeys(self._values.values()))
        left = sorted(occurring - set(self._values))
        words = ", ".join(map(str, left[:10]))
        self.notes = (f"the indexes {words} have no name in --classes: they are no label",) if left else ()

    def touches(self, grid: ImageGrid, height: int, width: int) -> bool:
        """Return True if the raster and an image may overlap. Only the rectangles around both are compared.

        Return False if the corners of the image cannot be projected to the raster's coordinate system.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the image.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
        """
        right, bottom = grid.x + width * grid.width, grid.y - height * grid.height
        with open_scene_file(self.path, SCENE_DRIVERS[0]) as file:
            try:
                west, south, east, north = transform_bounds(
                    system_of(grid.crs), file.crs, grid.x, bottom, right, grid.y
                )
            except (rasterio.errors.RasterioError, ValueError):
                return False
            own = file.bounds
        return bool(west < own.right and east > own.left and south < own.top and north > own.bottom)

    def shares(self, grid: ImageGrid, side: int) -> Shares:
        """Measure which share of the pixels of a patch each class of the raster covers.

        Pixels without a raster pixel, or with an index that has no name, count for no class.

        Args:
            grid: Coordinate system, upper left corner and pixel size of the patch.
            side: Width and height of the patch in pixels.

        Returns:
            Shares [classes] from 0 to 1, in the sequence of `classes`.

        Raises:
            DataError: The raster cannot be read.
        """
        plane = from_origin(grid.x, grid.y, grid.width, grid.height)
        about = {"crs": system_of(grid.crs), "transform": plane, "width": side, "height": side}
        try:
            with (
                rasterio.Env(**IMAGE_SETTINGS),
                open_scene_file(self.path, SCENE_DRIVERS[0]) as file,
                WarpedVRT(file, resampling=Resampling.nearest, add_alpha=True, **about) as warped,
            ):
                values, there = warped.read(1), warped.read(2) > 0
        except (rasterio.errors.RasterioError, ValueError) as error:
            raise DataError(f"--labels: cannot read {self.path}: {first_line(error)}") from None
        out = np.zeros(len(self.classes))
        for value, name in self._values.items():
            out[self.classes.index(name)] += float(((values == value) & there).mean())
        return out


def _parsed(names: str) -> dict[int, str]:
    """Parse a text such as `1=forest,2=water`. Return a dict from class index to class name.

    Raises:
        ConfigError: The text has another form, or has an index twice.
    """
    found: dict[int, str] = {}
    for word in names.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*=\s*(.*\S)\s*", word)
        if match is None or int(match[1]) in found:
            raise ConfigError(
                f"--classes: '{word.strip()}' must be INDEX=NAME, each index once, as in 1=forest,2=water."
            )
        found[int(match[1])] = match[2]
    return found
