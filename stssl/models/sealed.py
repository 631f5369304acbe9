"""Exported weights: safetensors files that say what their contents are, so that changed bytes are noticed.

The header holds the version of the writer and a SHA-256 over its other entries and over all tensors: names, types,
shapes and bytes. Other programs read such a file like any other, and pass over both.
"""

import hashlib
import json
import logging
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stssl import __version__
from stssl.base.errors import ConfigError

EXPORTS = ("student.safetensors", "encoder.safetensors")
"""Names of the files that runs export."""
WRITER, DIGEST = "stssl", "sha256"
"""Entries of the header; either alone is a damaged file's."""
UNREADABLE = (
    SafetensorError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
"""What safetensors and torch raise of bytes that are no state dict."""
_LENGTH = struct.Struct("<Q")
_TOLD: set[Path] = set()
"""Files of which this process has told that they are without a checksum."""


def seal(weights: Mapping[str, Tensor]) -> bytes:
    """Make the contents of a file of weights that says what it holds."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    about = {"format": "pt", WRITER: __version__}
    plain = save(tensors)
    start = _LENGTH.size + _LENGTH.unpack_from(plain)[0]
    # safetensors itself would write these entries in another order each time, and equal runs export equal bytes.
    entries = {"__metadata__": about | {DIGEST: _digest(tensors, about)}} | json.loads(plain[_LENGTH.size : start])
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH.size)
    return b"".join([_LENGTH.pack(len(header)), header, memoryview(plain)[start:]])


def read_sealed(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, and compare it with its checksum if it has one.

    An export of a version that wrote none is read with one warning; other programs' files have none to compare.

    Raises:
        ConfigError: The file is not what was written.
        SafetensorError: It is not a safetensors file.
    """
    with safe_open(path, "pt") as file:
        header = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if WRITER in header or DIGEST in header:
        if header.pop(DIGEST, None) != _digest(tensors, header):
            raise ConfigError(
                f"model.weights: {path} is damaged: its contents differ from its checksum. Copy it again; or remove "
                "done.json of the run that exported it and give that run's command again, which writes it anew."
            )
    elif path.name in EXPORTS and path not in _TOLD:
        _TOLD.add(path)
        logging.getLogger("stssl").warning(
            "%s was written before exported weights had a checksum: bytes that change there are not noticed.", path
        )
    return tensors


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 of all that a file says, in an order that does not depend on where it stands there."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
