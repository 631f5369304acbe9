"""Make small synthetic BigEarthNet archives, and functions that damage them, one for each kind of fault."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from affine import Affine

from stssl.archives.synthetic import synthesize_archive


@lru_cache(maxsize=16)
def _made(patches: int, seed: int) -> tuple[TemporaryDirectory[str], Path]:
    kept = TemporaryDirectory(prefix="stssl-archive-")
    return kept, synthesize_archive(Path(kept.name) / "archive", patches, seed)


def clean(folder: Path, patches: int = 24, seed: int = 3) -> Path:
    """Copy a synthetic archive in BigEarthNet v1.0's layout, so a test can damage the copy. It is made only once."""
    _, made = _made(patches, seed)
    shutil.copytree(made, folder)
    return folder


def folders(archive: Path) -> list[Path]:
    """List the folders of all patches, sorted as the rows of the converted store."""
    return sorted((archive / "BigEarthNet-v1.0").iterdir())


def change_json(folder: Path, **changes: object) -> None:
    """Change keys of the JSON file in a patch's folder. A value of None removes the key."""
    path = folder / f"{folder.name}_labels_metadata.json"
    about = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def band(folder: Path, name: str) -> Path:
    return folder / f"{folder.name}_{name}.tif"


def write_tiff(path: Path, pixels: np.ndarray, **options: object) -> None:
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    options = {"transform": Affine(10, 0, 4e5, 0, -10, 5e6), "crs": "EPSG:32633"} | options
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(pixels)


def truncate(folder: Path) -> None:
    path = band(folder, "B08")
    path.write_bytes(path.read_bytes()[:9000])


def corners(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / f"{folder.name}_labels_metadata.json").read_text())["coordinates"]
    return found


def swap(folder: Path) -> None:
    old = corners(folder)
    new = {"ulx": old["lry"], "lrx": old["uly"], "uly": old["lrx"], "lry": old["ulx"]}
    change_json(folder, coordinates=new)


def remove_tiffs(folder: Path) -> None:
    for path in folder.glob("*.tif"):
        path.unlink()


def copy_of_v2(folder: Path) -> None:
    """Put a patch in BigEarthNet v2.0's layout into an archive in v1.0's layout."""
    product = folder.parent / "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    shutil.copytree(folder, product / f"{product.name}_26_57")


DIRT = {
    "missing band": (lambda f: band(f, "B09").unlink(), "missing_band", "B09.tif is missing"),
    "truncated": (truncate, "unreadable", "B08.tif"),
    "not a tiff": (lambda f: band(f, "B03").write_bytes(b"<html>not found</html>"), "unreadable", "B03.tif"),
    "empty file": (lambda f: band(f, "B01").write_bytes(b""), "unreadable", "B01.tif"),
    "wrong size": (
        lambda f: write_tiff(band(f, "B05"), np.ones((1, 59, 60), np.uint16)),
        "wrong_size",
        "B05.tif has 60x59 pixels, not 60x60",
    ),
    "wrong type": (
        lambda f: write_tiff(band(f, "B05"), np.ones((1, 60, 60), np.float32)),
        "wrong_size",
        "1 bands of float32",
    ),
    "json without tiffs": (remove_tiffs, "no_pixels", "no band"),
    "tiffs without json": (
        lambda f: (f / f"{f.name}_labels_metadata.json").unlink(),
        "no_metadata",
        "_labels_metadata.json is missing",
    ),
    "broken json": (
        lambda f: (f / f"{f.name}_labels_metadata.json").write_text('{"labels": ['),
        "bad_metadata",
        "cannot be used as JSON",
    ),
    "json without labels": (lambda f: change_json(f, labels=None), "bad_metadata", "'labels'"),
    "json nested deeply": (
        lambda f: (f / f"{f.name}_labels_metadata.json").write_text("[" * 200_000),
        "bad_metadata",
        "nested",
    ),
    "json of a giant number": (
        lambda f: (f / f"{f.name}_labels_metadata.json").write_text(
            '{"labels": ["Pastures"], "x": ' + "9" * 9999 + "}"
        ),
        "bad_metadata",
        "digits",
    ),
    "json with a key twice": (
        lambda f: (f / f"{f.name}_labels_metadata.json").write_text('{"labels": ["Pastures"], "labels": []}'),
        "bad_metadata",
        "'?labels'? stands in it twice",
    ),
    "json larger than any": (
        lambda f: change_json(f, padding="x" * 2_000_000),
        "bad_metadata",
        "is larger than",
    ),
    "json with half a letter": (lambda f: change_json(f, labels=["Pastures", "\ud800"]), "bad_metadata", "surrogate"),
    "labels with shares": (lambda f: change_json(f, labels={"Pastures": 0.9}), "bad_metadata", "no list 'labels'"),
    "a corner beyond floats": (
        lambda f: change_json(f, coordinates=corners(f) | {"ulx": 10**400}),
        "bad_coordinates",
        "too large",
    ),
    "no corners": (lambda f: change_json(f, coordinates=None), "bad_coordinates", "ulx"),
    "invalid date": (lambda f: change_json(f, acquisition_date="2018-02-04 9:41:61"), "bad_time", "9:41:61"),
    "no data": (
        lambda f: write_tiff(band(f, "B02"), np.zeros((1, 120, 120), np.uint16)),
        "nodata",
        "nothing but 0 .no data. in B02",
    ),
    "nan coordinates": (
        lambda f: change_json(f, coordinates=corners(f) | {"ulx": float("nan")}),
        "bad_coordinates",
        "do not span an area",
    ),
    "swapped coordinates": (swap, "bad_coordinates", "swapped"),
    "coordinates out of range": (
        lambda f: change_json(f, coordinates={"ulx": 9e9, "uly": 9e9, "lrx": 9e9 + 1200, "lry": 9e9 - 1200}),
        "bad_coordinates",
        "9000000000",
    ),
    "unknown projection": (
        lambda f: change_json(f, projection="UTM-ish"),
        "bad_coordinates",
        "WKT could not be parsed",
    ),
    "unknown label": (
        lambda f: change_json(f, labels=["Pastures", "Sea of tranquility"]),
        "unknown_label",
        "unknown label Sea of tranquility",
    ),
    "no label": (lambda f: change_json(f, labels=[]), "no_label", "list of labels is empty"),
    "duplicate": (
        lambda f: shutil.copytree(f, f.parent / "again" / f.name),
        "duplicate",
        "again/.* has the name of",
    ),
    "mixed trees": (copy_of_v2, "foreign", "is of BigEarthNet v2.0"),
}
"""By kind of fault: a function that damages a patch's folder, the error's name, and words of the report."""
