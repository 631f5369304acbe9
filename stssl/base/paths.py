"""Check paths and names in recipes and sweep files, and make paths absolute.

A path becomes absolute once: when the command that the user typed validates the file. Workers run in other folders and
could not resolve it. Only `stssl submit` does not change paths (`ELSEWHERE`): its job validates the file again on the
machine where it starts.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from stssl.base.errors import ConfigError

ELSEWHERE = {"elsewhere": True}
"""Validation context for a file that another machine will run. Paths stay as they are."""

STORES = ("s3", "gs", "az")
"""URL schemes of the object stores that may hold stores of patches and results."""

WEIGHT_KINDS = ("timm", "hf", "package", "file", "run")
"""Words before the colon in values of `model.weights`."""

NAME_BYTES = 255
"""Length in bytes of the longest name of a file or folder on common file systems."""

_URL = re.compile(
    r"^\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/|^\s*(?P<known>s3a?|gs|gcs|az|abfss?|hdfs|https?|file):|://"
)
_BUCKET = re.compile(
    rf"(?P<scheme>{'|'.join(STORES)})://(?P<bucket>[A-Za-z0-9][\w.-]*)(?P<key>/.*)?", re.IGNORECASE | re.ASCII
)


def is_url(path: str) -> bool:
    """Return True if a text is a URL, False if it is a path. A mistyped URL, such as `s3:/bucket`, counts as a URL."""
    return _URL.search(path) is not None


def from_home(path: str) -> str:
    """Return a path with `~` or `~NAME` at its start replaced by the home folder, as a shell does.

    Raises:
        ValueError: This machine has no user NAME.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home folder for '{path}' on this machine: write the path out") from None


def absolute(path: str) -> str:
    """Return a path as an absolute path. A relative path counts from the current folder, and links are not followed.

    Raises:
        ValueError: The path is empty, or it holds a character that no path can hold.
    """
    if not path.strip():
        raise ValueError("the path is empty")
    if "\0" in path:
        raise ValueError("a path cannot hold the character NUL")
    # `Path.resolve` would follow links. But users know a folder by the name that they gave.
    return os.path.abspath(from_home(path))  # noqa: PTH100


def located(path: str) -> str:
    """Return where a store of patches lies: a URL unchanged, and a path as an absolute path.

    Raises:
        ValueError: The text is neither a URL nor a path.
    """
    if "://" in path:
        return path
    if is_url(path):
        raise ValueError("this is neither a path nor a URL such as s3://BUCKET/PATH")
    return absolute(path)


def folder(path: str) -> str:
    """Return where a folder for results lies: its URL in an object store, or its absolute path.

    Raises:
        ValueError: The text is neither the URL of an object store nor a path.
    """
    return bucket_folder(path) if is_url(path) else absolute(path)


def bucket_folder(url: str) -> str:
    """Check the URL of a folder in an object store, and return it without slashes at its end.

    Raises:
        ValueError: The text is no such URL. The message does not repeat it, since it may hold a password.
    """
    parts = _BUCKET.fullmatch(url.strip())
    names = (parts["key"] or "").removeprefix("/").rstrip("/").split("/") if parts else []
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("a URL must not hold a user or password: credentials come from environment variables")
    if parts is None:
        raise ValueError("this is neither a path nor the URL of an object store: s3://, gs:// or az://BUCKET/FOLDER")
    if names != [""] and (not url.isprintable() or set("?#\\") & set(url) or {"", ".", ".."} & set(names)):
        raise ValueError("the folder in a URL must be of plain names: no '..', no double slash, no ? and no #")
    return "/".join([f"{parts['scheme'].lower()}://{parts['bucket']}", *(names if names != [""] else [])])


def below(place: str | Path, *names: str) -> str:
    """Return the path or URL of a file or folder inside the folder `place`, which is a path or URL.

    Args:
        place: The folder.
        names: The folders below `place` that lead to the file or folder, and last its own name.
    """
    return "/".join([str(place), *names]) if is_url(str(place)) else str(Path(place, *names))


def local(path: str) -> str:
    """Return the absolute path of a local file or folder. Refuse URLs.

    Raises:
        ValueError: The text is a URL, or no path.
    """
    if is_url(path):
        raise ValueError("URLs cannot be used here: give the path of a file or folder that this machine sees")
    return absolute(path)


def weights(text: str) -> str:
    """Return a value of `model.weights` with the path in `file:PATH` made absolute. Other values stay unchanged.

    `run:NAME` stays unchanged too: only `started_from` knows the folder of the runs.

    Raises:
        ValueError: The text is none of the allowed kinds. Or the text after `file:` is a URL, or no path.
    """
    kind, colon, path = text.partition(":")
    if text not in ("none", "imagenet") and (kind not in WEIGHT_KINDS or not path.strip()):
        raise ValueError("give none, imagenet, timm:TAG, hf:REPO[/FILE], package:NAME, file:PATH or run:FOLDER")
    return f"file:{local(path)}" if colon and kind == "file" else text


def started_from(text: str, storage: str) -> str:
    """Return `run:` followed by the absolute folder or the URL of a run, given `run:NAME` or `run:FOLDER`.

    Return other values of `model.weights` unchanged.

    Args:
        text: Value of `model.weights`.
        storage: Folder of the runs, or its URL. NAME is a folder in it.

    Raises:
        ValueError: The text after `run:` is no path and no URL of an object store. Or the storage is in an object
            store, and a relative path names no folder of this machine.
    """
    kind, colon, name = text.partition(":")
    if not colon or kind != "run":
        return text
    bare = os.sep not in name and not name.startswith("~")
    try:
        if is_url(name):
            return f"run:{bucket_folder(name)}"
        here = absolute(name)
        if is_url(storage):
            # Look up a bare name only in the bucket: a local folder that happens to have this name is another run.
            if bare:
                return f"run:{below(storage, component(name))}"
            if Path(name).is_absolute() or Path(here).is_dir():
                return f"run:{here}"
            raise ValueError(f"there is no folder {here}, and a path is not looked up in {storage}")
        kept = absolute(os.path.join(storage, from_home(name)))  # noqa: PTH118
    except ValueError as error:
        raise ValueError(f"model.weights: {error}: give run:NAME, run:FOLDER or run:URL") from None
    return f"run:{here if Path(here).is_dir() or not (bare or Path(kept).is_dir()) else kept}"


def stable_weights(text: str, storage: str) -> str:
    """Return a value of `model.weights` in the form in which recipes of runs are compared.

    Write the folder in `run:FOLDER` relative to the storage if it lies inside. So a run counts as the same run after
    the storage has moved. Make the path in `file:PATH` absolute. Return other values, also wrong ones, unchanged.

    Args:
        text: Value of `model.weights`.
        storage: Folder of all runs, or its URL.
    """
    try:
        storage = folder(storage)
        text = started_from(weights(text), storage)
    except ValueError:
        return text
    kind, _, name = text.partition(":")
    if kind != "run" or is_url(storage) != is_url(name):
        return text
    if is_url(storage):
        return f"run:{name.removeprefix(f'{storage}/')}"
    inside = Path(name).is_relative_to(storage) and name != storage
    return f"run:{os.path.relpath(name, storage)}" if inside else text


def study(url: str) -> str:
    """Return the URL of an Optuna storage with the path of a local file made absolute. URLs of servers stay unchanged.

    Raises:
        ValueError: The URL has no path after `journal:` or `sqlite:///`.
    """
    for head in ("journal:", "sqlite:///"):
        if url.startswith(head):
            path = url.removeprefix(head)
            path = path.removeprefix("//") if head == "journal:" else path
            return url if path.startswith(":memory:") else f"{head}{local(path)}"
    return url


def tracking(uri: str) -> str:
    """Return an MLflow tracking URI, with a local path in it made absolute. The address of a server stays unchanged.

    Raises:
        ValueError: The path is empty.
    """
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{absolute(uri.removeprefix('sqlite:///'))}"
    if uri.startswith("file:") and not uri.startswith("file://"):
        return f"file:{absolute(uri.removeprefix('file:'))}"
    return uri if is_url(uri) or uri.startswith("databricks") else absolute(uri)


def component(name: str) -> str:
    """Check that a folder or file can have this name, and return it unchanged.

    A name must have only printable characters, no slashes, no space at its ends, and at most `NAME_BYTES` bytes.

    Raises:
        ValueError: The name cannot be that of a folder or file. The message says why.
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
    """Check that a column of a store can have this name, and return it unchanged. A column is an array in the store.

    Raises:
        ValueError: The name is empty or a path, or it has characters that cannot be printed.
    """
    if not name.strip() or "/" in name or name in (".", "..") or not name.isprintable():
        raise ValueError("give the name of a column, such as country or seasonal_snow")
    return name


def _where_it_runs(function: Callable[[str], str]) -> AfterValidator:
    """Return a pydantic validator that checks a path, and makes it absolute only on the machine that uses it.

    For example, `stssl submit` checks a recipe on one machine, and a job on another machine uses it.

    Args:
        function: Takes a path and returns it as an absolute path. It raises a ValueError for a wrong path.
    """

    def validate(value: str, info: ValidationInfo) -> str:
        # Leave a `~` to the machine of the job: this machine may have another home folder, or lack the user.
        if info.context == ELSEWHERE and value.startswith("~"):
            return value
        changed = function(value)
        return value if info.context == ELSEWHERE else changed

    return AfterValidator(validate)


def digits(name: object) -> object:
    """Return a whole number as the text of its digits, and everything else unchanged.

    YAML reads `[1,2,3]` as numbers, and bands may have these names.
    """
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


StorePlace = Annotated[str, _where_it_runs(located)]
"""Place of a store that a recipe reads: a path, or the URL of an object store."""
Location = Annotated[str, _where_it_runs(local)]
"""Path of a file or folder that a recipe reads."""
Folder = Annotated[str, _where_it_runs(folder)]
"""Place of a folder for results: a path, or the URL of a folder in an object store."""
Weights = Annotated[str, _where_it_runs(weights)]
"""Weights that networks start from: `none`, `imagenet`, `timm:TAG`, `hf:REPO[/FILE]`, `file:PATH` or `run:NAME`."""
Study = Annotated[str, _where_it_runs(study)]
"""URL of an Optuna storage."""
Tracking = Annotated[str, _where_it_runs(tracking)]
"""Tracking URI of MLflow."""
ColumnName = Annotated[str, AfterValidator(column)]
"""Name of a column of a store."""
Word = Annotated[str, BeforeValidator(digits)]
"""Name in a list, such as that of a band. A whole number counts as its digits: bands may be called 1, 2, ..."""
Name = Annotated[str, AfterValidator(component)]
"""Name that becomes a folder."""
SweepName = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100), AfterValidator(component)]
"""Name of a sweep. It is shorter than other names, since the names of the trials begin with it."""


def path_given(path: str | Path, what: str) -> Path:
    """Check that an argument of a command is a local path, and return it as a `Path`.

    Args:
        path: Argument of the command.
        what: Name of the argument in the error.

    Raises:
        ConfigError: The argument is a URL, or no path.
    """
    try:
        local(str(path))
    except ValueError as error:
        raise ConfigError(f"{what}: {error} (given: {str(path)!r})") from None
    return Path(path)


def store_given(path: str, what: str) -> str:
    """Return the URL or the absolute path of a store that the command line names.

    Args:
        path: Argument of the command.
        what: Name of the argument in the error.

    Raises:
        ConfigError: The argument is neither the URL of an object store nor a path.
    """
    try:
        return located(path)
    except ValueError as error:
        raise ConfigError(f"{what}: {error} (given: {path!r})") from None


def folder_given(path: str | Path, what: str) -> str:
    """Check an argument that names a folder. Return a local path unchanged, and a URL without slashes at its end.

    Args:
        path: Argument of the command.
        what: Name of the argument in the error.

    Raises:
        ConfigError: The argument is neither the URL of an object store nor a path.
    """
    try:
        return bucket_folder(str(path)) if is_url(str(path)) else str(path_given(path, what))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
