"""Let only one process at a time work in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import RunError


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Return a context in which no other process can work in a folder. Make the folder if it is missing.

    Args:
        folder: The folder. It gets a file `lock`.
        what: Name of the work, such as `sweep`, for the message.

    Raises:
        RunError: Another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        # Use `flock`: the system frees it even if the process is killed. A mere file as a sign would stay behind.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is running the {what} in {folder}. Wait for it, or stop it.") from None
        yield
