"""Turn errors of the storage of an Optuna study into messages that say what to do."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import RunError, first_line
from stssl.base.whole_files import cannot_write, free_room

CONTINUES = "then the same command continues"
DAMAGED = (
    "It is damaged: put a whole copy back, or give this sweep another name (name=...). The runs of its trials are in "
    "their folders as they were."
)
STORAGE_ADVICE = {
    "BUSY": f"Another process holds it: wait for that one, or stop it; {CONTINUES}.",
    "LOCKED": f"Another process holds it: wait for that one, or stop it; {CONTINUES}.",
    "FULL": f"Make room there; {CONTINUES}.",
    "READONLY": f"Let this user write it and its folder; {CONTINUES}.",
    "CANTOPEN": "Give a file in a folder that is there and may be written.",
    "PERM": f"Let this user write it and its folder; {CONTINUES}.",
    "IOERR": f"Its disk or file system fails, or a limit on file sizes is reached: see to that; {CONTINUES}.",
    "CORRUPT": DAMAGED,
    "NOTADB": DAMAGED,
}
"""Advice for the user, by SQLite's result code."""


def without_password(url: str) -> str:
    """Return the URL of a study's storage with `***` in place of the password, so that messages can show it."""
    head, at, tail = url.rpartition("@")
    hidden = f"{head.rpartition(':')[0]}:***@{tail}" if at and ":" in head.partition("//")[2] else url
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", hidden)


@contextlib.contextmanager
def study_errors(url: str, opening: bool = False) -> Iterator[None]:
    """Return a context that turns errors of a study's storage into a `RunError` with advice.

    Args:
        url: URL of the study's storage.
        opening: True if the code in this context reads the study for the first time. Errors such as a ValueError then
            also count as damage of the study.

    Raises:
        RunError: The study cannot be read or written. The message says why, and what to do.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    # Optuna does not check what it reads. At the first read, any of these errors means that the study is damaged.
    # Later, it means a bug in stssl, which must stay visible.
    strange = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError) if opening else ()
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error) as error:
        raise RunError(_explained(url, error, "open" if opening else "use")) from None
    except OSError as error:
        if not url.startswith("journal:") or error.filename is not None:
            raise
        raise RunError(f"study: {cannot_write(url.partition(':')[2].removeprefix('//'), error)}") from None
    except strange as error:
        raise RunError(
            f"study: {without_password(url)} does not hold what a study holds ({first_line(error)}). {DAMAGED}"
        ) from None


def _explained(url: str, error: BaseException, what: str) -> str:
    cause = _cause(error)
    where, why = without_password(url), first_line(cause)
    code = getattr(cause, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
    if not url.startswith("sqlite"):
        return f"study: cannot {what} {where}: {why}. Once it can be reached, the same command continues."
    room = f" ({free_room(Path(url.partition(':///')[2]))})" if code == "FULL" else ""
    return f"study: cannot {what} {where}: {why}{room}. {STORAGE_ADVICE.get(code, DAMAGED)}"


def _cause(error: BaseException) -> BaseException:
    """Return the original error of the database, which SQLAlchemy and Optuna have wrapped in the error `error`."""
    seen = error
    while (inner := getattr(seen, "orig", None) or seen.__cause__) is not None:
        seen = inner
    return seen
