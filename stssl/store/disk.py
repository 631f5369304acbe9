"""Keep files of object stores in a cache on the disk of a machine. All processes of the machine share it.

The cache has a size limit: new files replace the least recently used ones. The size of all files together is kept in a
file of its own, so that a new file costs the same time however many files there are. Every file is written whole or not
at all, and ends with its checksum. Each process checks the checksum before it uses the file. Writers take turns through
a lock file. Readers need no lock: an open file stays readable, even if another process removes it.
"""

import contextlib
import fcntl
import heapq
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from stssl.base.errors import DataError
from stssl.base.whole_files import cannot_write

STRIPES = 64
SHARE = 8
"""Divisor: a listing of the folder remembers this part of the files, the oldest ones, as the next to remove."""
COUNT_FILE = "bytes.txt"
_DIGITS = 20
_MARK = b"STSSLDC1"
TAIL = 4 + len(_MARK)
"""Number of bytes after the contents of a file: the crc32c and a mark."""


class _Aged(NamedTuple):
    """Describe a cached file: the time of its last use (ns since 1970), its size in bytes and its path."""

    used_ns: int
    size: int
    path: str


def default_folder() -> Path:
    """Return the path of the default cache folder of this user, in the system's folder for temporary files.

    Raises:
        DataError: Another user owns that folder.
    """
    folder = Path(tempfile.gettempdir(), f"stssl-cache-{os.getuid()}")
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user. Set data.cache_dir.")
    return folder


class DiskCache:
    """Keep downloaded files on disk, each under a key (a name).

    If space runs out, remove the least recently used files.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        """Set the folder and the largest size of the cache. The first write makes the folder.

        Args:
            folder: Folder of the cache.
            limit: Largest size of all files together, in bytes.
        """
        self.folder, self.limit = Path(folder).absolute(), limit
        self._checked: dict[str, tuple[int, int]] = {}
        self._counted = False
        self._oldest: deque[_Aged] = deque()

    def __reduce__(self) -> tuple[type["DiskCache"], tuple[Path, int]]:
        """Return what pickle needs: only the folder and the limit.

        The process that reads the pickle checks the files anew.
        """
        return DiskCache, (self.folder, self.limit)

    def open(self, key: str, fetch: Callable[[], bytes] | None) -> int | None:
        """Open the cached file of a key, and return its descriptor, which the caller closes.

        If needed, download the file first.

        Args:
            key: Name of the contents: letters, digits, `-`, `_` and `.`.
            fetch: Function that gets the contents if the cache does not have them. None only looks into the cache.

        Returns:
            Descriptor of a file whose checksum is right; None if the contents are not in the cache and `fetch` is None.

        Raises:
            DataError: The contents do not fit into the cache, or the disk cannot be written.
        """
        found = self._open_checked(key)
        if found is not None or fetch is None:
            return found
        # Let one process download the file while the others wait for its lock. `STRIPES` locks serve all keys: a lock
        # for each key would leave as many lock files.
        with self._locked(f"key-{hash_of(key) % STRIPES}"):
            found = self._open_checked(key)  # look again: another process may have downloaded the file during the wait
            return self._store(key, fetch()) if found is None else found

    def size(self, file: int) -> int:
        """Return the size in bytes of the contents of an open cache file, without the checksum at its end.

        Args:
            file: Descriptor of the file.
        """
        return os.fstat(file).st_size - TAIL

    def used(self) -> int:
        """Return how many bytes all files of the cache take together. For this, look at each file in its folder."""
        return sum(entry.stat().st_size for entry in self._entries())

    def _path(self, key: str) -> Path:
        return self.folder / "files" / key

    def _open_checked(self, key: str) -> int | None:
        """Open the cached file of a key if it exists and its checksum is right. Return its descriptor, otherwise None.

        A damaged file is removed.
        """
        path = self._path(key)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        about = os.fstat(file)
        # Check each file only once in this process, to save time. A file that was written anew has another inode, so it
        # is checked again.
        state = (about.st_ino, about.st_size)
        if self._checked.get(key) != state:
            if not _whole(file, about.st_size):
                os.close(file)
                path.unlink(missing_ok=True)
                return None
            self._checked[key] = state
        with contextlib.suppress(OSError):
            os.utime(path)  # mark the file as used now: `_make_room` removes the files with the oldest times
        return file

    def _store(self, key: str, data: bytes) -> int:
        size = len(data) + TAIL
        if size > self.limit:
            raise DataError(
                f"data.cache_bytes {self.limit:,} is less than one file of the store takes ({size:,}). Give at least "
                "data.shuffle_shards times as much."
            )
        path = self._path(key)
        # Write under another name: a reader must never open a partial file.
        part = path.with_name(f".{key}.partial")
        with self._locked("files"):
            used = self._make_room(size)
            try:
                # Count the file before it exists. A kill can then make the count too large, never too small.
                self._count(used + size)
                with part.open("wb") as file:
                    file.write(data)
                    file.write(google_crc32c.value(data).to_bytes(4, "little") + _MARK)
                # Open the file before the rename. After the rename, another process may remove it at once to make room.
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

    def _make_room(self, size: int) -> int:
        """Remove the least recently used files of the cache until `size` more bytes fit under its limit.

        The caller holds the lock. List the folder only at the first write of this process, and if no file is known that
        could be removed.

        Args:
            size: Bytes that the next file needs.

        Returns:
            Number of bytes of all files that are left, or more: other processes may have removed damaged files.
        """
        used = self._read_count() if self._counted else None
        if used is None:
            used = self._list()
        while used + size > self.limit:
            if self._oldest:
                used -= self._remove(self._oldest.popleft())
                continue
            used = self._list()
            if not self._oldest:
                break
        return used

    def _list(self) -> int:
        """List the cache's folder, and note its oldest files as the next to remove.

        Return the size of all files in bytes. Also remove the partial files of killed processes. The caller holds the
        lock, so nobody writes such a file now.
        """
        found = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat()
                if entry.name.endswith(".partial"):
                    Path(entry.path).unlink()
                else:
                    found.append(_Aged(about.st_mtime_ns, about.st_size, entry.path))
        # Do not remember all files: a list of a million files would take 200 MB in each process.
        self._oldest = deque(heapq.nsmallest(max(STRIPES, len(found) // SHARE), found))
        self._counted = True
        return sum(file.size for file in found)

    def _remove(self, file: "_Aged") -> int:
        """Remove a cached file, and return its size in bytes. But if another process has removed or used it, return 0.

        A file that was used after the folder was listed stays.

        Args:
            file: Path, size and time of last use of the file, as they were when the folder was listed.
        """
        with contextlib.suppress(FileNotFoundError):
            if Path(file.path).stat().st_mtime_ns == file.used_ns:
                Path(file.path).unlink()
                return file.size
        return 0

    def _read_count(self) -> int | None:
        """Return how many bytes all cached files take together, as the cache's count file says.

        Return None if the count file is missing or damaged.
        """
        try:
            text = (self.folder / COUNT_FILE).read_bytes()
        except OSError:
            return None
        return int(text) if len(text) == _DIGITS and text.isdigit() else None

    def _count(self, used: int) -> None:
        """Write into the cache's count file that all cached files take `used` bytes together."""
        file = os.open(self.folder / COUNT_FILE, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(file, b"%0*d" % (_DIGITS, used))
        finally:
            os.close(file)

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder / "files") as found:
                return list(found)
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the cache's lock with this name inside a `with` block. Other processes and threads that want it wait.

        Args:
            name: Name of the lock. Each name has a lock file in the cache's folder.

        Raises:
            DataError: The disk cannot be written.
        """
        try:
            (self.folder / "files").mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / f"{name}.lock").open("a")
        except OSError as error:
            raise self._unwritten(self.folder, error) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _whole(file: int, size: int) -> bool:
    """Return True if an open cache file ends with the checksum of the bytes before it.

    Args:
        file: Descriptor of the file, at its first byte.
        size: Size of the whole file in bytes.
    """
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
    """Return a number for a key of the cache.

    It chooses the lock that processes hold while they download the key's file. All processes get the same number.
    Python's `hash` would differ between them.
    """
    return int(google_crc32c.value(key.encode()))
