"""Keep files of object stores in a bounded cache on a node's disk, which all its processes share.

Every file is written whole or not at all and ends in its checksum, which each process checks before it uses the file.
The least recently used files make room for new ones. A lock file orders writers. Readers need no lock, since a file
that is removed while it is open stays readable.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c

from stssl.base.errors import DataError
from stssl.base.whole_files import cannot_write

STRIPES = 64
_MARK = b"STSSLDC1"
TAIL = 4 + len(_MARK)
"""Bytes after a file's contents: its crc32c and a mark."""


def default_folder() -> Path:
    """Return the default cache folder: one for each user, in the system's folder for temporary files.

    Raises:
        DataError: Another user owns that folder.
    """
    folder = Path(tempfile.gettempdir(), f"stssl-cache-{os.getuid()}")
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user. Set data.cache_dir.")
    return folder


class DiskCache:
    """Keep files by key, at most `limit` bytes together."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        """Use `folder`, which is made at the first write."""
        self.folder, self.limit = Path(folder).absolute(), limit
        self._checked: dict[str, tuple[int, int]] = {}

    def open(self, key: str, fetch: Callable[[], bytes] | None) -> int | None:
        """Open the file of a key; the caller closes it.

        Args:
            key: Name of the contents: letters, digits, `-`, `_` and `.`.
            fetch: Gets the contents if they are not in the cache; None only looks into the cache.

        Returns:
            A file descriptor; None if the contents are not in the cache and `fetch` is None.

        Raises:
            DataError: The contents do not fit into the cache, or the disk cannot be written.
        """
        found = self._open_checked(key)
        if found is not None or fetch is None:
            return found
        # Processes that want one file wait for the one that fetches it, instead of fetching it each; a few locks serve
        # all keys.
        with self._locked(f"key-{hash_of(key) % STRIPES}"):
            found = self._open_checked(key)  # Another process may have fetched it in the meantime.
            return self._store(key, fetch()) if found is None else found

    def size(self, file: int) -> int:
        """Return the size of an open file's contents in bytes."""
        return os.fstat(file).st_size - TAIL

    def used(self) -> int:
        """Return the bytes of all files together."""
        return sum(entry.stat().st_size for entry in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / "files" / key

    def _open_checked(self, key: str) -> int | None:
        """Open a file that is there and whole; a damaged one is removed."""
        path = self._path(key)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        about = os.fstat(file)
        # A file that was written anew has another inode; checking each file once a process is enough otherwise.
        state = (about.st_ino, about.st_size)
        if self._checked.get(key) != state:
            if not _whole(file, about.st_size):
                os.close(file)
                path.unlink(missing_ok=True)
                return None
            self._checked[key] = state
        with contextlib.suppress(OSError):
            os.utime(path)  # Last used now.
        return file

    def _store(self, key: str, data: bytes) -> int:
        size = len(data) + TAIL
        if size > self.limit:
            raise DataError(
                f"data.cache_bytes {self.limit:,} is less than one file of the store takes ({size:,}). Give at least "
                "data.shuffle_shards times as much."
            )
        path = self._path(key)
        # A reader must never open a file that is half written.
        part = path.with_name(f".{key}.partial")
        with self._locked("files"):
            self._make_room(size)
            try:
                with part.open("wb") as file:
                    file.write(data)
                    file.write(google_crc32c.value(data).to_bytes(4, "little") + _MARK)
                # Opened before it gets its name: another process may remove it for room at once.
                opened = os.open(part, os.O_RDONLY)
                part.replace(path)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise self._unwritten(path, error, size) from None
        about = os.fstat(opened)
        self._checked[key] = (about.st_ino, about.st_size)
        return opened

    def _unwritten(self, path: Path, error: OSError, size: int | None = None) -> DataError:
        return DataError(
            f"{cannot_write(path, error, size)} Or set data.cache_dir to a folder with more room for this cache of the "
            f"store ({self.used():,} bytes now), or lower data.cache_bytes={self.limit}."
        )

    def _make_room(self, size: int) -> None:
        """Remove files, least recently used first, and what killed writers left. The caller holds the lock."""
        entries = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat()
                if entry.name.endswith(".partial"):
                    Path(entry.path).unlink()
                else:
                    entries.append((about.st_mtime_ns, about.st_size, entry.path))
        used = sum(entry[1] for entry in entries)
        for _, bytes_, path in sorted(entries):
            if used + size <= self.limit:
                return
            Path(path).unlink(missing_ok=True)
            used -= bytes_

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder / "files") as found:
                return list(found)
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold one of the cache's locks against other processes and other threads."""
        try:
            (self.folder / "files").mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / f"{name}.lock").open("a")
        except OSError as error:
            raise self._unwritten(self.folder, error) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _whole(file: int, size: int) -> bool:
    """Return True if an open file ends with the checksum of the bytes before it."""
    digest, left = 0, size - TAIL
    while left > 0:
        data = os.read(file, min(left, 1 << 22))
        if not data:
            return False
        digest = google_crc32c.extend(digest, data)
        left -= len(data)
    tail = os.read(file, TAIL + 1)
    return size >= TAIL and tail == digest.to_bytes(4, "little") + _MARK


def hash_of(key: str) -> int:
    """Return a number for a key that is the same in all processes."""
    return int(google_crc32c.value(key.encode()))
