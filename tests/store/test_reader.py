import gc
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, GzipCodec

from stssl.base.errors import DataError
from stssl.store import shards
from stssl.store.encode import encode_shard
from stssl.store.reader import Stored, StoreReader
from stssl.store.shard_layout import direct_layout
from stssl.store.shards import ShardedArray

BANDS = ("B04", "B03", "B02", "B08")
CODECS = {
    "none": None,
    "lz4": {"cname": "lz4", "shuffle": "bitshuffle"},
    "zstd": {"cname": "zstd", "shuffle": "shuffle"},
    "blosclz": {"cname": "blosclz", "shuffle": "noshuffle"},
    "gzip": GzipCodec(),
}


def write(
    folder, *, size=23, bands=3, side=12, shard=5, codec="lz4", block=0, dtype="uint16", holes=(), seed=0, **more
):
    """A store of one array, and the pixels that are in it."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (size, bands, side, side)).astype(dtype)
    pixels[list(holes)] = 0
    compressor = CODECS[codec]
    if isinstance(compressor, dict):
        compressor = BloscCodec(clevel=5, blocksize=block, **compressor)
    shards_ = {} if shard is None else {"shards": (shard, bands, side, side)}
    array = zarr.create_array(
        str(folder),
        name="b10",
        shape=pixels.shape,
        chunks=(1, bands, side, side),
        dtype=dtype,
        compressors=compressor,
        fill_value=0,
        **shards_,
        **more,
    )
    array[:] = pixels
    return pixels


def reader(folder, pixels, bands, **options):
    return StoreReader(
        str(folder), {"b10": Stored(BANDS[: pixels.shape[1]], pixels.shape, pixels.dtype)}, bands, **options
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_direct_reads_equal_zarr_on_any_layout(tmp_path_factory, data):
    draw = data.draw
    bands = draw(st.integers(1, 4))
    side = draw(st.sampled_from([8, 12, 40]))
    options = {
        "size": draw(st.integers(1, 30)),
        "bands": bands,
        "side": side,
        "shard": draw(st.sampled_from([1, 3, 8, None])),
        "codec": draw(st.sampled_from(list(CODECS))),
        "dtype": draw(st.sampled_from(["uint8", "uint16"])),
        "seed": draw(st.integers(0, 9)),
    }
    options["block"] = draw(st.sampled_from([0, side * side * np.dtype(options["dtype"]).itemsize]))
    some = st.lists(st.integers(0, options["size"] - 1), max_size=20)
    # A whole shard of holes is a missing shard to the direct reader, so one patch of each is never a hole.
    options["holes"] = [row for row in draw(some) if row % (options["shard"] or 1)]
    folder = tmp_path_factory.mktemp("store")
    pixels = write(folder, **options)
    wanted = draw(st.lists(st.sampled_from(BANDS[:bands]), min_size=1, unique=True))
    rows = np.array(draw(some), np.int64)
    threads = draw(st.sampled_from([1, 3]))
    got = reader(folder, pixels, wanted, threads=threads).read(rows)["b10"]
    places = sorted(BANDS.index(band) for band in wanted)
    np.testing.assert_array_equal(got, pixels[rows][:, places])
    np.testing.assert_array_equal(got, reader(folder, pixels, wanted, direct=False).read(rows)["b10"])


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"codec": "none"}, True),
        ({"codec": "zstd"}, True),
        ({"codec": "gzip"}, False),
        ({"shard": None}, False),
        ({"dtype": "uint16", "chunk_key_encoding": {"name": "v2", "separator": "/"}}, False),
    ],
)
def test_only_known_layouts_take_the_direct_path(tmp_path, options, known):
    pixels = write(tmp_path, **options)
    assert (direct_layout(tmp_path / "b10") is not None) == known
    got = reader(tmp_path, pixels, BANDS[:3]).read(np.arange(len(pixels)))["b10"]
    np.testing.assert_array_equal(got, pixels)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_shards_that_we_encode_are_zarrs(tmp_path_factory, data):
    """Also where bands are blocks of their own, compressible or not."""
    draw = data.draw
    codec, bands = draw(st.sampled_from(["lz4", "zstd", None])), draw(st.integers(1, 4))
    side, capacity = draw(st.sampled_from([8, 92, 120])), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pixels = rng.integers(0, 500, (capacity - 1, bands, side, side)).astype("uint16")
    for row in range(len(pixels)):
        scale = draw(st.sampled_from(["zero", "flat", "noise", "signal", "mixed"]))
        if scale in ("zero", "flat"):
            pixels[row] = 0 if scale == "zero" else 7
        if scale in ("noise", "mixed"):
            some = slice(None) if scale == "noise" else slice(0, 1)
            pixels[row, some] = rng.integers(0, 65536, pixels[row, some].shape)
    folder = tmp_path_factory.mktemp("store")
    compressor = BloscCodec(cname=codec, shuffle="bitshuffle") if codec else None
    zarr.create_array(
        str(folder),
        name="b10",
        shape=pixels.shape,
        chunks=(1, bands, side, side),
        shards=(capacity, bands, side, side),
        dtype="uint16",
        compressors=compressor,
        fill_value=0,
    )
    shard_file(folder).parent.mkdir(parents=True)
    shard_file(folder).write_bytes(encode_shard(pixels, capacity, codec))
    np.testing.assert_array_equal(zarr.open_array(str(folder), path="b10", mode="r")[:], pixels)
    for first in range(bands):
        wanted = BANDS[:bands][: first + 1]
        got = reader(folder, pixels, wanted).read(np.arange(len(pixels)))["b10"]
        np.testing.assert_array_equal(got, pixels[:, : first + 1])


def test_a_prefix_of_bands_is_decoded_alone(tmp_path, monkeypatch):
    pixels = write(tmp_path, bands=4, side=120, size=5, shard=5)
    shard_file(tmp_path).write_bytes(encode_shard(pixels, 5, "lz4"))
    sizes, decode = [], shards.blosc.decompress
    monkeypatch.setattr(shards.blosc, "decompress", lambda data, out: sizes.append(out.nbytes) or decode(data, out))
    got = reader(tmp_path, pixels, BANDS[:3]).read(np.arange(5))["b10"]
    np.testing.assert_array_equal(got, pixels[:, :3])
    assert set(sizes) == {3 * 28800}


def test_buffers_are_filled_in_place(tmp_path):
    pixels = write(tmp_path)
    read = reader(tmp_path, pixels, ["B03"])
    buffers = {name: np.zeros(shape, dtype) for name, (shape, dtype) in read.shapes(4).items()}
    assert read.read(np.array([3, 3, 0, 22]), buffers)["b10"] is buffers["b10"]
    np.testing.assert_array_equal(buffers["b10"], pixels[[3, 3, 0, 22]][:, 1:2])


def test_rows_outside_are_refused(tmp_path):
    pixels = write(tmp_path)
    for row in (-1, 23):
        with pytest.raises(DataError, match=f"patch {row} is asked for, and the store has 23"):
            reader(tmp_path, pixels, BANDS[:3]).read(np.array([0, row]))


def test_a_reader_can_be_pickled_after_use(tmp_path):
    pixels = write(tmp_path)
    first = reader(tmp_path, pixels, BANDS[:3], threads=2)
    first.read(np.arange(9))
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(again.read(np.array([7]))["b10"], pixels[[7]])


def test_closing_frees_every_file(tmp_path):
    pixels = write(tmp_path, shard=2)
    gc.collect()
    opened, reserved = reader(tmp_path, pixels, BANDS[:3]), shards._Files.reserved
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened.read(np.arange(23))
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 12
    assert shards._Files.reserved == reserved + 12
    opened.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert shards._Files.reserved == reserved
    np.testing.assert_array_equal(opened.read(np.array([1]))["b10"], pixels[[1]])


def test_with_few_files_allowed_none_stays_open(tmp_path, monkeypatch):
    pixels = write(tmp_path, shard=2)
    monkeypatch.setattr(shards._Files, "reserve", lambda count: False)
    opened = reader(tmp_path, pixels, BANDS[:3])
    before = len(list(Path("/proc/self/fd").iterdir()))
    np.testing.assert_array_equal(opened.read(np.array([5, 22, 5]))["b10"], pixels[[5, 22, 5]])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_threads_may_share_a_reader(tmp_path):
    pixels = write(tmp_path, size=60)
    shared = reader(tmp_path, pixels, BANDS[:3], threads=2)
    wrong = []

    def work(seed):
        for rows in np.random.default_rng(seed).integers(0, 60, (40, 16)):
            wrong.extend([] if np.array_equal(shared.read(rows)["b10"], pixels[rows]) else [rows])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def shard_file(folder, shard=0):
    return Path(folder) / "b10" / "c" / str(shard) / "0" / "0" / "0"


def damaged(data, kind):
    spans = struct.unpack_from("<QQ", data, len(data) - 4 - 5 * 16)
    if kind == "index":
        return data[:-20] + b"\xff" + data[-19:]
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "header":
        return data[: spans[0] + 12] + b"\xff\xff\xff\x7f" + data[spans[0] + 16 :]
    return data[: spans[0] + 40] + bytes(60) + data[spans[0] + 100 :]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("index", "b10/c/0/0/0/0 is truncated or damaged: its index fails the checksum"),
        ("truncated", "b10/c/0/0/0/0 is truncated or damaged"),
        ("header", "patch 0 in .*b10/c/0/0/0/0 cannot be decoded .its header is damaged"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, kind, words):
    pixels = write(tmp_path)
    path = shard_file(tmp_path)
    path.write_bytes(damaged(path.read_bytes(), kind))
    with pytest.raises(DataError, match=words):
        reader(tmp_path, pixels, BANDS[:3]).read(np.array([0]))
    np.testing.assert_array_equal(reader(tmp_path, pixels, BANDS[:3]).read(np.array([6]))["b10"], pixels[[6]])


def test_a_missing_shard_is_an_error_and_not_zeros(tmp_path):
    pixels = write(tmp_path)
    shard_file(tmp_path, 1).unlink()
    with pytest.raises(DataError, match=r"cannot read .*b10/c/1/0/0/0: No such file"):
        reader(tmp_path, pixels, BANDS[:3]).read(np.array([6]))


def test_the_index_of_all_bigearthnet_is_small(tmp_path, monkeypatch):
    """590,326 patches: what a reader holds beside the batches."""
    write(tmp_path, size=4, shard=2)
    layout = direct_layout(tmp_path / "b10")
    big = ShardedArray(tmp_path / "b10", type(layout)((590_326, *layout.shape[1:]), 512, layout.dtype, True, 0))
    monkeypatch.setattr(shards._Files, "reserve", lambda count: False)
    monkeypatch.setattr(ShardedArray, "_open_shard", lambda self, shard, index: -1)
    index, files = big._open(np.arange(1))
    assert 3 * (index.nbytes + files.nbytes) < 30e6
