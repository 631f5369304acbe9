"""Read and write files in object stores (`s3://`, `gs://`, `az://`).

A failed request is tried again, after growing pauses. Credentials, region and endpoint come from environment variables,
as for the tools of the provider: AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_SKIP_SIGNATURE,
and others.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from stssl.base.errors import DataError, UnreachableError
from stssl.base.paths import STORES

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

RETRY: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"base": 2, "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15)},
}
CLIENT: "ClientConfig" = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=600)}
"""Time limits of each request. `patience` returns a further limit: how long a server may send nothing."""
CLIENT_VARIABLES = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "http1_only",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "read_timeout",
    "timeout",
    "user_agent",
)
"""Client options that environment variables of the provider may set: AWS_ALLOW_HTTP, AWS_TIMEOUT, AWS_PROXY_URL, ..."""
BODIES = 3
"""Number of tries to get an answer whole."""
CREDENTIALS = (
    "Set the provider's variables (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; "
    "AWS_SKIP_SIGNATURE=true for a public bucket)."
)


_SECRETS = re.compile(r"(?i)\b(sig|signature|token|x-(?:amz|goog)-[a-z-]+)=[^&\s\"']+")
"""Parts of signed URLs that must not come into messages."""
_REGION = ("redirect without LOCATION", "PermanentRedirect", "AuthorizationHeaderMalformed", "301 Moved")
"""What S3 or obstore say if a bucket is in another region than the requests."""


def is_remote(path: str) -> bool:
    """Return True if a text is a URL such as `s3://bucket/store.zarr`, and False if it is a local path."""
    return "://" in path


def split_url(url: str) -> tuple[str, str]:
    """Return the URL of the bucket and the key (the path inside the bucket) of an object, given the URL of the object.

    Raises:
        DataError: The URL is not one of the supported object stores.
    """
    parts = urlsplit(url)
    if parts.scheme not in STORES or not parts.netloc:
        raise DataError(f"{url} is not a URL that can be used. Give a local path, or s3://, gs:// or az://BUCKET/PATH.")
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


@lru_cache(maxsize=64)
def bucket(url: str) -> "ObjectStore":
    """Return an obstore client for the bucket of a URL. If the URL has a path, the client sees only what is below it.

    Raises:
        DataError: obstore is not installed, or the environment has impossible settings.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise DataError(f"{url} needs the package obstore: pip install 'stssl[cloud]'") from None
    try:
        return from_url(url, retry_config=RETRY, client_options=client_options(url))
    except BaseError as error:
        raise DataError(f"{url}: {_first_line(error)}. {CREDENTIALS}") from None


def client_options(url: str) -> "ClientConfig":
    """Return the options of requests to an object store: the time limits in `CLIENT`, changed by environment variables.

    The library obstore reads the environment only if the caller gives no options. So this function reads it.

    Args:
        url: URL of the object store. Its scheme decides which variables count: AWS_*, GOOGLE_* or AZURE_*.
    """
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[url.partition(":")[0]]
    said = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in CLIENT_VARIABLES}
    given = {name: text for name, text in said.items() if text is not None}
    # The texts of the variables can stay texts: obstore converts them to numbers, durations and switches.
    return cast("ClientConfig", {**CLIENT, "read_timeout": patience(), **given})


def patience() -> timedelta:
    """Return how long an object store may send nothing before a retry: STSSL_REMOTE_TIMEOUT, or 30 seconds.

    Raises:
        DataError: The variable is no number of seconds between 0 and 3600.
    """
    text = os.environ.get("STSSL_REMOTE_TIMEOUT", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise DataError(f"STSSL_REMOTE_TIMEOUT={text} is no number of seconds between 0 and 3600")
    return timedelta(seconds=seconds)


def get_object(url: str, place: str, options: "GetOptions | None" = None, most: int | None = None) -> tuple[bytes, int]:
    """Download an object, or a range of its bytes, from an object store. If the answer is cut off, ask again.

    Args:
        url: URL of the bucket.
        place: Key of the object in the bucket.
        options: Options of the request, such as a range.
        most: Largest number of bytes to fetch; None fetches all.

    Returns:
        The bytes, and the size of the whole object in bytes.

    Raises:
        FileNotFoundError: The object does not exist.
        DataError: The object cannot be read, or is larger than `most`. The message says why.
    """
    from obstore.exceptions import BaseError

    with explained(f"{url}/{place}"):
        # obstore tries a failed request again, but not an answer that ends too early.
        for left in reversed(range(BODIES)):
            answer = bucket(url).get(place, options=_without_suffix(url, place, options))
            start, stop = answer.range
            if most is not None and stop - start > most:
                raise DataError(f"cannot read {url}/{place}: it is larger than {most:,} bytes")
            try:
                data = bytes(answer.bytes())
            except BaseError:
                if not left:
                    raise
                continue
            if len(data) == stop - start:
                return data, int(answer.meta["size"])
    raise UnreachableError(
        f"{url}/{place}: {len(data):,} of {stop - start:,} bytes came, {BODIES} times. Try again later."
    )


def object_tail(url: str, place: str, size: int) -> bytes | None:
    """Download the last bytes of an object; if it has fewer, all its bytes. Return None if it does not exist.

    Args:
        url: URL of the bucket.
        place: Key of the object in the bucket.
        size: Number of bytes to download.

    Raises:
        DataError: The object cannot be read. The message says why.
    """
    try:
        return get_object(url, place, {"range": {"suffix": size}})[0]
    except FileNotFoundError:
        return None
    except UnreachableError as error:
        # Stores answer with status 416 if the object is empty. But the URL in the message may contain 416 too: so also
        # ask for the size of the object.
        if "416" not in str(error) or not _is_empty(url, place):
            raise
        return b""


def _is_empty(url: str, place: str) -> bool:
    with contextlib.suppress(FileNotFoundError), explained(f"{url}/{place}"):
        return int(bucket(url).head(place)["size"]) == 0
    return False


def _without_suffix(url: str, place: str, options: "GetOptions | None") -> "GetOptions | None":
    """Return the options of a request for an object. For Azure, replace a range that counts from the end of the object.

    Azure (`az://`) does not offer such ranges. The new range has the same bytes, counted from the start. For an empty
    object, return None.

    Args:
        url: URL of the bucket.
        place: Key of the object in the bucket.
        options: Options of the request, or None.
    """
    wanted: Any = options.get("range") if options is not None else None
    if not url.startswith("az:") or not isinstance(wanted, dict) or "suffix" not in wanted:
        return options
    size = int(bucket(url).head(place)["size"])
    from_start: GetOptions = {"range": (max(0, size - int(wanted["suffix"])), size)}
    return from_start if size else None


def explained_if_remote(path: str) -> contextlib.AbstractContextManager[None]:
    """Return a context that turns errors of an object store into clear DataErrors if `path` is a URL.

    For a local path, the context does nothing.
    """
    return explained(path) if is_remote(path) else contextlib.nullcontext()


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Return a context that turns errors of an object store into DataErrors. They name `url` and say what to do.

    A missing object stays a FileNotFoundError: callers decide what it means.
    """
    from obstore import exceptions

    try:
        yield
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise DataError(f"{url}: access is denied ({_first_line(error)}). {CREDENTIALS}") from None
    except exceptions.BaseError as error:
        # obstore has no error for missing credentials. It asks the metadata service of the cloud for credentials, and
        # its error names the address of this service.
        missing = any(sign in str(error) for sign in ("169.254.169.254", "latest/api/token", "redential"))
        # For listings, obstore does not turn status 403 into PermissionDeniedError.
        if not missing and "403 Forbidden" in str(error):
            raise DataError(f"{url}: access is denied ({_first_line(error)}). {CREDENTIALS}") from None
        if missing:
            raise DataError(f"{url}: {_first_line(error)}; there are no credentials. {CREDENTIALS}") from None
        if any(sign in str(error) for sign in _REGION):
            where = "the bucket is in another region than AWS_REGION says"
            raise DataError(f"{url}: {where} ({_first_line(error)}). Set AWS_REGION to the bucket's region.") from None
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise DataError(
                f"{url}: there is no such bucket ({_first_line(error)}). Make it, or correct the URL."
            ) from None
        advice = "tried again several times, in vain."
        if "timed out" in repr(error) or "TimedOut" in repr(error):
            advice = "it does not answer. Look at network and server, and run the same command again."
        raise UnreachableError(f"{url}: {_first_line(error)}; {advice}") from None


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, without secret signatures of requests and without final periods."""
    return _SECRETS.sub(r"\1=...", str(error).split("\n", maxsplit=1)[0].rstrip("."))


def zarr_place(path: str, read_only: bool = False) -> Any:
    """Return the zarr store object for a local folder or for a folder in an object store, for zarr's argument `store`.

    Args:
        path: Path or URL of the folder.
        read_only: True to let zarr only read.

    Raises:
        DataError: The URL is not one of the supported object stores.
    """
    from zarr.storage import LocalStore, ObjectStore

    if not is_remote(path):
        return LocalStore(path, read_only=read_only)
    split_url(path)
    return ObjectStore(bucket(path), read_only=read_only)


class RemoteFiles:
    """Read and write objects below a URL like files in a folder. `Files` has the same methods for local folders."""

    def __init__(self, root: str) -> None:
        """Set the URL that serves as the folder. The bucket may have no object below it yet."""
        self.root = root

    def __truediv__(self, name: str) -> "RemoteFiles":
        """Return an object that reads and writes the files of the folder `name` inside this one."""
        return RemoteFiles(f"{self.root}/{name}")

    def path(self, name: str) -> str:
        """Return the URL of the file `name` in this folder of the object store."""
        return f"{self.root}/{name}"

    def _where(self, name: str = "") -> tuple[str, str]:
        """Return the URL of the bucket, and the key (the path inside the bucket) of a file in this folder.

        Args:
            name: Name of the file; empty for the folder itself.
        """
        url, key = split_url(self.root)
        return url, f"{key}/{name}".strip("/")

    def _place(self, name: str = "") -> tuple["ObjectStore", str]:
        """Return an obstore client for the bucket, and the key (the path inside the bucket) of a file in this folder.

        Args:
            name: Name of the file; empty for the folder itself.
        """
        url, key = self._where(name)
        return bucket(url), key

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """Download a file of this folder. Return None if it does not exist.

        Args:
            name: Name of the file.
            most: Largest number of bytes; None for no limit.

        Raises:
            DataError: The file cannot be read, or has more than `most` bytes.
        """
        try:
            return get_object(*self._where(name), most=most)[0]
        except FileNotFoundError:
            return None

    def tail(self, name: str, size: int) -> bytes | None:
        """Return the last `size` bytes of the file `name`, or all bytes if it has fewer; None if it does not exist."""
        return object_tail(*self._where(name), size)

    def write(self, name: str, data: bytes) -> None:
        """Upload `data` as the file `name`. If the upload fails, the file stays as it was, or does not exist."""
        store, key = self._place(name)
        with explained(self.root):
            store.put(key, data, use_multipart=False)

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly below this URL."""
        store, key = self._place()
        with explained(self.root):
            found = store.list_with_delimiter(f"{key}/")
        paths = [entry["path"] for entry in found["objects"]] + list(found["common_prefixes"])
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def remove(self) -> None:
        """Remove all files below this folder's URL, also those in folders inside it."""
        store, key = self._place()
        with explained(self.root):
            for chunk in store.list(f"{key}/"):
                for entry in chunk:
                    with contextlib.suppress(FileNotFoundError):
                        store.delete(entry["path"])

    def remove_partial(self) -> None:
        """Do nothing: an object store never has partly written files, which `Files.remove_partial` removes."""
