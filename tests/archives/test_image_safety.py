"""What a hostile file can make a conversion do: read nothing else, send nothing, and take little memory and time."""

import io
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from dirty import write_tiff

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.images import read_bytes, read_image
from stssl.base.errors import DataError
from stssl.store.schema import BadPatchError


def png(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def sparse(width, height, **options):
    with rasterio.MemoryFile() as memory:
        shape = {"width": width, "height": height, "count": 1, "dtype": "uint16"}
        with memory.open(driver="GTiff", SPARSE_OK=True, compress="deflate", **shape, **options):
            pass
        return memory.read()


def jp2(width, height, tile):
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="JP2OpenJPEG", width=16, height=16, count=1, dtype="uint8") as file:
            file.write(np.ones((1, 16, 16), np.uint8))
        data = bytearray(memory.read())
    place = data.find(b"\xff\x4f\xff\x51")
    struct.pack_into(">8I", data, place + 8, width, height, 0, 0, tile, tile, 0, 0)
    return bytes(data)


def jpeg(width, height):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "jpeg")
    data = bytearray(buffer.getvalue())
    place = data.find(b"\xff\xc0")
    struct.pack_into(">HH", data, place + 5, height, width)
    return bytes(data)


def huge_tile():
    data = bytearray(sparse(16, 16, tiled=True, blockxsize=16, blockysize=16))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, place)[0] in (322, 323):
            struct.pack_into("<HII", data, place + 2, 4, 1, 32768)
    return bytes(data)


def ring():
    """A TIFF whose list of images never ends."""
    data = bytearray(sparse(16, 16))
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    return bytes(data)


BOMBS = {
    "png": lambda: png(50000, 50000),
    "sparse tiff": lambda: sparse(100_000, 100_000, tiled=True, blockxsize=4096, blockysize=4096),
    "one row of a tiff": lambda: sparse(1, 2**31 - 2, blockysize=2**30),
    "tile of a tiff": huge_tile,
    "jpeg": lambda: jpeg(65000, 65000),
    "jpeg 2000": lambda: jp2(2**30, 2**30, 2**30),
    "tiles of jpeg 2000": lambda: jp2(8000, 8000, 32),
}


def test_colors_multiplied_with_their_alpha_are_refused():
    pixels = np.full((4, 16, 16), 200, np.uint8)
    pixels[3, :4] = 100
    for alpha in ("PREMULTIPLIED", "NON-PREMULTIPLIED"):
        with rasterio.MemoryFile() as memory:
            shape = {"width": 16, "height": 16, "count": 4, "dtype": "uint8", "photometric": "RGB"}
            with memory.open(driver="GTiff", alpha=alpha, **shape) as file:
                file.write(pixels)
            data = memory.read()
        if alpha == "PREMULTIPLIED":
            with pytest.raises(BadPatchError, match="multiplied with their transparency"):
                read_image(io.BytesIO(data), "i")
        else:
            assert read_image(io.BytesIO(data), "i").pixels.shape == (3, 16, 16), "control"


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_at_once(kind):
    data = BOMBS[kind]()
    assert len(data) < 200_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadPatchError, match=r"i: .*|i claims to be") as caught:
        read_image(io.BytesIO(data), "i")
    assert caught.value.code == "unreadable"
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_ring_of_images_ends():
    start = time.process_time()
    try:
        assert read_image(io.BytesIO(ring()), "i").pixels.shape == (1, 16, 16)
    except BadPatchError as problem:
        assert problem.code == "unreadable"
    assert time.process_time() - start < 1


def test_a_conversion_continues_after_a_bomb(tmp_path):
    write_tiff(tmp_path / "a.tif", np.ones((1, 40, 40), np.uint16))
    (tmp_path / "b.tif").write_bytes(png(50000, 50000))
    write_tiff(tmp_path / "c.tif", np.full((1, 40, 40), 2, np.uint16))
    (tmp_path / "m.csv").write_text("path,label\na.tif,A\nb.tif,A\nc.tif,B\n")
    assert convert_archive("manifest", tmp_path / "m.csv", tmp_path / "s.zarr", Options(workers=0)).errors == {
        "unreadable": 1
    }


def zipped(path, member, method=zipfile.ZIP_DEFLATED, size=1 << 29):
    with zipfile.ZipFile(path, "w", method) as file, file.open(member, "w") as inside:
        for _ in range(size >> 22):
            inside.write(bytes(1 << 22))
    return path


def test_members_of_zips_are_bounded_before_they_are_unpacked(tmp_path):
    path = zipped(tmp_path / "a.zip", "AnnualCrop/AnnualCrop_1.jpg")
    assert path.stat().st_size < 1 << 20
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError, match=r"no patch can be used \(0 of 1\).*unreadable: .* claims"):
        convert_archive("eurosat", path, tmp_path / "s.zarr", Options(workers=0))
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_output_has_no_bound_are_refused(method, tmp_path):
    path = zipped(tmp_path / "a.zip", "AnnualCrop/AnnualCrop_1.jpg", method, 1 << 22)
    with pytest.raises(DataError, match="packed by method"):
        convert_archive("eurosat", path, tmp_path / "s.zarr", Options(workers=0))


def test_only_files_of_bounded_size_are_read(tmp_path):
    with (tmp_path / "giant.tif").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(BadPatchError, match=r"no file of one patch"):
        read_bytes(tmp_path / "giant.tif", "giant.tif")
    with pytest.raises(BadPatchError, match=r"is not a file"):
        read_bytes(Path("/dev/zero"), "zero.tif")
