"""What image files say of their values and of their place is honored, or refused in words."""

import http.server
import re
import shutil
import struct
import threading
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.image_places import place_in
from stssl.archives.images import read_image
from stssl.archives.places import to_degrees
from stssl.archives.tiff import read_band
from stssl.archives.zips import check_directory
from stssl.base.errors import DataError
from stssl.store.schema import BadPatchError
from stssl.store.store import Store

RNG = np.random.default_rng(0)
GRID = from_origin(500000, 5300000, 10, 10)
UTM = {"crs": "EPSG:32632", "transform": GRID}


def tiff(path, values, *, gcps=None, rpcs=None, mask=None, colors=None, scales=None, offsets=None, **options):
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": str(values.dtype)}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **shape, **options) as file,
    ):
        if colors:
            file.colorinterp = colors
        file.write(values)
        if gcps:
            file.gcps = (gcps, file.crs)
        if rpcs:
            file.rpcs = rpcs
        if scales:
            file.scales = scales
        if offsets:
            file.offsets = offsets
        if mask is not None:
            file.write_mask(mask)
    return path


def values(count=3, size=16, dtype="uint16"):
    return RNG.integers(1, 200, (count, size, size)).astype(dtype)


def manifest(folder, lines, header="path,label", **options):
    (folder / "m.csv").write_text("\n".join([header, *lines]) + "\n")
    summary = convert_archive("manifest", folder / "m.csv", folder / "s.zarr", Options(workers=0), **options)
    return summary, Store.open(summary.store)


def pixels(store):
    name = next(iter(store.groups))
    return store.reader(store.bands).read(np.arange(store.size))[name]


def nodata_tag(folder):
    image = values()
    image[:, :4] = 65535
    return tiff(folder / "i.tif", image, nodata=65535)


def internal_mask(folder):
    mask = np.full((16, 16), 255, np.uint8)
    mask[:4] = 0
    return tiff(folder / "i.tif", values(), mask=mask)


def alpha_band(folder):
    image = values(4)
    image[3] = 65535
    image[3, :4] = 0
    colors = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined, ColorInterp.alpha]
    return tiff(folder / "i.tif", image, colors=colors)


def alpha_first(folder):
    image = values(4, dtype="uint8")
    image[0], image[0, :4] = 255, 0
    colors = [ColorInterp.alpha, ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    return tiff(folder / "i.tif", image, colors=colors)


def transparent_png(folder):
    image = values(4, dtype="uint8")
    image[3], image[3, :4] = 255, 0
    Image.fromarray(image.transpose(1, 2, 0)).save(folder / "i.png")
    return folder / "i.png"


def color_key_png(folder):
    image = values(3, dtype="uint8")
    image[:, :4] = np.array([250, 251, 252])[:, None, None]
    Image.fromarray(image.transpose(1, 2, 0)).save(folder / "i.png", transparency=(250, 251, 252))
    return folder / "i.png"


@pytest.mark.parametrize(
    "make",
    [nodata_tag, internal_mask, alpha_band, alpha_first, transparent_png, color_key_png],
    ids=lambda f: f.__name__,
)
def test_pixels_that_are_not_measured_are_neutral_and_not_counted(make, tmp_path):
    path = make(tmp_path)
    summary, store = manifest(tmp_path, [f"{path.name},A"])
    assert summary.errors == {} and len(store.bands) == 3
    own = pixels(store)[0]
    for band in own:
        assert (band[:4] == np.rint(band[4:].mean())).all()
    (group,) = store.groups.values()
    assert group.statistics["count"] == [12 * 16] * 3
    np.testing.assert_allclose(group.statistics["mean"], own[:, 4:].reshape(3, -1).mean(1))


def test_control_the_same_pixels_without_the_tag_are_counted(tmp_path):
    image = values()
    image[:, :4] = 65535
    tiff(tmp_path / "i.tif", image)
    _, store = manifest(tmp_path, ["i.tif,A"])
    (group,) = store.groups.values()
    assert group.statistics["count"] == [256] * 3 and group.statistics["max"] == [65535] * 3
    np.testing.assert_array_equal(pixels(store)[0], image)


def test_a_patch_without_any_measurement_is_an_error(tmp_path):
    tiff(tmp_path / "a.tif", values(), nodata=7)
    tiff(tmp_path / "b.tif", np.full((3, 16, 16), 7, np.uint16), nodata=7)
    half = values()
    half[1] = 300
    tiff(tmp_path / "c.tif", half, nodata=300)
    summary, _ = manifest(tmp_path, ["a.tif,A", "b.tif,A", "c.tif,B"])
    assert summary.errors == {"nodata": 2}


def test_resampling_leaves_out_what_is_not_measured(tmp_path):
    image = np.full((1, 32, 32), 1000, np.uint16)
    image[:, :9] = 65535
    picture = read_image(tiff(tmp_path / "i.tif", image, nodata=65535), "i.tif", 16)
    assert picture.pixels.shape == (1, 16, 16) and (picture.pixels == 1000).all()
    assert picture.measured is not None and not picture.measured[0, :4].any() and picture.measured[0, 5:].all()
    plain = read_image(tiff(tmp_path / "p.tif", image), "p.tif", 16)
    assert plain.pixels.max() > 60000, "control: without the tag the border is part of the image"


def test_four_bands_without_transparency_stay_four(tmp_path):
    tiff(tmp_path / "i.tif", values(4, dtype="uint8"), photometric="RGB", alpha="NO")
    _, store = manifest(tmp_path, ["i.tif,A"], band_names="B04,B03,B02,B08")
    assert store.bands == ("B04", "B03", "B02", "B08")


def test_a_palette_becomes_its_colors(tmp_path):
    picture = Image.fromarray(RNG.integers(0, 3, (16, 16)).astype(np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "i.png")
    read = read_image(tmp_path / "i.png", "i.png")
    np.testing.assert_array_equal(read.pixels, np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def test_blue_first_is_put_in_order_unless_bands_are_named(tmp_path):
    image = values(3, dtype="uint8")
    order = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    tiff(tmp_path / "i.tif", image, colors=order, photometric="MINISBLACK")
    _, store = manifest(tmp_path, ["i.tif,A"])
    np.testing.assert_array_equal(pixels(store)[0], image[::-1])
    named = tmp_path / "named"
    named.mkdir()
    tiff(named / "i.tif", image, colors=order, photometric="MINISBLACK")
    _, store = manifest(named, ["i.tif,A"], band_names="B02,B03,B04")
    np.testing.assert_array_equal(pixels(store)[0], image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_turned_upright(tmp_path, orientation):
    picture = Image.fromarray(values(3, dtype="uint8").transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "i.png", exif=exif)
    from PIL import ImageOps

    with Image.open(tmp_path / "i.png") as saved:
        wanted = np.asarray(ImageOps.exif_transpose(saved)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "i.png", "i.png").pixels, wanted)


def several_pages(folder):
    pages = [Image.fromarray(page) for page in values(3, dtype="uint8")]
    pages[0].save(folder / "i.tif", save_all=True, append_images=pages[1:])


def cmyk(folder):
    tiff(folder / "i.tif", values(4, dtype="uint8"), photometric="CMYK")


def inverted(folder):
    tiff(folder / "i.tif", values(1, dtype="uint8"), photometric="MINISWHITE")


def few_bits(folder):
    tiff(folder / "i.tif", np.ones((1, 16, 16), np.uint8), nbits=4)


def turned_tiff(folder):
    Image.fromarray(values(1, dtype="uint8")[0]).save(folder / "i.tif", tiffinfo={274: 6})


def lab(folder):
    Image.fromarray(values(3, dtype="uint8").transpose(1, 2, 0), mode="LAB").save(folder / "i.tif")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (several_pages, "several pages"),
        (cmyk, "convert it to red, green and blue"),
        (inverted, "inverted"),
        (few_bits, "4 bits a pixel"),
        (turned_tiff, "turned"),
        (lab, "convert it to red, green and blue"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_other_meanings_are_refused_in_words(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(BadPatchError, match=words) as error:
        read_image(tmp_path / "i.tif", "i.tif")
    assert error.value.code == "unreadable"


def test_another_scale_than_the_first_images_is_refused(tmp_path):
    tiff(tmp_path / "a.tif", values(), scales=[0.0001] * 3)
    tiff(tmp_path / "b.tif", values())
    tiff(tmp_path / "c.tif", values(), scales=[0.0001] * 3)
    summary, _ = manifest(tmp_path, ["a.tif,A", "b.tif,A", "c.tif,B"])
    assert summary.errors == {"wrong_size": 1}
    assert any("states a scale (0.0001), which is not applied" in note for note in summary.notes)


def test_an_offset_that_images_state_is_applied_as_in_scenes(tmp_path):
    """Maps, scenes and patches of the same file must give a network the same numbers."""
    image = values() + np.uint16(990)  # from 991 on: some are below the offset of 1000
    about = {"scales": [0.0001] * 3, "offsets": [-0.1, 0, -0.1]}
    tiff(tmp_path / "a.tif", image, **about, **UTM)
    summary, store = manifest(tmp_path, ["a.tif,A"])
    assert any("states an offset (-1000), which conversions apply" in note for note in summary.notes)
    wanted = np.stack([np.maximum(image[0], 1000) - 1000, image[1], np.maximum(image[2], 1000) - 1000])
    np.testing.assert_array_equal(pixels(store)[0], wanted)
    scenes = convert_archive("scenes", tmp_path / "a.tif", tmp_path / "scene.zarr", Options(workers=0), size=16)
    np.testing.assert_array_equal(pixels(Store.open(scenes.store)), pixels(store))
    for offsets in (None, [np.nan] * 3):  # the control: no stated offset
        tiff(tmp_path / "a.tif", image, scales=[0.0001] * 3, offsets=offsets, **UTM)
        shutil.rmtree(tmp_path / "s.zarr")
        np.testing.assert_array_equal(pixels(manifest(tmp_path, ["a.tif,A"])[1])[0], image)


def test_a_band_file_that_declares_nodata_is_not_read_past_it(tmp_path):
    image = values(1)
    image[0, 0, 0] = 999
    tiff(tmp_path / "B04.tif", image, nodata=999)
    with pytest.raises(BadPatchError, match="1 pixels as not measured"):
        read_band(tmp_path / "B04.tif", 16)
    tiff(tmp_path / "B03.tif", image, nodata=998)
    np.testing.assert_array_equal(read_band(tmp_path / "B03.tif", 16), image[0])
    image[0, 0, 0] = 0
    tiff(tmp_path / "B02.tif", image, nodata=0, compress="deflate")
    np.testing.assert_array_equal(read_band(tmp_path / "B02.tif", 16), image[0])


# Places


def at(transform, col, row):
    return transform.a * col + transform.b * row + transform.c, transform.d * col + transform.e * row + transform.f


def plane(transform):
    """Control points of a transform at an image's corners."""
    return [GroundControlPoint(row, col, *at(transform, col, row)) for row in (0, 16) for col in (0, 16)]


TURN = GRID * Affine.rotation(30)
TURNED_CENTER = tuple(
    value[0] for value in to_degrees(32632, 500000 + 80 * (3**0.5 - 1) / 2, 5300000 - 80 * (3**0.5 + 1) / 2)
)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (UTM, (47.8542, 9.0011)),
        ({"crs": "EPSG:32632", "transform": TURN}, TURNED_CENTER),
        ({"crs": "EPSG:32632", "transform": Affine(10, 0, 500000, 0, 10, 5300000)}, (47.8557, 9.0011)),
        ({"crs": "EPSG:4326", "transform": from_origin(200, -15, 0.001, 0.001)}, (-15.008, -159.992)),
        ({"crs": "EPSG:4326", "transform": from_origin(-179.999, 1, 0.001, 0.001)}, (0.992, -179.991)),
        ({"gcps": plane(GRID), "crs": "EPSG:32632"}, (47.8542, 9.0011)),
        ({"gcps": plane(TURN), "crs": "EPSG:32632"}, TURNED_CENTER),
        ({"crs": "EPSG:3857", "transform": from_origin(1e6, 6e6, 10, 10)}, (47.3531, 8.9839)),
        ({"crs": "EPSG:4807", "transform": from_origin(3.0, 50.0, 0.01, 0.01)}, None),
        ({"crs": "EPSG:2263", "transform": from_origin(984250, 196850, 3, 3)}, (40.7069, -74.0)),
        ({}, None),
    ],
    ids=[
        "utm",
        "rotated",
        "south-up",
        "0-360",
        "date line",
        "points",
        "turned points",
        "mercator",
        "grads",
        "feet",
        "none",
    ],
)
def test_places_inside_files(tmp_path, options, place):
    path = tiff(tmp_path / "i.tif", values(1), **options)
    found = place_in(path, "i.tif")
    if options.get("crs") == "EPSG:4807":
        assert found is not None and abs(found[0] - 44.93) < 0.05 and abs(found[1] - 5.1) < 0.1
    elif place is None:
        assert found is None
    else:
        assert found == pytest.approx(place, abs=2e-3)


def test_rational_polynomials_and_cameras_say_places(tmp_path):
    linear = [0.0] * 20
    rpcs = RPC(
        height_off=0, height_scale=500, lat_off=48.0, lat_scale=0.1, line_off=8, line_scale=8,
        line_num_coeff=[0, 0, -1, *linear[3:]],
        line_den_coeff=[1, *linear[1:]], long_off=11.0, long_scale=0.1, samp_off=8, samp_scale=8,
        samp_num_coeff=[0, 1, *linear[2:]], samp_den_coeff=[1, *linear[1:]], err_bias=None, err_rand=None,
    )  # fmt: skip
    assert place_in(tiff(tmp_path / "i.tif", values(1), rpcs=rpcs), "i.tif") == pytest.approx((48, 11), abs=0.02)
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 36.0, 0.0)})
    Image.fromarray(values(3, dtype="uint8").transpose(1, 2, 0)).save(tmp_path / "i.jpg", exif=exif)
    assert place_in(tmp_path / "i.jpg", "i.jpg") == pytest.approx((-33.5, -70.6))


@pytest.mark.parametrize(
    "options",
    [
        {"crs": "EPSG:32632"},
        {"transform": GRID},
        {"crs": "EPSG:4978", "transform": from_origin(4e6, 7e5, 10, 10)},
        {"crs": 'LOCAL_CS["site",UNIT["metre",1]]', "transform": GRID},
        {"crs": "EPSG:32632", "transform": from_origin(9e9, 9e9, 10, 10)},
        {"crs": "EPSG:4326", "transform": from_origin(10, 95, 0.01, 0.01)},
        {"gcps": plane(GRID)[:2], "crs": "EPSG:32632"},
    ],
    ids=["no geotransform", "no projection", "geocentric", "local", "outside", "beyond the pole", "two points"],
)
def test_what_says_no_usable_place_is_counted_and_keeps_its_image(tmp_path, options):
    tiff(tmp_path / "i.tif", values(), **options)
    tiff(tmp_path / "j.tif", values())
    summary, store = manifest(tmp_path, ["i.tif,A,train", "j.tif,B,train"], "path,label,split")
    assert summary.errors == {"bad_coordinates": 1}
    assert np.isnan(store.column("lat")).all() and store.column("split_official").tolist() == [0, 0]


def test_files_beside_images_are_never_read_and_told_once(tmp_path):
    Image.fromarray(values(3, dtype="uint8").transpose(1, 2, 0)).save(tmp_path / "i.png")
    (tmp_path / "i.pgw").write_text("0.1\n0\n0\n-0.1\n11\n48\n")
    (tmp_path / "i.png.aux.xml").write_text("<PAMDataset><SRS>EPSG:4326</SRS></PAMDataset>")
    tiff(tmp_path / "j.tif", values(3, dtype="uint8"))
    (tmp_path / "j.tfw").write_text("10\n0\n0\n-10\n500000\n5300000\n")
    summary, store = manifest(tmp_path, ["i.png,A", "j.tif,B"])
    assert summary.errors == {} and np.isnan(store.column("lat")).all()
    told = [note for note in summary.notes if "files beside them" in note]
    assert len(told) == 1 and told[0].startswith("2 images") and "counts as absent" in told[0]
    (tmp_path / "clean").mkdir()
    tiff(tmp_path / "clean" / "j.tif", values())
    summary, _ = manifest(tmp_path / "clean", ["j.tif,B"])
    assert not [note for note in summary.notes if "files beside them" in note]


# Hostile files


def vrt_of(path):
    return f"""<VRTDataset rasterXSize="16" rasterYSize="16"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>
<SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""


def test_other_formats_under_a_known_name_are_not_opened(tmp_path):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x"
        secret = tiff(tmp_path / "secret.tif", values(1))
        for text in (
            vrt_of(secret),
            vrt_of(f"/vsicurl/{url}.tif"),
            f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}</ServerUrl></Service></GDAL_WMS>',
        ):
            (tmp_path / "B04.tif").write_text(text)
            for read in (read_image, place_in, lambda path, _: read_band(path, 16)):
                with pytest.raises(BadPatchError, match="no GeoTIFF, PNG, JPEG or JPEG 2000"):
                    read(tmp_path / "B04.tif", "B04.tif")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
    with rasterio.open(vrt_of(secret)) as file:  # The control: GDAL alone does open it.
        assert file.read(1).any()


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    (tmp_path / "i.png").write_bytes(png_header(50_000, 50_000))
    shape = {"count": 1, "height": 60_000, "width": 60_000, "dtype": "uint16"}
    options = {"tiled": True, "sparse_ok": True, "compress": "deflate", "bigtiff": "yes"}
    with rasterio.open(tmp_path / "i.tif", "w", driver="GTiff", **shape, **options):
        pass
    (tmp_path / "huge.tif").touch()
    with (tmp_path / "huge.tif").open("r+b") as file:
        file.truncate(3 << 30)
    start = time.perf_counter()
    for name, words in (("i.png", "claims to be"), ("i.tif", "claims to be"), ("huge.tif", "larger than 128 MiB")):
        with pytest.raises(BadPatchError, match=words):
            read_image(tmp_path / name, name)
    assert time.perf_counter() - start < 5


def test_a_zip_that_claims_millions_of_members_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("2750/River/River_1.jpg", b"x")
    check_directory(path)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\5\6")
    struct.pack_into("<I", data, at + 12, 0x7FFFFFFF)
    path.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(str(path))):
        check_directory(path)


def test_a_member_that_claims_gigabytes_costs_its_own_patch(tmp_path):
    buffer = BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, "JPEG")
    with zipfile.ZipFile(tmp_path / "E.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("2750/River/River_1.jpg", buffer.getvalue())
        file.writestr("2750/River/River_2.jpg", bytes(20 << 20))
    summary = convert_archive("eurosat", tmp_path / "E.zip", tmp_path / "e.zarr", Options(workers=0))
    assert summary.errors == {"unreadable": 1}


def test_few_modules_open_foreign_images():
    package = Path(__file__).parents[2] / "stssl"
    opens = re.compile(r"rasterio\.open\(|Image\.open\(|\.open\(driver")
    users = {path.name for path in package.rglob("*.py") if opens.search(path.read_text())}
    assert users - {"rasters.py", "map_file.py", "layers.py"} == {
        "images.py",
        "scene_files.py",
    }  # each chooses the driver itself
