"""Write small scenes: GeoTIFFs, files of one band each, and Sentinel-2 products with JPEG 2000 images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

CORNER = (500_000.0, 5_500_000.0)
NATIVE = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B11": 20, "B12": 20}
NATIVE |= {"B01": 60, "B09": 60}
IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


def write_tif(path: Path, values: Any, names: Sequence[str] = (), pixel: float = 10.0, **changes: Any) -> Path:
    """Write values [bands, H, W] as a GeoTIFF."""
    profile = {"driver": "GTiff", "height": values.shape[1], "width": values.shape[2], "count": len(values)}
    profile |= {"dtype": values.dtype, "crs": "EPSG:32632", "transform": from_origin(*CORNER, pixel, pixel)} | changes
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)
    return path


def mosaic(patches: Any, columns: int) -> Any:
    """Put patches [n, bands, H, W] side by side, row by row: [bands, rows * H, columns * W]."""
    n, bands, height, width = patches.shape
    rows = -(-n // columns)
    out = np.zeros((bands, rows * height, columns * width), patches.dtype)
    for number, patch in enumerate(patches):
        row, column = divmod(number, columns)
        out[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = patch
    return out


def write_safe(folder: Path, bands: dict[str, Any], offset: int | None, quantification: int = 10_000) -> Path:
    """Write a Sentinel-2 product of level 2A, with lossless JPEG 2000 images.

    Args:
        folder: The `.SAFE` folder.
        bands: [H, W] reflectance times 10,000 of each band, at its own pixel size. 0 means no data.
        offset: `BOA_ADD_OFFSET` of all bands; None writes a product of a baseline before 04.00.
        quantification: `BOA_QUANTIFICATION_VALUE`.
    """
    names = []
    for band, values in bands.items():
        size = NATIVE[band]
        name = f"GRANULE/L2A_T32UMC_A1_20220614T101609/IMG_DATA/R{size}m/T32UMC_20220614T101609_{band}_{size}m"
        path = folder / f"{name}.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = np.where(values == 0, 0, values.astype(np.int64) - (offset or 0)).astype(np.uint16)
        lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
        write_tif(path, stored[None], pixel=size, driver="JP2OpenJPEG", **lossless)
        names.append(f"<IMAGE_FILE>{name}</IMAGE_FILE>")
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{number}">{offset}</BOA_ADD_OFFSET>' for number in range(len(IDS)))
    offsets = "" if offset is None else f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"
    (folder / "MTD_MSIL2A.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
        '<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">'
        "<n1:General_Info><Product_Info><PRODUCT_START_TIME>2022-06-14T10:16:09.024Z</PRODUCT_START_TIME>"
        f"<Product_Organisation><Granule_List><Granule>{''.join(names)}</Granule></Granule_List>"
        "</Product_Organisation></Product_Info><Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>"
        f'<BOA_QUANTIFICATION_VALUE unit="none">{quantification}</BOA_QUANTIFICATION_VALUE>'
        f"</QUANTIFICATION_VALUES_LIST>{offsets}</Product_Image_Characteristics></n1:General_Info>"
        "</n1:Level-2A_User_Product>"
    )
    return folder
