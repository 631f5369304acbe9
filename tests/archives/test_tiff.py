import struct

import numpy as np
import pytest
import rasterio
from dirty import write_tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from real import real_data

from stssl.archives.images import read_image
from stssl.archives.tiff import read_band, strip_spans, utm_corner
from stssl.store.schema import BadPatchError

OPTIONS = {
    "plain": {},
    "one strip": {"blockysize": 40},
    "thin strips": {"blockysize": 3},
    "deflate": {"compress": "deflate"},
    "predictor": {"compress": "lzw", "predictor": 2},
    "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "big endian": {"ENDIANNESS": "BIG"},
    "bigtiff": {"BIGTIFF": "YES"},
}
DIRECT = ("plain", "one strip", "thin strips")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(OPTIONS)),
    st.sampled_from([7, 40, 120]),
    st.sampled_from(["uint16", "int16"]),
    st.integers(0, 9),
)
def test_direct_reads_equal_rasterio(tmp_path, kind, size, dtype, seed):
    pixels = np.random.default_rng(seed).integers(0, 30000, (1, size, size)).astype(dtype)
    path = tmp_path / "image.tif"
    write_tiff(path, pixels, **OPTIONS[kind])
    direct = strip_spans(path.read_bytes())
    with rasterio.open(path) as file:
        truth = file.read(1)
    if direct is not None:
        np.testing.assert_array_equal(direct, truth)
        assert direct.dtype == truth.dtype
    if dtype == "uint16":
        np.testing.assert_array_equal(read_band(path, size), truth)


@pytest.mark.parametrize("kind", OPTIONS)
def test_only_plain_strips_are_read_directly(kind, tmp_path):
    write_tiff(tmp_path / "image.tif", np.ones((1, 40, 40), np.uint16), **OPTIONS[kind])
    assert (strip_spans((tmp_path / "image.tif").read_bytes()) is not None) == (kind in DIRECT)


@pytest.mark.parametrize("shape", [(2, 40, 40), (1, 40, 41)])
def test_other_shapes_are_refused(shape, tmp_path):
    write_tiff(tmp_path / "image.tif", np.ones(shape, np.uint16))
    with pytest.raises(BadPatchError, match=r"2 bands of uint16|41x40 pixels, not 40x40"):
        read_band(tmp_path / "image.tif", 40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.binary(min_size=1, max_size=8))
def test_damage_never_passes_as_other_pixels_of_another_size(tmp_path, place, garbage):
    """Whatever bytes change or are cut, the result is [40, 40] or an error: never a crash."""
    path, good = tmp_path / "image.tif", tmp_path / "good.tif"
    if not good.exists():
        write_tiff(good, np.full((1, 40, 40), 7, np.uint16))
    whole = good.read_bytes()
    for data in (whole[:place], whole[:place] + garbage + whole[place + len(garbage) :]):
        path.write_bytes(data)
        try:
            assert read_band(path, 40).shape == (40, 40)
        except BadPatchError as problem:
            assert problem.code in ("unreadable", "wrong_size")


def test_a_truncated_file_is_unreadable(tmp_path):
    write_tiff(tmp_path / "image.tif", np.ones((1, 40, 40), np.uint16))
    data = (tmp_path / "image.tif").read_bytes()
    (tmp_path / "image.tif").write_bytes(data[:-100])
    with pytest.raises(BadPatchError, match=r"image.tif") as caught:
        read_band(tmp_path / "image.tif", 40)
    assert caught.value.code == "unreadable"


def test_the_corner_is_rasterios(tmp_path):
    write_tiff(tmp_path / "image.tif", np.ones((1, 40, 40), np.uint16))
    assert utm_corner((tmp_path / "image.tif").read_bytes()) == (32633, 4e5, 5e6)
    assert utm_corner(b"II*\0" + struct.pack("<I", 8) + bytes(20)) is None


def test_every_real_file(tmp_path):
    folder = real_data("bigearthnet-v1").parent
    found = [path for name in ("bigearthnet-v1", "bigearthnet-v2") for path in (folder / name).rglob("*.tif")]
    direct = 0
    for path in found:
        with rasterio.open(path) as file:
            truth, transform, epsg = file.read(1), file.transform, file.crs.to_epsg()
        np.testing.assert_array_equal(read_band(path, len(truth)), truth)
        assert utm_corner(path.read_bytes()) == (epsg, transform.c, transform.f)
        direct += strip_spans(path.read_bytes()) is not None
    assert direct == len(found) - 1, "all but the compressed reference map"


@pytest.mark.parametrize(("tag", "value"), [(277, 50177), (257, 60000), (257, 2**31 - 1), (256, 2**20)])
def test_a_header_that_claims_a_giant_is_refused_at_once(tag, value, tmp_path):
    """One changed byte of a plain file: GDAL would fill what is not there with zeros, for minutes."""
    write_tiff(tmp_path / "image.tif", np.ones((1, 40, 40), np.uint16))
    data = bytearray((tmp_path / "image.tif").read_bytes())
    assert read_band(tmp_path / "image.tif", 40).shape == (40, 40)
    (start,) = struct.unpack_from("<I", data, 4)
    entry = next(place for place in range(start + 2, len(data), 12) if struct.unpack_from("<H", data, place) == (tag,))
    struct.pack_into("<HHII", data, entry, tag, 3 if value < 2**16 else 4, 1, value)
    (tmp_path / "image.tif").write_bytes(data)
    with pytest.raises(BadPatchError):
        read_band(tmp_path / "image.tif", 40)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_truncated_images_are_unreadable(ending, tmp_path):
    """GDAL's fast way with PNGs delivers what memory held before, without an error."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = tmp_path / f"image.{ending}"
    Image.fromarray(pixels).save(path)
    whole = read_image(path, path.name).pixels
    assert whole.shape == (3, 64, 64) and (ending == "jpg" or (whole == pixels.transpose(2, 0, 1)).all())
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(BadPatchError):
            read_image(path, path.name)
