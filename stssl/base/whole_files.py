"""Write files whole or not at all, even if the process or the machine dies meanwhile; explain why a write failed.

Everything that a run, a sweep or a report keeps is written by `write_whole`; rows of metrics by `append_line`.
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
    """Replace a file so that readers see either the old content or the new one, also after a crash or a power cut.

    Processes that write the same file wait for each other. The temporary file of a killed process is used again by the
    next writer.

    Args:
        path: File to write; its folder is made if it is missing.
        content: New content: text, which is written as UTF-8, bytes, or a function that writes to the open file.
        error: Class of the error to raise.

    Raises:
        StsslError: Of the class `error`: nothing was written; says where, why, and how much room there is.
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
            # Content before name: after a power cut a file system may keep a rename and lose the bytes it points to.
            os.fsync(file.fileno())
            fresh.replace(path)
        sync_folder(path.parent)
    except OSError as problem:
        raise error(cannot_write(path, problem, size)) from None


@contextlib.contextmanager
def _sole(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file that no other process writes, and remove it if the caller fails before renaming it."""
    while True:
        # O_NOFOLLOW, so that a link of this name cannot lead the write to another file.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # some network file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, path):
            break
        os.close(handle)  # while this process waited, another one renamed the file: the lock is on the wrong one
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
    """Add a line to a file as a whole, or leave the file as it was.

    Args:
        path: File to add to; it is made if it is missing.
        line: Text without a line break.
        error: Class of the error to raise.

    Raises:
        StsslError: Of the class `error`: the line could not be written.
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


def is_there(path: Path) -> bool:
    """Return True if a file, folder or link has this name, also a link to a file that does not exist."""
    return os.path.lexists(path)


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file to read it; refuse folders, pipes and devices, on which reading could wait forever.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.open("rb")


def sync(path: Path, error: type[StsslError] = RunError) -> None:
    """Wait until a file's content is on the disk; do nothing if there is no such file.

    Raises:
        StsslError: Of the class `error`: the disk did not take the content.
    """
    try:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as problem:
        raise error(cannot_write(path, problem)) from None


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):  # some file systems have no such operation, and no way to ask
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cannot_write(path: Path | str, problem: OSError, size: int | None = None) -> str:
    """Build the message of a failed write: the file, the reason, the room on the disk, what to do.

    Args:
        path: File that could not be written.
        problem: Error that the operating system reported.
        size: Number of bytes that were to be written, if known.
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
    """Describe how much room is left on the disk of a file, and the folder that was asked about."""
    folder = next((above for above in path.absolute().parents if above.is_dir()), Path("/"))
    try:
        free = as_size(shutil.disk_usage(folder).free)
    except OSError:
        free = "an unknown size"
    return f"{free} free in {folder}"


def as_size(count: int) -> str:
    """Write a number of bytes as people read it, such as 1.5 GB."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
