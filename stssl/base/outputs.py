"""Write results to a path or to the URL of an object store: to a local file first, which is then sent."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from stssl.base.errors import ConfigError, RunError
from stssl.base.mirror import mirror_of
from stssl.base.paths import bucket_folder, is_url


@contextlib.contextmanager
def local_output(out: str | Path, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Return a context with the local path of an output. If the output is a URL, send its files at the end.

    A file that the object store has already is fetched first. So the code inside the context decides about existing
    files as it does on a disk. An unchanged file is not sent again.

    Args:
        out: Path or URL of a file.
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
    # Find out before hours of work that nothing can be written there.
    mirror.remote.write(f".{name}.new", b"")
    mirror.remote.remove(f".{name}.new")
    names = {name, *(f"{Path(name).stem}{ending}" for ending in beside)}
    for one in names:
        mirror.fetch(one)
    with naming_url(mirror.folder, parent):
        yield mirror.folder / name
    # Send no file of another output: it may be half written.
    mirror.push(names.__contains__)


@contextlib.contextmanager
def naming_url(folder: Path, url: str) -> Iterator[None]:
    """Return a context in which messages about options name the URL that the user gave, not this process's copy of it.

    Args:
        folder: Local copy of the folder in the object store.
        url: URL of that folder.
    """
    try:
        yield
    except (ConfigError, RunError) as error:
        # Other messages, such as that of a full disk, are about the local copy.
        if not str(error).startswith("--"):
            raise
        raise type(error)(str(error).replace(str(folder), url)) from None


def _divided(out: str) -> tuple[str, str]:
    """Divide the URL of a file into the URL of its folder and its name."""
    try:
        parent, _, name = bucket_folder(out).rpartition("/")
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None
    if parent.endswith("/"):
        raise ConfigError(f"--out: {out} is a whole bucket. Give a name in it.")
    return parent, name
