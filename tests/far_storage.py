"""Define fixtures with which tests use an S3 server of their own, as if each command ran on another machine."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from s3_server import S3Server, environment, s3_server

from stssl.base import lease, mirror, remote

BUCKET = "s3://bucket/runs"
QUICK = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=2),
    "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.01), "max_backoff": timedelta(seconds=0.1)},
}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Return a function after which this process has no copy of any result, like one on another machine."""
    count = iter(range(100))

    def forget() -> None:
        monkeypatch.setattr(mirror, "_MIRRORS", {})
        monkeypatch.setenv("STSSL_RUN_CACHE", str(tmp_path / f"machine{next(count)}"))

    forget()
    return forget


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]) -> Iterator[S3Server]:
    """Run an S3 server for results, and let clients give up after seconds. Tests of stores define servers with data."""
    monkeypatch.setattr(remote, "RETRY", QUICK)
    monkeypatch.setattr(mirror, "PAUSE_S", 0.1)
    for name, seconds in {"LOOK_S": 0.05, "EXPIRE_S": 0.3, "RENEW_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    remote.bucket.cache_clear()
    with s3_server() as running:
        for variable, value in environment(running).items():
            monkeypatch.setenv(variable, value)
        yield running
    remote.bucket.cache_clear()
