"""Object stores that fail, break off, refuse or fall silent: tried again, or one line that says so."""

import shutil
import time
from datetime import timedelta

import dirty
import numpy as np
import pytest
from s3_server import serving

from stssl.archives.conversion import Options, convert_archive
from stssl.base import remote
from stssl.base.errors import DataError
from stssl.base.remote import RemoteFiles
from stssl.store.disk import DiskCache
from stssl.store.store import Store

pytest.importorskip("obstore")
URL = "s3://bucket/store.zarr"
QUICK = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=2),
    "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.01), "max_backoff": timedelta(seconds=0.1)},
}


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    convert_archive(
        "bigearthnet-v1", dirty.clean(folder / "archive", 16), folder / "store.zarr", Options(workers=0, shard=8)
    )
    return folder / "store.zarr"


@pytest.fixture
def server(monkeypatch, near):
    monkeypatch.setattr(remote, "RETRY", QUICK)
    monkeypatch.setenv("STSSL_REMOTE_TIMEOUT", "0.5")
    with serving(near, "store.zarr", monkeypatch) as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", 1 << 30)


USES = {
    "open": lambda cache: Store.open(URL),
    "shard": lambda cache: _reader(cache).read(np.arange(8)),
    "patch": lambda cache: _reader(cache).read(np.array([3])),
    "column": lambda cache: _store().column("lat"),
    "listing": lambda cache: RemoteFiles(URL).names(),
    "writing": lambda cache: RemoteFiles(URL).write("new", b"12"),
}


def _store():
    return STORES[0]


def _reader(cache):
    return _store().reader(("B04",), cache=cache)


STORES: list[Store] = []


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("silent", "it does not answer"),
        (500, "tried again several times"),
        (503, "tried again several times"),
        (403, "access is denied"),
    ],
)
def test_what_stays_wrong_is_said_soon(kind, words, use, server, cache):
    STORES[:] = [Store.open(URL)]
    server.kind, server.failures = kind, 1000
    start = time.monotonic()
    with pytest.raises(DataError, match=words) as error:
        USES[use](cache)
    assert time.monotonic() - start < 15 and "\n" not in str(error.value) and "s3://bucket" in str(error.value)


@pytest.mark.parametrize("use", ["open", "shard", "patch", "column"])
@pytest.mark.parametrize("kind", ["silent", "short", "reset", 500])
def test_what_goes_wrong_once_is_tried_again(kind, use, server, cache, near):
    STORES[:] = [Store.open(URL)]
    server.kind, server.failures = kind, 1
    got = USES[use](cache)
    assert server.failures == 0
    if use in ("shard", "patch"):
        rows = np.arange(8) if use == "shard" else np.array([3])
        np.testing.assert_array_equal(got["b10"], Store.open(near).reader(("B04",)).read(rows)["b10"])


@pytest.mark.parametrize("kind", ["short", "reset"])
def test_answers_that_always_break_off_are_an_error(kind, server, cache):
    STORES[:] = [Store.open(URL)]
    server.kind, server.failures = kind, 1000
    for use in ("shard", "patch", "column"):
        with pytest.raises(DataError, match="s3://bucket"):
            USES[use](cache)


def test_a_bucket_that_is_not_there(server):
    with pytest.raises(DataError, match=r"there is no store at s3://nowhere/store.zarr"):
        Store.open("s3://nowhere/store.zarr")


def test_lost_columns_and_shards_far_away_are_errors_on_every_way(server, cache):
    for name in ("lat/c/0", "b10/c/1/0/0/0"):
        del server.objects[f"bucket/store.zarr/{name}"]
    store = Store.open(URL)
    with pytest.raises(DataError, match="lat is not the column that was converted"):
        store.column("lat")
    for own in (cache, None):
        store.reader(("B04",), cache=own).read(np.arange(8))
        with pytest.raises(DataError, match="b10/c/1/0/0/0 is missing"):
            store.reader(("B04",), cache=own).read(np.arange(16))


@pytest.mark.parametrize("rows", [np.arange(8), np.array([1])])
def test_a_changed_patch_is_not_sealed_by_the_cache(rows, server, cache, tmp_path):
    key = "bucket/store.zarr/b10/c/0/0/0/0"
    whole = bytearray(server.objects[key])
    start = int(np.frombuffer(whole[-132:-4], "<u8").reshape(-1, 2)[1, 0])
    server.objects[key] = bytes(whole[: start + 30] + bytes([whole[start + 30] ^ 4]) + whole[start + 31 :])
    with pytest.raises(DataError, match=r"patch 1 in .* fails its checksum"):
        Store.open(URL).reader(("B04",), cache=cache).read(rows)
    assert cache.used() == 0
    server.objects[key] = bytes(whole)
    Store.open(URL).reader(("B04",), cache=cache).read(rows)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9"])
def test_a_time_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("STSSL_REMOTE_TIMEOUT", text)
    with pytest.raises(DataError, match="STSSL_REMOTE_TIMEOUT"):
        remote.patience()


def test_exchanged_shards_are_found_on_every_way(server, cache, near, tmp_path):
    one, other = (f"bucket/store.zarr/b10/c/{number}/0/0/0" for number in (0, 1))
    server.objects[one], server.objects[other] = server.objects[other], server.objects[one]
    copy = shutil.copytree(near, tmp_path / "copy.zarr")
    (copy / "b10/c/0/0/0/0").write_bytes(server.objects[one])
    for reader in (
        Store.open(URL).reader(("B04",), cache=cache),
        Store.open(URL).reader(("B04",)),
        Store.open(copy).reader(("B04",), direct=False),
    ):
        for rows in (np.arange(8), np.array([2])):
            with pytest.raises(DataError, match="b10/c/0/0/0/0 is not the file that was converted"):
                reader.read(rows)
