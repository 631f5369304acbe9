"""Write results to a path or to the URL of an object store: to a local file first, which is then sent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import ConfigError
from stssl.base.mirror import mirror_of
from stssl.base.paths import bucket_folder, is_url


@contextlib.contextmanager
def local_output(out: str | Path) -> Iterator[Path]:
    """Return a context with the local path to write. At its end, the files are sent if the output is a URL.

    Files with other endings, such as the picture beside a map, are sent too.

    Args:
        out: Path or URL of a file.

    Raises:
        ConfigError: The URL is not one of an object store, or it names no file.
        DataError: The bucket does not exist or refuses files, or the store does not answer.
    """
    if not is_url(str(out)):
        yield Path(out)
        return
    parent, name = _divided(str(out))
    mirror = mirror_of(parent)
    # Find out before hours of work that nothing can be written there.
    mirror.remote.write(f".{name}.new", b"")
    mirror.remote.remove(f".{name}.new")
    yield mirror.folder / name
    # Send no file of another output whose name only begins alike: it may be half written.
    beside = f"{Path(name).stem}."
    mirror.push(lambda file: file == name or file.startswith(beside))


def _divided(out: str) -> tuple[str, str]:
    """Divide the URL of a file into the URL of its folder and its name."""
    try:
        parent, _, name = bucket_folder(out).rpartition("/")
    except ValueError as error:
        raise ConfigError(f"--out: {error}") from None
    if parent.endswith("/"):
        raise ConfigError(f"--out: {out} is a whole bucket. Give a name in it.")
    return parent, name
