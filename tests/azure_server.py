"""Run azurite, the emulator of Azure's object store, with the container `bucket`."""

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from processes import family, kill

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key of this test alone, 64 bytes".ljust(64)).decode()


def create_container(url: str, name: str) -> None:
    """Make an empty container, which Azure's clients do not do by themselves.

    Args:
        url: URL of the account.
        name: Name of the container.
    """
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "\n".join(f"{key}:{value}" for key, value in sorted(headers.items()))
    kind = "application/octet-stream"  # urllib would send another one
    empty = [""] * 6
    text = "\n".join(["PUT", *empty[:4], kind, *empty, signed, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
    mark = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{mark}", "Content-Type": kind}
    with urlopen(Request(f"{url}/{name}?restype=container", b"", headers, method="PUT")) as answer:
        assert answer.status == 201


@contextmanager
def azure_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the emulator until the context ends, and set the environment for its clients."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed (npm install --global azurite)")
    monkeypatch.setenv("AZURITE_ACCOUNTS", f"{ACCOUNT}:{KEY}")
    words = [program, "--location", str(folder), "--blobPort", "0", "--skipApiVersionCheck", "--silent"]
    words.append("--disableTelemetry")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        found = next(filter(None, (re.search(r"listens on (http://\S+)", line) for line in process.stdout)))
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the emulator
        url = f"{found[1]}/{ACCOUNT}"
        create_container(url, "bucket")
        for name, value in {"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": KEY, "ENDPOINT": url}.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        yield
    finally:
        kill(family(process.pid))
        process.wait()
