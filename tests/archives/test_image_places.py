"""Where a file says it is: right, or no place and counted."""

import io

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint as Point
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import transform as project

from stssl.archives.image_places import place_in
from stssl.archives.places import to_degrees
from stssl.archives.tiff import utm_corner
from stssl.store.schema import BadPatchError

SIDE = 16
DEGREE = from_origin(10, 50, 0.001, 0.001)
ENGINEERING = 'LOCAL_CS["site",UNIT["metre",1]]'
COMPOUND = "EPSG:32632+5773"
PARIS = "EPSG:4807"


def place(data, name):
    return place_in(io.BytesIO(data), name)


def tiff(gcps=None, **options):
    shape = {"count": 1, "height": SIDE, "width": SIDE, "dtype": "uint16"}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver=options.pop("driver", "GTiff"), **shape, **options) as file:
            file.write(np.ones((1, SIDE, SIDE), np.uint16))
            if gcps:
                file.gcps = gcps
            if options.get("AREA_OR_POINT"):
                file.update_tags(AREA_OR_POINT=options["AREA_OR_POINT"])
        return memory.read()


def corners(west, north, step, shift=0):
    steps = [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)]
    longitudes = [west + step * column for _, column in steps]
    wrapped = [lon - 360 if lon > 180 and shift else lon for lon in longitudes]
    return [Point(row, col, x=x, y=north - step * row) for (row, col), x in zip(steps, wrapped, strict=True)]


def utm(x, y, epsg=32632):
    lon, lat = project(f"EPSG:{epsg}", "EPSG:4326", [x], [y])
    return lat[0], lon[0]


RIGHT = {
    "degrees": (lambda: tiff(crs="EPSG:4326", transform=DEGREE), (49.992, 10.008)),
    "projected": (lambda: tiff(crs="EPSG:32632", transform=from_origin(5e5, 5.3e6, 10, 10)), utm(5e5 + 80, 5.3e6 - 80)),
    "0 to 360": (lambda: tiff(crs="EPSG:4326", transform=from_origin(200, -15, 1e-3, 1e-3)), (-15.008, -159.992)),
    "turned": (
        lambda: tiff(crs="EPSG:32632", transform=Affine(0, 10, 5e5, 10, 0, 5.3e6)),
        utm(5e5 + 80, 5.3e6 + 80),
    ),
    "south up": (lambda: tiff(crs="EPSG:4326", transform=Affine(1e-3, 0, 10, 0, 1e-3, 50)), (50.008, 10.008)),
    "feet": (
        lambda: tiff(crs="EPSG:2263", transform=from_origin(984250, 200000, 10, 10)),
        utm(984250 + 80, 200000 - 80, 2263),
    ),
    "compound": (lambda: tiff(crs=COMPOUND, transform=from_origin(5e5, 5.3e6, 10, 10)), utm(5e5 + 80, 5.3e6 - 80)),
    "polar": (lambda: tiff(crs="EPSG:3031", transform=from_origin(-80, 80, 10, 10)), (-90, None)),
    "control points": (lambda: tiff((corners(10, 50, 1e-3), rasterio.crs.CRS.from_epsg(4326))), (49.992, 10.008)),
    "control points over the antimeridian": (
        lambda: tiff((corners(179.996, 50, 1e-3, shift=1), rasterio.crs.CRS.from_epsg(4326))),
        (49.992, -179.996),
    ),
    "another meridian": (lambda: tiff(crs=PARIS, transform=from_origin(8, 54, 1e-3, 1e-3)), None),
    "rational polynomials": (
        lambda: tiff(rpcs=model()),
        (50.000625, 9.999375),
    ),  # The middle of 16 lines is half a line off
}


def model():
    """An image whose middle is 50 N 10 E, whatever the height."""
    line, sample, one = ([0.0] * 20 for _ in range(3))
    line[2], sample[1], one[0] = -1.0, 1.0, 1.0
    return RPC(
        height_off=0, height_scale=100, lat_off=50, lat_scale=0.01, long_off=10, long_scale=0.01,
        line_off=SIDE / 2, line_scale=SIDE / 2, samp_off=SIDE / 2, samp_scale=SIDE / 2,
        line_num_coeff=line, line_den_coeff=one, samp_num_coeff=sample, samp_den_coeff=one,
    )  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_places(kind):
    made, truth = RIGHT[kind]
    found = place(made(), "i.tif")
    if truth is None:  # grads from Paris
        truth = tuple(float(v[0]) for v in to_degrees(rasterio.crs.CRS.from_user_input(PARIS).to_wkt(), 8.008, 53.992))
        assert abs(truth[0] - 53.992 * 0.9) < 0.01 and abs(truth[1] - (8.008 * 0.9 + 2.337)) < 0.01
    assert found is not None
    assert abs(found[0] - truth[0]) < 2e-4
    assert truth[1] is None or abs(found[1] - truth[1]) < 2e-4


WRONG = {
    "no geotransform": lambda: tiff(crs="EPSG:32632"),
    "no projection": lambda: tiff(transform=DEGREE),
    "latitude 199": lambda: tiff(crs="EPSG:4326", transform=from_origin(50, 200, 1e-3, 1e-3)),
    "longitude 500": lambda: tiff(crs="EPSG:4326", transform=from_origin(500, 50, 1e-3, 1e-3)),
    "neither degrees": lambda: tiff(crs="EPSG:4978", transform=from_origin(4e6, 6e5, 10, 10)),
    "i.tif": lambda: tiff(crs=ENGINEERING, transform=from_origin(4e6, 6e5, 10, 10)),
    "outside": lambda: tiff(crs="EPSG:3857", transform=from_origin(9e7, 6e5, 10, 10)),
    "span no area": lambda: tiff((corners(10, 50, 1e-3)[:2], rasterio.crs.CRS.from_epsg(4326))),
    "no plane": lambda: tiff(
        ([*corners(10, 50, 1e-3)[:3], Point(16, 16, x=17, y=44)], rasterio.crs.CRS.from_epsg(4326))
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_no_place_is_counted(words):
    with pytest.raises(BadPatchError, match=words) as caught:
        place(WRONG[words](), "i.tif")
    assert caught.value.code == "bad_coordinates"


def test_control_an_image_that_says_nothing_has_no_place():
    assert place(tiff(), "i.tif") is None


def test_pixels_as_points_lie_half_a_pixel_off():
    made = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5.3e6, 10, 10)}
    area, point = tiff(**made), tiff(**made, AREA_OR_POINT="Point")
    assert utm_corner(area) == (32632, 5e5, 5.3e6)
    assert utm_corner(point) is None
    assert place(area, "i") == pytest.approx(place(point, "i"), abs=1e-9)
