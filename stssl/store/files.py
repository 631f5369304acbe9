"""Read and write the files in a store and beside it, each whole or not at all. Let only one process write a store."""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import DataError
from stssl.base.exclusive import sole_holder
from stssl.base.remote import RemoteFiles, explained_if_remote, is_remote
from stssl.base.whole_files import cannot_write


class Files:
    """Read and write the files in a folder on a disk."""

    def __init__(self, root: str) -> None:
        """Set the folder whose files are read and written.

        Args:
            root: Path of the folder, which need not exist yet.
        """
        self.root = root

    def __truediv__(self, name: str) -> "Files":
        """Return an object that reads and writes the files of the folder `name` inside this one."""
        return Files(f"{self.root}/{name}")

    def path(self, name: str) -> str:
        """Return the full path of the file `name` in this folder."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the contents of the file `name` in this folder. Return None if the file does not exist."""
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def tail(self, name: str, size: int) -> bytes | None:
        """Return the last `size` bytes of the file `name`, or all of a shorter file.

        Return None if the file does not exist.
        """
        try:
            with Path(self.root, name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read(size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole. A reader sees either its old contents or the new ones, even after a crash.

        Args:
            name: Path of the file in this folder. Missing folders are created.
            data: New contents.

        Raises:
            DataError: The disk is full, or the file may not be written. The message names the free room. No partial
                file stays.
        """
        target = Path(self.root, name)
        # Give each writer a temporary file of its own. Ray may wrongly believe that a task is dead, and start it again
        # on another machine, where the process number may be the same: both tasks would then write one file.
        fresh = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
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
        """Return a sorted list of the names of the files and folders in this folder; [] if the folder is missing."""
        try:
            return sorted(path.name for path in Path(self.root).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self) -> None:
        """Remove the folder, and all files and folders in it. Ignore errors."""
        shutil.rmtree(self.root, ignore_errors=True)

    def remove_partial(self) -> None:
        """Remove the incomplete files that killed processes left in this folder and in the folders inside it."""
        for path in Path(self.root).rglob("*.partial"):
            path.unlink(missing_ok=True)


def files_at(root: str) -> Files | RemoteFiles:
    """Return an object that reads and writes the files below `root`, a path on a disk or a URL of an object store."""
    return RemoteFiles(root) if is_remote(root) else Files(root)


@contextlib.contextmanager
def writing(store: str) -> Iterator[None]:
    """Turn errors of disk or object store into clear messages, inside a `with` block in which zarr writes to a store.

    Args:
        store: Path or URL of the store.

    Raises:
        DataError: The store cannot be written. The message says why, and how much room is free.
    """
    try:
        with explained_if_remote(store):
            yield
    except OSError as error:
        raise DataError(cannot_write(store, error)) from None


@contextlib.contextmanager
def sole_writer(store: str) -> Iterator[None]:
    """Hold the lock of a store inside a `with` block, so that no other process writes the store.

    If the process dies, the system frees the lock. A store on a disk has its lock file beside it. For a store at a URL,
    the lock only stops other writers on this machine.

    Args:
        store: Path or URL of the store.

    Raises:
        DataError: Another process holds the lock, or the lock file cannot be written.
    """
    if is_remote(store):
        # Object stores have no locks. So lock a file on this machine, which stops at least other writers here.
        path = Path(tempfile.gettempdir(), f"stssl-{hashlib.blake2b(store.encode(), digest_size=8).hexdigest()}.lock")
    else:
        path = Path(store).with_name(f".{Path(store).name}.lock")
    busy = f"another conversion is writing to {store}. Wait for it, or stop it."
    with sole_holder(path, store, busy, DataError):
        yield
