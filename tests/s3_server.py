"""Serve objects in memory by the part of the S3 protocol that a store needs, with failures on demand."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

import pytest

from stssl.base import remote


class S3Server(ThreadingHTTPServer):
    """Hold the objects of an S3 server in memory, and let requests fail on demand.

    Attributes:
        objects: Content by `bucket/key`.
        parts: Parts of uploads that have not ended yet, by upload and number.
        requests: Command and path of each request so far.
        removed: Keys of removed objects, in order.
        failures: Number of requests from now on that fail.
        kind: Kind of failure: a status code, `silent` (no answer), `short` or `reset` (half an answer).
        key: Access key that requests must have.
        refused: Methods that are not allowed, such as PUT of a bucket that may only be read.
        buckets: Names of the buckets that exist; None lets every name be a bucket.
        over: Event that is set when the server ends. It also ends requests without an answer.
    """

    def __init__(self, key: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.removed: list[str] = []
        self.parts: dict[tuple[str, int], bytes] = {}
        self.failures, self.key = 0, key
        self.refused: tuple[str, ...] = ()
        self.buckets: set[str] | None = None
        self.kind: int | str = 503
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Answer HTTP requests for objects with paths of the form /bucket/key."""

    server: S3Server
    protocol_version = "HTTP/1.1"
    breaks = ""

    def log_message(self, *args: object) -> None:
        """Log nothing, because the output of tests must stay readable."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        self.end_headers()
        if self.command == "HEAD":
            return
        if not self.breaks or len(body) < 2:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])  # the failure: the other half never comes
        self.wfile.flush()
        if self.breaks == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.breaks, self.close_connection = "", True

    def begin(self) -> str | None:
        """Start an answer. Return the object's key, or None if the request was refused or had to fail."""
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.server.requests.append((self.command, self.path))
        if self.server.failures > 0:
            self.server.failures -= 1
            if self.server.kind == "silent":
                self.server.over.wait(60)
                self.close_connection = True
                return None
            if isinstance(self.server.kind, int):
                self.answer(self.server.kind, b"<Error><Code>SlowDown</Code></Error>")
                return None
            self.breaks = self.server.kind
        if self.server.key not in self.headers.get("Authorization", ""):
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return None
        if self.command in self.server.refused:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return None
        key = unquote(urlsplit(self.path).path).lstrip("/")
        if self.server.buckets is not None and key.split("/")[0] not in self.server.buckets:
            self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            return None
        return key

    def do_PUT(self) -> None:
        key = self.begin()
        if not key:
            return
        query = parse_qs(urlsplit(self.path).query)
        if "partNumber" in query:
            self.server.parts[query["uploadId"][0], int(query["partNumber"][0])] = self.body
            self.answer(200, ETag=f'"{md5(self.body).hexdigest()}"')
            return
        if not self.condition_holds(self.server.objects.get(key)):
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        source = self.headers.get("x-amz-copy-source") or self.headers.get("x-goog-copy-source")
        copied = self.body if source is None else self.server.objects.get(unquote(source).lstrip("/"))
        if copied is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self.server.objects[key] = copied
        tag = md5(copied).hexdigest()
        body = b"" if source is None else f"<CopyObjectResult><ETag>{tag}</ETag></CopyObjectResult>".encode()
        self.answer(200, body, ETag=f'"{tag}"', x_goog_generation=generation_of(copied))

    def condition_holds(self, present: bytes | None) -> bool:
        """Return True if the object is as the request demands: absent, or with a certain content."""
        if self.headers.get("If-None-Match") == "*" and present is not None:
            return False
        tag = self.headers.get("If-Match")
        if tag is not None and (present is None or tag != f'"{md5(present).hexdigest()}"'):
            return False
        generation = self.headers.get("x-goog-if-generation-match")
        return generation is None or generation == generation_of(present)

    def remove(self, key: str) -> None:
        self.server.objects.pop(key, None)
        self.server.removed.append(key)

    def do_DELETE(self) -> None:
        if key := self.begin():
            self.remove(key)
            self.answer(204)

    def do_POST(self) -> None:
        """Delete several objects, which the request's body lists, or begin or end an upload in parts."""
        if key := self.begin():
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if "uploads" in query:
                number = f"upload{len(self.server.requests)}"
                return self.answer(200, f"<R><Bucket/><Key/><UploadId>{number}</UploadId></R>".encode())
            if "uploadId" in query:
                own = sorted(part for part in self.server.parts if part[0] == query["uploadId"][0])
                self.server.objects[key] = b"".join(self.server.parts.pop(part) for part in own)
                tag = md5(self.server.objects[key]).hexdigest()
                return self.answer(200, f"<R><ETag>{tag}</ETag></R>".encode())
            found = re.findall(r"<Key>(.*?)</Key>", self.body.decode())
            for name in found:
                self.remove(f"{key.split('/')[0]}/{unescape(name)}")
            gone = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in found)
            return self.answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key = self.begin()
        if key is None:
            return
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self.list(key.split("/")[0], query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        elif key not in self.server.objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send(self.server.objects[key])

    def send(self, body: bytes) -> None:
        about = {"ETag": f'"{md5(body).hexdigest()}"', "Last_Modified": formatdate(0, usegmt=True)}
        about["x_goog_generation"] = generation_of(body)
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(200, body, **about)
        if not body:
            return self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(body) - int(last)
        stop = min(int(last) + 1, len(body)) if first and last else len(body)
        about["Content_Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return self.answer(206, body[start:stop], **about)

    def list(self, bucket: str, prefix: str, delimiter: str) -> None:
        names = [key.removeprefix(f"{bucket}/") for key in sorted(self.server.objects)]
        entries, folders = [], set()
        for name in (name for name in names if name.startswith(prefix)):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                body = self.server.objects[f"{bucket}/{name}"]
                size, tag = len(body), f"<ETag>{md5(body).hexdigest()}</ETag>"
                date = "<LastModified>2020-01-01T00:00:00.000Z</LastModified>"
                entries.append(f"<Contents><Key>{escape(name)}</Key>{date}{tag}<Size>{size}</Size></Contents>")
        groups = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries + groups)}</ListBucketResult>"
        self.answer(200, text.encode(), Content_Type="application/xml")


def generation_of(body: bytes | None) -> str:
    """Return the number by which Google's protocol tells contents of an object apart; 0 for no object."""
    return "0" if body is None else str(int(md5(body).hexdigest()[:12], 16) + 1)


@contextmanager
def s3_server(key: str = "tester") -> Iterator[S3Server]:
    """Run an S3 server on this machine while the context lasts."""
    server = S3Server(key)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def environment(server: S3Server, key: str = "tester") -> dict[str, str]:
    """Return the environment variables that make S3 clients use this server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def serving(store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run an S3 server that holds a store as `s3://bucket/NAME`, and set the environment for its clients."""
    remote.bucket.cache_clear()
    with s3_server() as running:
        for variable, value in environment(running).items():
            monkeypatch.setenv(variable, value)
        for path in store.rglob("*"):
            if path.is_file():
                running.objects[f"bucket/{name}/{path.relative_to(store)}"] = path.read_bytes()
        yield running
    remote.bucket.cache_clear()
