"""Tell whether an output of `stssl predict` or `stssl embed` exists already, and if it has the wanted contents.

It has the wanted contents if an earlier call with the same request (models, patches and options) made it.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zarr

from stssl.base.errors import ConfigError
from stssl.base.hashing import settings_hash
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import is_there
from stssl.predictions.geoparquet import NOTES
from stssl.predictions.patches import PatchSource

REQUEST_KEY = "request"
"""Key of the entry with the hash of what was asked for: models, patches and options."""
TABLE_FORMAT = 1
"""Version of the tables. Outputs of another version are not taken for the same request."""


def request_hash(models: Mapping[str, str], source: PatchSource, options: Iterable[object]) -> str:
    """Return a hash of everything that decides the contents of an output: models, patches and options.

    Args:
        models: Hash of each model's weights, by name of the model.
        source: Source of the patches.
        options: Values of the options, always in the same sequence.
    """
    return settings_hash((TABLE_FORMAT, sorted(models.items()), source.identity, [*options]))


def made_already(path: Path, request: str) -> JsonObject | None:
    """Read the metadata of an output if an earlier call with the same request has finished it.

    Args:
        path: Table (`.parquet`) or Zarr group (`.zarr`) that a command is to write.
        request: Hash of the request: of models, patches and options.

    Returns:
        Metadata of the finished output; None if nothing has this name yet.

    Raises:
        ConfigError: A file or folder with this name exists, and this request did not make it.
    """
    if not is_there(path):
        return None
    found = _entries(path)
    if found.get(REQUEST_KEY) != request:
        raise ConfigError(
            f"--out: {path} is there already, and these models, patches and options did not make it. Remove it, or "
            "give another name."
        )
    return found


def made_note(path: Path) -> str:
    """Return a sentence for the user: an earlier call has already made this output.

    Args:
        path: Path of the output.
    """
    return f"{path.name} is already made: by the same models, from the same patches, with the same options"


def _entries(path: Path) -> JsonObject:
    """Return the metadata that this program wrote into an output. They are empty if another program wrote it.

    They are also empty if the output is damaged.

    Args:
        path: Parquet file or Zarr group.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, pyarrow.ArrowException):
        if path.is_dir():
            text = json.dumps(zarr.open_group(str(path), mode="r").attrs[NOTES])
        else:
            text = pyarrow.parquet.read_schema(path).metadata[NOTES.encode()].decode()
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}
