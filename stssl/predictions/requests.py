"""Tell whether an output of `stssl predict` or `stssl embed` exists already, and if it has the wanted contents.

It has if an earlier call with the same request (models, patches and options) made it.
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
    """Return a hash of the request for a table: of everything that decides its contents.

    Args:
        models: Hash of each model's weights, by name.
        source: Source of the patches.
        options: Values of the options.
    """
    return settings_hash((TABLE_FORMAT, sorted(models.items()), source.identity, [*options]))


def made_already(path: Path, request: str) -> JsonObject | None:
    """Read the metadata of an output if an earlier call has finished it. Refuse to replace any other file.

    Args:
        path: Table (`.parquet`) or Zarr group (`.zarr`).
        request: Hash of the request.

    Returns:
        Metadata of the output, if an earlier call with the same request finished it; None if there is no output yet.

    Raises:
        ConfigError: Another file or folder has this name.
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
    """Return the remark which tells the user that an earlier call has already made the output at `path`."""
    return f"{path.name} is already made: by the same models, from the same patches, with the same options"


def _entries(path: Path) -> JsonObject:
    """Read the metadata that this program writes into its outputs; empty if another program wrote the file.

    They are also empty if the file is damaged.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, pyarrow.ArrowException):
        if path.is_dir():
            text = json.dumps(zarr.open_group(str(path), mode="r").attrs[NOTES])
        else:
            text = pyarrow.parquet.read_schema(path).metadata[NOTES.encode()].decode()
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}
