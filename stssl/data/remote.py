"""Files in object stores (`s3://`, `gs://`, `az://`): what a conversion writes and a reader reads there.

Requests are tried again with growing pauses. Credentials, region and endpoint come from the environment, as for every
tool of the provider (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_SKIP_SIGNATURE, ...).
"""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from stssl.errors import DataError

SCHEMES = ("s3", "gs", "az")
RETRY: Any = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15)},
}
CREDENTIALS = (
    "Set the provider's variables (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; "
    "AWS_SKIP_SIGNATURE=true for a public bucket)."
)


def is_remote(path: str) -> bool:
    """Whether this is a URL, such as `s3://bucket/store.zarr`."""
    return "://" in path


def split_url(url: str) -> tuple[str, str]:
    """Bucket URL and the key in it.

    Raises:
        DataError: A kind of URL that is not known.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise DataError(f"{url} is not a URL that can be used. Give a local path, or s3://, gs:// or az://BUCKET/PATH.")
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


@lru_cache(maxsize=64)
def bucket(url: str) -> Any:
    """An open bucket, or what lies under a key of it.

    Raises:
        DataError: obstore is not installed, or the environment's settings are impossible.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise DataError(f"{url} needs the package obstore: pip install 'stssl[cloud]'") from None
    try:
        return from_url(url, retry_config=RETRY)
    except BaseError as error:
        raise DataError(f"{url}: {_first_line(error)}. {CREDENTIALS}") from None


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn errors of an object store into words on what to do; a missing object stays a FileNotFoundError."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise DataError(f"{url}: access is denied ({_first_line(error)}). {CREDENTIALS}") from None
    except exceptions.BaseError as error:
        missing = any(sign in str(error) for sign in ("169.254.169.254", "latest/api/token", "redential"))
        advice = f"there are no credentials. {CREDENTIALS}" if missing else "tried again several times, in vain."
        raise DataError(f"{url}: {_first_line(error)}; {advice}") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0].rstrip(".")


def zarr_place(path: str) -> Any:
    """What zarr's functions take as `store`: a path, or an object store that has the path as its root."""
    if not is_remote(path):
        return path
    from zarr.storage import ObjectStore

    split_url(path)
    return ObjectStore(bucket(path))


class RemoteFiles:
    """Files under a key of a bucket; the same calls as `Files`."""

    def __init__(self, root: str) -> None:
        """Touch nothing yet."""
        self.root = root

    def __truediv__(self, name: str) -> "RemoteFiles":
        """A folder inside this one."""
        return RemoteFiles(f"{self.root}/{name}")

    def path(self, name: str) -> str:
        """URL of a file."""
        return f"{self.root}/{name}"

    def _place(self, name: str = "") -> tuple[Any, str]:
        url, key = split_url(self.root)
        return bucket(url), f"{key}/{name}".strip("/")

    def read(self, name: str) -> bytes | None:
        """Contents of an object; None where there is none."""
        store, key = self._place(name)
        with explained(self.root):
            try:
                return bytes(store.get(key).bytes())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object, whole or not at all."""
        store, key = self._place(name)
        with explained(self.root):
            store.put(key, data, use_multipart=False)

    def names(self) -> list[str]:
        """Of the entries of this folder, sorted."""
        store, key = self._place()
        with explained(self.root):
            found = store.list_with_delimiter(f"{key}/")
        paths = [entry["path"] for entry in found["objects"]] + list(found["common_prefixes"])
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def remove(self) -> None:
        """Remove all objects below."""
        store, key = self._place()
        with explained(self.root):
            for chunk in store.list(f"{key}/"):
                for entry in chunk:
                    with contextlib.suppress(FileNotFoundError):
                        store.delete(entry["path"])

    def remove_partial(self) -> None:
        """Nothing: objects are never half-written."""
