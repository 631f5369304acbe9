"""Read and write files beside and inside a store, each whole or not at all, and hold a store's lock."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stssl.base.errors import DataError
from stssl.base.whole_files import cannot_write
from stssl.store.remote import RemoteFiles, explained_if_remote, is_remote


class Files:
    """Read and write the files under a folder of a disk."""

    def __init__(self, root: str) -> None:
        """Refer to the folder `root`, which need not exist."""
        self.root = root

    def __truediv__(self, name: str) -> "Files":
        """Return a folder inside this one."""
        return Files(f"{self.root}/{name}")

    def path(self, name: str) -> str:
        """Return the full path of a file."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Read a file; return None if there is none."""
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def tail(self, name: str, size: int) -> bytes | None:
        """Read the last `size` bytes of a file, or all of a shorter one; return None if there is none."""
        try:
            with Path(self.root, name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read(size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: a reader sees the old contents or the new ones, also after a crash.

        Raises:
            DataError: The disk is full or may not be written; says how much room there is. Nothing half-written stays.
        """
        target = Path(self.root, name)
        # With the process's number in its name: two tasks may write one shard if Ray takes the first one for dead.
        fresh = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise DataError(cannot_write(target, error, len(data))) from None

    def names(self) -> list[str]:
        """List the names of this folder's entries, sorted; empty if the folder does not exist."""
        try:
            return sorted(path.name for path in Path(self.root).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.root, ignore_errors=True)

    def remove_partial(self) -> None:
        """Remove files that killed writers left half-written."""
        for path in Path(self.root).rglob("*.partial"):
            path.unlink(missing_ok=True)


def files_at(root: str) -> Files | RemoteFiles:
    """Refer to the files under a path or URL."""
    return RemoteFiles(root) if is_remote(root) else Files(root)


@contextlib.contextmanager
def writing(store: str) -> Iterator[None]:
    """Turn errors of the disk or object store while zarr writes a store's metadata into words.

    Raises:
        DataError: It cannot be written; says why, and how much room there is.
    """
    try:
        with explained_if_remote(store):
            yield
    except OSError as error:
        raise DataError(cannot_write(store, error)) from None


@contextlib.contextmanager
def sole_writer(store: str) -> Iterator[None]:
    """Hold a store's lock; the system frees it when the process ends in any way.

    A store on a local or network disk has its lock file beside it. The lock of a store at a URL excludes only writers
    of this machine.

    Raises:
        DataError: Another process holds the lock, or nothing can be written there.
    """
    if is_remote(store):
        # Object stores have no locks, so that only writers of this machine can be told apart.
        path = Path(tempfile.gettempdir(), f"stssl-{hashlib.blake2b(store.encode(), digest_size=8).hexdigest()}.lock")
    else:
        path = Path(store).with_name(f".{Path(store).name}.lock")
    with _opened(path, store) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another conversion is writing to {store}. Wait for it, or stop it.") from None
        # The other writer may have removed the file between our opening and locking it; a lock on a removed file
        # excludes nobody.
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise DataError(f"another conversion to {store} has just ended. Run this one again.")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path, store: str) -> TextIO:
    """Open a lock file, and make its folder if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise DataError(cannot_write(store, error)) from None
