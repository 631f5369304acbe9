"""Serve Google's protocol for objects that gcp-storage-emulator keeps.

obstore lists and asks for objects by Google's XML interface. The emulator has only the upload and download of that
interface, without entity tags. So this server stands before it: it answers by the emulator's objects.
"""

import json
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from s3_server import S3Server


class EmulatorObjects(MutableMapping[str, bytes]):
    """Hold the objects of an emulator, by `bucket/key`. Empty ones stay here, since the emulator takes none."""

    def __init__(self, url: str, bucket: str) -> None:
        self.url, self.bucket = url, bucket
        self.empty: set[str] = set()
        self.ask("/storage/v1/b?project=test", json.dumps({"name": bucket}).encode(), "POST")

    def ask(self, path: str, data: bytes | None = None, method: str = "GET") -> bytes:
        kind = {"Content-Type": "application/json" if method == "POST" else "application/octet-stream"}
        with urlopen(Request(self.url + path, data, kind, method=method)) as answer:
            return bytes(answer.read())

    def __getitem__(self, key: str) -> bytes:
        if key in self.empty:
            return b""
        try:
            return self.ask(f"/{quote(key)}")
        except HTTPError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, body: bytes) -> None:
        if body:
            self.empty.discard(key)
            self.ask(f"/{quote(key)}", body, "PUT")
        else:
            self.pop(key, None)
            self.empty.add(key)

    def __delitem__(self, key: str) -> None:
        bucket, _, name = key.partition("/")
        if key not in set(self):
            raise KeyError(key)
        if key in self.empty:
            self.empty.discard(key)
            return
        self.ask(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", method="DELETE")

    def __iter__(self) -> Iterator[str]:
        found = json.loads(self.ask(f"/storage/v1/b/{self.bucket}/o"))
        return iter([*(f"{self.bucket}/{item['name']}" for item in found.get("items", [])), *self.empty])

    def __len__(self) -> int:
        return len(list(iter(self)))


@contextmanager
def gcs_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run an emulator with the bucket `bucket` and the server before it, and set the environment for its clients."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    running = emulator.create_server("localhost", 0, in_memory=True)
    running.start()
    port = running._api._httpd.socket.getsockname()[1]
    server = S3Server("")
    server.objects = EmulatorObjects(f"http://localhost:{port}", "bucket")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    about = {"gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}", "disable_oauth": True}
    account = folder / "account.json"
    account.write_text(json.dumps(about | {"client_email": "", "private_key": "", "private_key_id": ""}))
    for name, value in {"SERVICE_ACCOUNT": str(account), "SKIP_SIGNATURE": "true", "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"GOOGLE_{name}", value)
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        running.stop()
