"""Let only one process of this machine at a time work in a folder, or write a file, by means of lock files."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from stssl.base.errors import RunError, StsslError
from stssl.base.whole_files import cannot_write


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Return a context that locks a folder: meanwhile, `alone` raises an error in other processes of this machine.

    Make the folder if it is missing.

    Args:
        folder: The folder. While the context lasts, it has a file `lock`.
        what: Name of the work, such as `sweep`, for the message.

    Raises:
        RunError: Another process works in the folder, or the folder cannot be written.
    """
    busy = f"another process is running the {what} in {folder}. Wait for it, or stop it."
    with sole_holder(folder / "lock", folder, busy):
        yield


@contextlib.contextmanager
def sole_holder(path: Path, about: Path | str, busy: str, error: type[StsslError] = RunError) -> Iterator[None]:
    """Return a context in which this process holds a lock file, and no other process of this machine can hold it.

    If the process ends inside the context, the system frees the lock.

    Args:
        path: The lock file. It is made, with its folder, and removed at the end of the context.
        about: What the lock protects, for the message of a failed write.
        busy: Message if another process holds the lock.
        error: Class of the error to raise.

    Raises:
        StsslError: Another process holds the lock, or the lock file cannot be written. The error has the class `error`.
    """
    with contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = opened.enter_context(path.open("a"))
                # Use `flock`: the system frees the lock even if the process is killed. If the mere existence of the
                # file were the lock, a killed process would lock the folder forever.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed the file after this process opened it. A lock on a removed file
                # stops no other process: so open the file again.
                if _is_at(file, path):
                    break
        except BlockingIOError:
            raise error(busy) from None
        except OSError as problem:
            raise error(cannot_write(about, problem)) from None
        try:
            yield
        finally:
            # Ignore a lock file that cannot be removed, as on a read-only disk. It stops no other process, because the
            # lock on it ends with this process.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _is_at(file: TextIO, path: Path) -> bool:
    """Return True if `path` still names the open file `file`: another process may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
