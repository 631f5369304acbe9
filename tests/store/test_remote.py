import dirty
import numpy as np
import pytest
from s3_server import environment, s3_server

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.base import remote
from stssl.base.errors import DataError
from stssl.store.store import Store

pytest.importorskip("obstore")
HERE = Options(workers=0, shard=8)


@pytest.fixture
def server(monkeypatch):
    """An S3 server on loopback, and the environment that leads to it."""
    remote.bucket.cache_clear()
    with s3_server() as running:
        for name, value in environment(running).items():
            monkeypatch.setenv(name, value)
        yield running
    remote.bucket.cache_clear()


@pytest.fixture
def archive(tmp_path):
    return dirty.clean(tmp_path / "archive", 20)


def test_a_store_in_s3_is_the_one_on_a_disk(server, archive, tmp_path):
    url = "s3://bucket/some/store.zarr"
    summary = convert_archive("bigearthnet-v1", archive, url, HERE)
    convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", HERE)
    assert (summary.converted, summary.report) == (3, "s3://bucket/some/store.zarr.errors.csv")
    local = {
        f"bucket/some/{path.relative_to(tmp_path)}": path.read_bytes()
        for path in tmp_path.glob("store.zarr*/**/*")
        if path.is_file()
    }
    local["bucket/some/store.zarr.errors.csv"] = (tmp_path / "store.zarr.errors.csv").read_bytes()
    assert server.objects == local
    near, far = Store.open(tmp_path / "store.zarr"), Store.open(url)
    assert far.fingerprint == near.fingerprint
    rows = np.array([19, 3, 3])
    for name, block in far.reader(far.bands).read(rows).items():
        np.testing.assert_array_equal(block, near.reader(near.bands).read(rows)[name])
    assert verify_store(url, archive).problems == ()


def test_requests_that_fail_are_tried_again(server, archive):
    server.failures = 2
    convert_archive("bigearthnet-v1", archive, "s3://bucket/store.zarr", HERE)
    assert Store.open("s3://bucket/store.zarr").size == 20


def test_an_interrupted_conversion_continues(server, archive, monkeypatch):
    from stssl.store.writer import Writer

    write = Writer.write_shard

    def stop(self, shard, *rest):
        if shard == 2:
            raise KeyboardInterrupt
        write(self, shard, *rest)

    monkeypatch.setattr(Writer, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_archive("bigearthnet-v1", archive, "s3://bucket/store.zarr", HERE)
    with pytest.raises(DataError, match="was not finished"):
        Store.open("s3://bucket/store.zarr")
    monkeypatch.setattr(Writer, "write_shard", write)
    assert convert_archive("bigearthnet-v1", archive, "s3://bucket/store.zarr", HERE).converted == 1
    assert not [key for key in server.objects if ".work" in key]


def test_a_whole_bucket_is_no_place_for_a_store(server, archive):
    with pytest.raises(DataError, match=r"s3://bucket is a whole bucket. Give a path in it"):
        convert_archive("bigearthnet-v1", archive, "s3://bucket", HERE)
    assert not server.objects


def test_no_store_there(server):
    with pytest.raises(DataError, match=r"there is no store at s3://bucket/nowhere.zarr"):
        Store.open("s3://bucket/nowhere.zarr")


def test_wrong_credentials_are_said_to_be_wrong(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    with pytest.raises(DataError, match=r"access is denied .*Set the provider's variables .for S3: AWS_ACCESS_KEY_ID"):
        Store.open("s3://bucket/store.zarr")


def test_missing_credentials_are_said_to_be_missing(server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", environment(server)["AWS_ENDPOINT_URL"])
    monkeypatch.setitem(remote.RETRY, "max_retries", 0)
    with pytest.raises(DataError, match=r"there are no credentials. Set the provider's variables"):
        Store.open("s3://bucket/store.zarr")


def test_other_urls_are_refused():
    with pytest.raises(DataError, match=r"ftp://host/store is not a URL that can be used. Give a local path, or s3://"):
        Store.open("ftp://host/store")
