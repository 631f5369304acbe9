"""Serve files over HTTP on this machine as Hugging Face does, and count the requests."""

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[tuple[str, Counter[str]]]:
    """Serve files, and yield the server's URL and the number of requests by method and path.

    Args:
        files: Contents of files by OWNER/NAME/FILE.
    """
    asked: Counter[str] = Counter()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked[f"{self.command} {path}"] += 1
            content, headers = found(path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    def found(path: str) -> tuple[bytes | None, dict[str, str]]:
        if path == "/":
            return b"", {}
        if path.startswith("/api/models/"):
            repository = path.removeprefix("/api/models/").partition("/tree/")[0]
            sizes = {
                name.removeprefix(f"{repository}/"): len(content)
                for name, content in files.items()
                if name.startswith(f"{repository}/")
            }
            tree = [{"type": "file", "path": name, "size": size, "oid": REVISION} for name, size in sizes.items()]
            return json.dumps(tree).encode(), {"Content-Type": "application/json"}
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        content = files.get(f"{repository}/{rest.partition('/')[2]}")
        tag = hashlib.sha256(content or b"").hexdigest()
        return content, {"X-Repo-Commit": REVISION, "ETag": f'"{tag}"'}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
