"""Paths and names in recipes and sweep files: absolute once, where a command starts, since workers run elsewhere.

A path is made absolute when a file is validated, in the process where the command was typed. `stssl submit` alone
leaves paths as they are (`ELSEWHERE`): what it sends is validated again where the job starts.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from stssl.base.errors import ConfigError

ELSEWHERE = {"elsewhere": True}
"""The context of a validation on a machine that does not carry out what the file says."""

STORES = ("s3", "gs", "az")
"""Schemes of the object stores in which a store of patches may lie."""

NAME_BYTES = 255
"""The longest name of a file or folder on common file systems."""

_URL = re.compile(
    r"^\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/|^\s*(?P<known>s3a?|gs|gcs|az|abfss?|hdfs|https?|file):|://"
)
SHARED = "Results go to a folder for now, on a cluster to one that all nodes share: give its path, such as /shared/runs"


def is_url(path: str) -> bool:
    """True if a text is a URL, or one with a typing error (`s3:/bucket`), and not a path."""
    return _URL.search(path) is not None


def from_home(path: str) -> str:
    """A path with `~` as the shell has it.

    Raises:
        ValueError: `~NAME` of somebody whom this machine does not know.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home folder for '{path}' on this machine: write the path out") from None


def absolute(path: str) -> str:
    """An absolute path.

    Raises:
        ValueError: It is empty, or holds a character that no path can hold.
    """
    if not path.strip():
        raise ValueError("the path is empty")
    if "\0" in path:
        raise ValueError("a path cannot hold the character NUL")
    return os.path.abspath(from_home(path))  # noqa: PTH100


def located(path: str) -> str:
    """Return where a store of patches lies: a URL of an object store as it is, or an absolute path.

    Raises:
        ValueError: It is neither.
    """
    if "://" in path:
        return path
    if is_url(path):
        raise ValueError("this is neither a path nor a URL such as s3://BUCKET/PATH")
    return absolute(path)


def folder(path: str) -> str:
    """An absolute path of a folder that results go to.

    Raises:
        ValueError: It is a URL, or no path.
    """
    if is_url(path):
        raise ValueError(f"URLs cannot be used here yet. {SHARED}")
    return absolute(path)


def local(path: str) -> str:
    """An absolute path of a file or folder that is read or written without an object store's protocol.

    Raises:
        ValueError: It is a URL, or no path.
    """
    if is_url(path):
        raise ValueError("URLs cannot be used here: give the path of a file or folder that this machine sees")
    return absolute(path)


def weights(text: str) -> str:
    """`file:PATH` with an absolute path; `run:` waits for the run's storage (`started_from`).

    Raises:
        ValueError: The path is a URL, or none.
    """
    kind, colon, path = text.partition(":")
    return f"file:{local(path)}" if colon and kind == "file" else text


def started_from(text: str, storage: str) -> str:
    """`run:` with the run's absolute folder: the path as it is given, or the name of a run in `storage`.

    Args:
        text: What `model.weights` says.
        storage: Folder of runs.

    Raises:
        ValueError: It is a URL, or no path.
    """
    kind, colon, name = text.partition(":")
    if not colon or kind != "run":
        return text
    if is_url(name):
        raise ValueError("model.weights: run: takes the name or folder of a run, not a URL: copy that folder here")
    try:
        here, kept = absolute(name), absolute(os.path.join(storage, from_home(name)))  # noqa: PTH118
    except ValueError as error:
        raise ValueError(f"model.weights: {error}: give run:NAME or run:FOLDER") from None
    bare = os.sep not in name
    return f"run:{here if Path(here).is_dir() or not (bare or Path(kept).is_dir()) else kept}"


def stable_weights(text: str, storage: str) -> str:
    """Name what a run starts from, so that the name stays when its storage moves; accepts older spellings too."""
    try:
        storage = absolute(storage)
        text = started_from(weights(text), storage)
    except ValueError:
        return text
    kind, _, name = text.partition(":")
    inside = kind == "run" and Path(name).is_relative_to(storage) and name != storage
    return f"run:{os.path.relpath(name, storage)}" if inside else text


def study(url: str) -> str:
    """An Optuna storage whose file has an absolute path.

    Raises:
        ValueError: There is no path after `journal:` or `sqlite:///`.
    """
    for head in ("journal:", "sqlite:///"):
        if url.startswith(head):
            path = url.removeprefix(head)
            path = path.removeprefix("//") if head == "journal:" else path
            return url if path.startswith(":memory:") else f"{head}{local(path)}"
    return url


def tracking(uri: str) -> str:
    """A tracking URI of MLflow whose folder or file has an absolute path.

    Raises:
        ValueError: The path is empty.
    """
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{absolute(uri.removeprefix('sqlite:///'))}"
    if uri.startswith("file:") and not uri.startswith("file://"):
        return f"file:{absolute(uri.removeprefix('file:'))}"
    return uri if is_url(uri) or uri.startswith("databricks") else absolute(uri)


def component(name: str) -> str:
    """A name that becomes one folder or file: printable characters without `/`.

    Raises:
        ValueError: It is not.
    """
    if not name.strip() or name != name.strip():
        raise ValueError("a name must be of printable characters and not begin or end with a space")
    if not name.isprintable():
        raise ValueError("a name must be of printable characters")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError("a name is that of one folder, not a path: leave out slashes, and say where with storage")
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"a name has at most {NAME_BYTES} bytes, and this one has {len(name.encode())}")
    return name


def column(name: str) -> str:
    """The name of a store's column, which is one array in it.

    Raises:
        ValueError: It is a path, or empty.
    """
    if not name.strip() or "/" in name or name in (".", "..") or not name.isprintable():
        raise ValueError("give the name of a column, such as country or seasonal_snow")
    return name


def _where_it_runs(function: Any) -> AfterValidator:
    """A validator that leaves a value as it is where the file is only looked at."""

    def validate(value: str, info: ValidationInfo) -> str:
        if info.context == ELSEWHERE and value.startswith("~"):
            return value
        changed: str = function(value)  # elsewhere, too: a URL that is wrong there is wrong here
        return value if info.context == ELSEWHERE else changed

    return AfterValidator(validate)


StorePlace = Annotated[str, _where_it_runs(located)]
"""A store of patches, which a recipe reads: a path, or a URL of an object store."""
Location = Annotated[str, _where_it_runs(local)]
"""A file or folder that a recipe reads."""
Folder = Annotated[str, _where_it_runs(folder)]
"""A folder that results go to."""
Weights = Annotated[str, _where_it_runs(weights)]
"""Where networks start from."""
Study = Annotated[str, _where_it_runs(study)]
"""An Optuna storage."""
Tracking = Annotated[str, _where_it_runs(tracking)]
"""A tracking URI of MLflow."""
ColumnName = Annotated[str, AfterValidator(column)]
"""A column of a store."""
Name = Annotated[str, AfterValidator(component)]
"""A name that becomes a folder."""
SweepName = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100), AfterValidator(component)]
"""The same of a sweep, whose trials' names are longer."""


def path_given(path: str | Path, what: str) -> Path:
    """A path from the command line, as it was given.

    Raises:
        ConfigError: It is a URL, or no path.
    """
    try:
        local(str(path))
    except ValueError as error:
        raise ConfigError(f"{what}: {error} (given: {str(path)!r})") from None
    return Path(path)


def store_given(path: str, what: str) -> str:
    """Return where a store lies that the command line names: a URL, or an absolute path.

    Raises:
        ConfigError: It is neither.
    """
    try:
        return located(path)
    except ValueError as error:
        raise ConfigError(f"{what}: {error} (given: {path!r})") from None
