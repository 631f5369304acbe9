"""Write a file whole or not at all, even if the process or the machine dies. Explain why a write failed.

`write_whole` writes every file that a run, a sweep or a report keeps. `append_line` adds rows of metrics.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from stssl.base.errors import RunError, StsslError, shown

FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "This user's quota is used up there: remove files, or have it raised",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: "Give a folder that may be written",
    errno.EACCES: "Give a folder that may be written",
    errno.EPERM: "Give a folder that may be written",
    errno.EMFILE: "Raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "This machine has too many open files: close programs",
    errno.EISDIR: "A folder has that name: remove it",
    errno.ENOTDIR: "A file is where a folder must be: remove it",
    errno.EEXIST: "A file is where a folder must be: remove it",
    errno.ELOOP: "Links point at each other there: remove them",
}


def write_whole(
    path: Path, content: str | bytes | memoryview | Callable[[BinaryIO], object], error: type[StsslError] = RunError
) -> None:
    """Write a file whole. Readers see either the old content or the new one, even after a crash or a power cut.

    Processes that write the same file wait for each other. If a process is killed, its temporary file stays. The next
    writer of the file uses it again.

    Args:
        path: File to write. If its folder is missing, make the folder.
        content: New content: text (written as UTF-8), bytes, or a function that writes to the open file.
        error: Class of the error to raise.

    Raises:
        StsslError: The file cannot be written and is unchanged. The error has the class `error` and names the file, the
            reason and the free room.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    size = None if callable(data) else len(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        with _sole(fresh) as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            # Sync the content before the rename. Otherwise, after a power cut, the new name may point to lost bytes.
            os.fsync(file.fileno())
            fresh.replace(path)
        sync_folder(path.parent)
    except OSError as problem:
        raise error(cannot_write(path, problem, size)) from None


def require_writable(path: Path, error: type[StsslError] = RunError) -> None:
    """Check that a file can be written, before hours of work for it. Make its folder, but do not change the file.

    Args:
        path: File that will be written.
        error: Class of the error to raise.

    Raises:
        StsslError: The file cannot be written. The error has the class `error`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        with _sole(fresh) as file:
            file.write(bytes(4096))
            file.flush()
            fresh.unlink()
    except OSError as problem:
        raise error(cannot_write(path, problem)) from None


@contextlib.contextmanager
def _sole(path: Path) -> Iterator[BinaryIO]:
    """Return a context that yields an empty temporary file, open and locked, so that no other process writes it.

    The caller renames the file inside the context. If an error ends the context earlier, remove the file.

    Args:
        path: Path of the temporary file.
    """
    while True:
        # O_NOFOLLOW: a link with this name must not lead the write to another file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        # Some network file systems have no locks. A write without a lock is better than none.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, path):
            break
        os.close(handle)  # another process renamed the file during the wait: this lock belongs to the wrong file
    try:
        os.ftruncate(handle, 0)
        with open(handle, "wb", closefd=False) as file:
            yield file
    except BaseException:
        if _is_at(handle, path):
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def append_line(path: Path, line: str, error: type[StsslError] = RunError) -> None:
    """Add one line to the end of a text file. If this fails, leave the file as it was.

    Args:
        path: File that gets the line. If it is missing, make it.
        line: Text without a line break.
        error: Class of the error to raise.

    Raises:
        StsslError: The line cannot be written. The error has the class `error`.
    """
    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            start, left = file.seek(0, os.SEEK_END), memoryview(data)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(start)
                raise
    except OSError as problem:
        raise error(cannot_write(path, problem, len(data))) from None


def put_whole(finished: Path, path: Path, error: type[StsslError] = RunError) -> None:
    """Rename a finished file to its final path. Readers see either the old file or the new one, even after a power cut.

    Args:
        finished: The file, on the same disk as `path`.
        path: Final path. A file that lies there is replaced.
        error: Class of the error to raise.

    Raises:
        StsslError: The file cannot get this name. The error has the class `error`.
    """
    sync(finished, error)
    try:
        finished.replace(path)
    except OSError as problem:
        raise error(cannot_write(path, problem)) from None
    sync_folder(path.parent)


def is_there(path: Path) -> bool:
    """Return True if a file, folder or link exists at a path. A link counts even if its target does not exist."""
    return os.path.lexists(path)


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. Refuse folders, pipes and devices: a read from them could wait forever.

    Raises:
        OSError: The path cannot be opened, or is no plain file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.open("rb")


def sync(path: Path, error: type[StsslError] = RunError) -> None:
    """Wait until the content of a file is on the disk. If the file does not exist, do nothing.

    Args:
        path: The file.
        error: Class of the error to raise.

    Raises:
        StsslError: The disk did not take the content. The error has the class `error`.
    """
    try:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as problem:
        raise error(cannot_write(path, problem)) from None


def sync_folder(folder: Path) -> None:
    """Wait until new, renamed and removed names in a folder are on the disk: a power cut must not undo them.

    If the file system cannot do this, do nothing.
    """
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder, and only a failed call shows this
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cannot_write(path: Path | str, problem: OSError, size: int | None = None) -> str:
    """Return the message of a failed write: the file, the reason, the room on a full disk, and what to do.

    Args:
        path: File that could not be written.
        problem: Error that the operating system reported.
        size: Number of bytes to write, if known.
    """
    reason = problem.strerror or str(problem) or type(problem).__name__
    room = f" ({_room(Path(path), size)})" if problem.errno in FULL else ""
    advice = _ADVICE.get(problem.errno or 0)
    return f"cannot write {shown(str(path), 300)}: {reason}{room}. " + (
        f"{advice}; then the same command continues."
        if advice
        else "Once it can be written, the same command continues."
    )


def _room(path: Path, size: int | None) -> str:
    needed = "" if size is None else f"{as_size(size)} needed, "
    return f"{needed}{free_room(path)}"


def free_room(path: Path) -> str:
    """Return words about the free space on the disk of the file `path`, such as `1.5 GB free in /data`."""
    folder = nearest_folder(path.absolute().parent)
    try:
        free = as_size(shutil.disk_usage(folder).free)
    except OSError:
        free = "an unknown size"
    return f"{free} free in {folder}"


def nearest_folder(path: Path) -> Path:
    """Return `path` if it is a folder, else the nearest folder above it, which lies on the same disk."""
    whole = path.absolute()
    return next((above for above in (whole, *whole.parents) if above.is_dir()), Path("/"))


def as_size(count: int) -> str:
    """Return a number of bytes as a text with a unit, such as `1.5 GB`."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
