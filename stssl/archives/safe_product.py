"""Read the metadata of a Sentinel-2 product of level 2A (a `.SAFE` folder) from its `MTD_MSIL2A.xml`.

Since processing baseline 04.00, reflectance = (number + BOA_ADD_OFFSET) / quantification, with an offset of -1000.
Before that, there was no offset. BigEarthNet and EuroSAT have numbers without an offset and a quantification of 10000.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from stssl.archives.band_numbers import BandNumbers
from stssl.archives.raster_files import MOST_NAME
from stssl.base.errors import DataError, first_line, shown

METADATA = "MTD_MSIL2A.xml"
QUANTIFICATION = 10_000.0
"""Quantification of the stored values that students expect: reflectance times 10,000."""
NODATA = 0
MOST_XML_BYTES = 1 << 24
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Names of the bands by their number in the metadata."""
_IMAGE = re.compile(r"_(B(?:\d\d|8A))_(10|20|60)m$")


@dataclass(frozen=True)
class SafeProduct:
    """Hold the paths of a Sentinel-2 product's images, and the offsets and the scale of their stored numbers.

    Reflectance is (stored number + offset) / quantification.

    Attributes:
        folder: The `.SAFE` folder.
        date: Time of acquisition with its time zone; None if the metadata do not state it.
        quantification: Divisor of the numbers after the offset was added.
        offsets: Number to add to the stored numbers, by name of the band. A band that is not named has 0.
        images: For each band, a dict from pixel size in meters to the paths of the images, one for each granule (tile).
    """

    folder: Path
    date: datetime | None
    quantification: float
    offsets: dict[str, float]
    images: dict[str, dict[int, tuple[Path, ...]]]

    def images_of(self, band: str, meters: float | None) -> tuple[Path, ...]:
        """Return the paths of a band's images with a given pixel size, one for each granule (tile) of the product.

        If the band has no images of this size, return those with the smallest pixels.

        Args:
            band: Name of the band, such as `B04`.
            meters: Wanted pixel size in meters; None takes the smallest pixels.
        """
        found = self.images[band]
        return found[round(meters) if meters is not None and round(meters) in found else min(found)]

    def numbers(self, band: str) -> BandNumbers:
        """Return how to convert the stored numbers of a band to reflectance times 10,000, which students expect.

        Students are trained networks. The stored number 0 means "not measured".
        """
        return BandNumbers(NODATA, self.offsets.get(band, 0.0), QUANTIFICATION / self.quantification)


def is_safe(path: Path) -> bool:
    """Return True if a path looks like a Sentinel-2 product of level 2A, or like its metadata file `MTD_MSIL2A.xml`.

    The path of a product ends in `.SAFE`, or is a folder that has this file.
    """
    return path.name == METADATA or path.suffix.upper() == ".SAFE" or (path / METADATA).exists()


def read_safe(path: Path) -> SafeProduct:
    """Read the metadata of a Sentinel-2 product, find its images, and return both. The images are not opened.

    Args:
        path: The `.SAFE` folder, or the file `MTD_MSIL2A.xml` in it.

    Raises:
        DataError: The metadata are missing or damaged, or the product is not of level 2A, or it has no images.
    """
    folder = path.parent if path.name == METADATA else path
    root = _parsed(folder)
    quantification = _number(root, "BOA_QUANTIFICATION_VALUE")
    if quantification is None or quantification <= 0:
        raise DataError(f"{folder / METADATA} has no BOA_QUANTIFICATION_VALUE. Download the product again.")
    offsets: dict[str, float] = {}
    for entry in root.iter("BOA_ADD_OFFSET"):
        number, value = entry.get("band_id", ""), _as_number(entry.text)
        if not number.isdecimal() or int(number) >= len(BAND_IDS) or value is None:
            raise DataError(f"{folder / METADATA}: BOA_ADD_OFFSET {shown(number)} cannot be used. Download it again.")
        offsets[BAND_IDS[int(number)]] = value
    images = _images(folder, root)
    if not images:
        raise DataError(f"{folder} has no images of bands (GRANULE/*/IMG_DATA/R*m/*.jp2). Download the product again.")
    return SafeProduct(folder, _date(root), quantification, offsets, images)


def _parsed(folder: Path) -> ElementTree.Element:
    """Read the XML metadata file in a product's folder, and return its root element.

    Raises:
        DataError: The file is missing, damaged or suspicious, or the product is not of level 2A.
    """
    path = folder / METADATA
    try:
        if path.stat().st_size > MOST_XML_BYTES:
            raise DataError(f"{path} is larger than {MOST_XML_BYTES >> 20} MiB: it is no metadata file.")
        data = path.read_bytes()
    except FileNotFoundError:
        level = "It is of level 1C: students need level 2A. " if (folder / "MTD_MSIL1C.xml").exists() else ""
        words = f"{shown(str(folder), MOST_NAME)} has no {METADATA}. {level}"
        raise DataError(f"{words}Give the .SAFE folder of a Sentinel-2 product of level 2A.") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    # Refuse XML entities: a short file with them could expand to gigabytes. Real products have none.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"{path} declares entities, which no Sentinel-2 product does. It is not read.")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is damaged ({first_line(error)}). Download the product again.") from None


def _as_number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


def _number(root: ElementTree.Element, tag: str) -> float | None:
    entry = next(root.iter(tag), None)
    return None if entry is None else _as_number(entry.text)


def _date(root: ElementTree.Element) -> datetime | None:
    """Return the time of acquisition that the metadata of a product state; None if they state no time.

    A time without a zone counts as UTC.

    Args:
        root: Root element of the metadata.
    """
    for tag in ("DATATAKE_SENSING_START", "PRODUCT_START_TIME"):
        for entry in root.iter(tag):
            try:
                found = datetime.fromisoformat((entry.text or "").strip().replace("Z", "+00:00"))
            except ValueError:
                continue
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _images(folder: Path, root: ElementTree.Element) -> dict[str, dict[int, tuple[Path, ...]]]:
    """Find a product's images: those that the metadata name, or, if they name none, those in the folder.

    Args:
        folder: The `.SAFE` folder.
        root: Root element of the metadata.

    Returns:
        A dict from band to another dict, from pixel size in meters to the paths of the images. The files may be
        missing.
    """
    named = [PurePosixPath((entry.text or "").strip()) for entry in root.iter("IMAGE_FILE")]
    inside = [name for name in named if not name.is_absolute() and ".." not in name.parts]
    paths = [folder / f"{name}.jp2" for name in inside]
    paths = paths or sorted(folder.glob("GRANULE/*/IMG_DATA/R*m/*.jp2"))
    found: dict[str, dict[int, tuple[Path, ...]]] = {}
    for path in paths:
        match = _IMAGE.search(path.stem)
        if match:
            sizes = found.setdefault(match[1], {})
            sizes[int(match[2])] = (*sizes.get(int(match[2]), ()), path)
    return found
