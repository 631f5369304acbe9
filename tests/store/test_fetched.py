"""Stores in an object store, read through the cache on disk: what is fetched, kept, checked and thrown away."""

import os

import dirty
import numpy as np
import pytest
from processes import CONTEXT
from s3_server import environment, serving

from stssl.archives.conversion import Options, convert_archive
from stssl.base.errors import DataError
from stssl.store.disk import TAIL, DiskCache
from stssl.store.store import Store

pytest.importorskip("obstore")
URL = "s3://bucket/store.zarr"
ROWS = np.array([19, 3, 3, 8, 0, 31])


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return dirty.clean(tmp_path_factory.mktemp("fetched") / "archive", 32)


@pytest.fixture(scope="module")
def reversed_archive(tmp_path_factory):
    """Of other pixels."""
    return dirty.clean(tmp_path_factory.mktemp("other") / "archive", 32, seed=5)


@pytest.fixture(scope="module", params=["lz4", "none"])
def near(archive, tmp_path_factory, request):
    """The store on a disk, 4 shards of 8 patches."""
    path = tmp_path_factory.mktemp("near") / "store.zarr"
    convert_archive("bigearthnet-v1", archive, path, Options(workers=0, shard=8, codec=request.param))
    return path


@pytest.fixture
def server(monkeypatch, near):
    """An S3 server on loopback that holds the store."""
    with serving(near, "store.zarr", monkeypatch) as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", 1 << 30)


def asked(server, what="/c/"):
    """How often pixels were asked for since the last call."""
    count = sum(what in path for _, path in server.requests)
    server.requests.clear()
    return count


def check(near, reader, bands, rows=ROWS):
    """The reader delivers what the store on the disk has."""
    for name, block in reader.read(rows).items():
        np.testing.assert_array_equal(block, Store.open(near).reader(bands).read(rows)[name])


@pytest.mark.parametrize("bands", [("B04", "B03", "B02"), ("B08", "B01"), None], ids=["rgb", "two", "all"])
def test_fetched_patches_are_those_on_the_disk(server, near, cache, bands):
    store = Store.open(URL)
    bands = bands or store.bands
    check(near, store.reader(bands, cache=cache), bands)
    check(near, store.reader(bands, cache=cache, threads=3), bands, np.arange(32))
    through_zarr = store.reader(bands).read(ROWS)
    for name, block in store.reader(bands, cache=cache).read(ROWS).items():
        np.testing.assert_array_equal(block, through_zarr[name])


def test_single_patches_are_fetched_alone_and_once(server, near, cache):
    store = Store.open(URL)
    reader = store.reader(("B04",), cache=cache)
    asked(server)
    one = np.array([5])
    check(near, reader, ("B04",), one)
    assert asked(server) == 2  # the index, and the patch
    assert cache.used() < (near / "b10" / "c" / "0" / "0" / "0" / "0").stat().st_size / 2
    check(near, reader, ("B04",), one)
    check(near, store.reader(("B04",), cache=cache), ("B04",), np.array([5, 5]))
    assert asked(server) == 1  # another reader asks for the index; the patch is kept
    check(near, reader, ("B04",), np.array([5, 6]))
    assert asked(server) == 1  # two patches of eight are much: the shard


def test_whole_shards_are_fetched_ahead(server, near, cache):
    reader = Store.open(URL).reader(("B04",), cache=cache)
    asked(server)
    reader.fetch(np.array([0, 7, 8]))
    assert asked(server) == 2
    check(near, reader, ("B04",), np.arange(16))
    assert asked(server) == 0
    reader.fetch(np.array([0, 20]), wait=False)
    reader.fetch(np.array([20]))
    assert asked(server) == 1


def test_damaged_files_are_fetched_again(server, near, cache, tmp_path):
    Store.open(URL).reader(("B04",), cache=cache).read(np.arange(8))
    (file,) = (tmp_path / "cache" / "files").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:100] + b"\0" + whole[101:-1] + b"x", whole[:-5], b"", whole[: TAIL - 1]):
        file.write_bytes(damaged)
        asked(server)
        fresh = DiskCache(tmp_path / "cache", 1 << 30)
        check(near, Store.open(URL).reader(("B04",), cache=fresh), ("B04",), np.arange(8))
        assert asked(server) == 1 and file.read_bytes() == whole
    check(near, Store.open(URL).reader(("B04",), cache=DiskCache(tmp_path / "cache", 1 << 30)), ("B04",), np.arange(8))
    assert asked(server) == 0  # the control: a whole file is not


def test_the_cache_stays_within_its_bound(server, near, tmp_path):
    size = max(path.stat().st_size for path in (near / "b10" / "c").rglob("*") if path.is_file()) + TAIL
    small = DiskCache(tmp_path / "small", 2 * size)
    reader = Store.open(URL).reader(("B04",), cache=small)
    for start in (0, 8, 0, 16, 24, 0):
        check(near, reader, ("B04",), np.arange(start, start + 8))
        assert 0 < small.used() <= 2 * size
    asked(server)
    check(near, reader, ("B04",), np.arange(8))
    assert asked(server) == 0  # used last
    check(near, reader, ("B04",), np.arange(16, 24))
    assert asked(server) == 1  # used longest ago, and thrown away
    with pytest.raises(DataError, match=r"data.cache_bytes 1,000 is less than one file"):
        Store.open(URL).reader(("B04",), cache=DiskCache(tmp_path / "tiny", 1000)).read(np.arange(8))


def test_files_of_a_killed_writer_are_cleared_away(server, near, cache, tmp_path):
    (tmp_path / "cache" / "files").mkdir(parents=True)
    left = tmp_path / "cache" / "files" / ".b10-x-s0.partial"
    left.write_bytes(b"half")
    check(near, Store.open(URL).reader(("B04",), cache=cache), ("B04",), np.arange(8))
    assert not left.exists()


def read_in_process(folder, variables, barrier):
    os.environ.update(variables)
    barrier.wait(120)
    Store.open(URL).reader(("B04",), cache=DiskCache(folder, 1 << 30)).read(np.arange(32))


def test_processes_share_the_cache(server, tmp_path):
    """Three processes read all four shards at the same time; each shard is fetched once."""
    barrier = CONTEXT.Barrier(3)
    server.requests.clear()
    arguments = (tmp_path / "cache", environment(server), barrier)
    processes = [CONTEXT.Process(target=read_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert asked(server) == 4


def test_control_processes_with_caches_of_their_own_fetch_all(server, near, tmp_path):
    asked(server)
    for number in range(2):
        reader = Store.open(URL).reader(("B04",), cache=DiskCache(tmp_path / str(number), 1 << 30))
        check(near, reader, ("B04",), np.arange(32))
    assert asked(server) == 8


def test_another_store_at_the_same_url_is_not_mixed_up(server, near, cache, reversed_archive):
    before = Store.open(URL).reader(("B04",), cache=cache).read(np.arange(8))["b10"]
    other = near.parent / "other.zarr"
    if not other.exists():
        convert_archive("bigearthnet-v1", reversed_archive, other, Options(workers=0, shard=8))
    for path in other.rglob("*"):
        if path.is_file():
            server.objects[f"bucket/store.zarr/{path.relative_to(other)}"] = path.read_bytes()
    after = Store.open(URL).reader(("B04",), cache=cache).read(np.arange(8))["b10"]
    assert not np.array_equal(before, after)


def test_failing_requests_are_tried_again(server, near, cache):
    reader = Store.open(URL).reader(("B04",), cache=cache)
    server.failures = 2
    check(near, reader, ("B04",), np.arange(8))


def test_missing_shards_and_refused_credentials_are_said(server, cache, monkeypatch):
    reader = Store.open(URL).reader(("B04",), cache=cache)
    del server.objects["bucket/store.zarr/b10/c/2/0/0/0"]
    for rows in (np.arange(16, 24), np.array([17])):
        with pytest.raises(DataError, match=r"s3://bucket/store.zarr/b10/c/2/0/0/0 is missing"):
            reader.read(rows)
    server.key = "another"
    with pytest.raises(DataError, match="access is denied"):
        reader.read(np.arange(8))


def test_what_was_on_its_way_at_the_end_is_fetched_the_next_time(server, cache):
    """Threads that are stopped forget what they were asked for."""
    (array,) = Store.open(URL).reader(("B04",), cache=cache)._fetched()
    array._coming.add(2)
    array.close()
    asked(server)
    array.fetch(np.array([16]), False)
    array._threads().shutdown()
    assert asked(server) == 1
    array.close()
