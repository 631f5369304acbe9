"""Let commands write results to a path or to a URL of an object store. For a URL, they write a local file to send."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from stssl.base.errors import ConfigError, RunError
from stssl.base.mirror import mirror_of
from stssl.base.paths import bucket_folder, is_url


@contextlib.contextmanager
def local_output(out: str | Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Return a context that yields the local path where to write an output file.

    If `out` is a URL, send the written files to the object store at the end. Files that the object store has already
    are fetched first, so the code inside the context treats existing files as it does on a disk. An unchanged file is
    not sent again.

    Args:
        out: Path or URL of the output file.
        beside: Endings of further files with the same name, such as `.png` for the picture beside a map.

    Raises:
        ConfigError: The URL is not one of an object store, or it names no file.
        DataError: The bucket does not exist or refuses files, or the store does not answer.
        RunError: The local copy cannot be written.
    """
    if not is_url(str(out)):
        yield Path(out)
        return
    parent, name = _divided(str(out))
    mirror = mirror_of(parent)
    # Send and remove an empty file: if the bucket refuses files, the user must learn this before hours of work.
    mirror.remote.write(f".{name}.new", b"")
    mirror.remote.remove(f".{name}.new")
    names = {name, *(f"{Path(name).stem}{ending}" for ending in beside)}
    for one in names:
        mirror.fetch(one)
    with naming_url(mirror.folder, parent):
        yield mirror.folder / name
    # Send only the files of this output: files of another output in the same folder may be half written.
    mirror.push(names.__contains__)


@contextlib.contextmanager
def naming_url(folder: Path, url: str) -> Iterator[None]:
    """Return a context in which errors about options name the URL that the user gave, not the local copy of it.

    Args:
        folder: Local copy of the folder in the object store.
        url: URL of that folder.
    """
    try:
        yield
    except (ConfigError, RunError) as error:
        # Change only messages about options: they begin with `--`. Other messages, such as that of a full disk, are
        # about the local copy.
        if not str(error).startswith("--"):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from None


def _divided(out: str) -> tuple[str, str]:
    """Return the URL of the folder of a file, and the file's name, given the URL of the file."""
    try:
        parent, _, name = bucket_folder(out).rpartition("/")
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None
    if parent.endswith("/"):
        raise ConfigError(f"--out: {out} is a whole bucket. Give a name in it.")
    return parent, name
