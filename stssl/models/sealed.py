"""Write and read exported weights: safetensors files with a checksum that reveals changed bytes.

The header holds two extra entries: the version of this package, and a SHA-256. The SHA-256 covers the other entries of
the header, and the names, types, shapes and bytes of all tensors. Other programs can read the file: they ignore both
entries.
"""

import hashlib
import json
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
from stssl.base.logs import LOG

EXPORTS = ("student.safetensors", "encoder.safetensors")
"""Names of the weight files that runs export."""
WRITER, DIGEST = "stssl", "sha256"
"""Keys of the two extra entries in the header. A file with only one of them is damaged."""
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
"""Errors that safetensors and torch raise if a file does not hold a state dict."""
_LENGTH = struct.Struct("<Q")
_TOLD: set[Path] = set()
"""Files without a checksum for which this process has already logged a warning."""


def seal(weights: Mapping[str, Tensor], entries: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file that holds the weights and a checksum.

    Args:
        weights: Tensors by name.
        entries: Further entries of the file's header: texts by name.
    """
    tensors = {name: value.contiguous() for name, value in weights.items()}
    about = {"format": "pt", WRITER: __version__, **(entries or {})}
    plain = save(tensors)
    start = _LENGTH.size + _LENGTH.unpack_from(plain)[0]
    # Write the header without safetensors, which changes the order of the entries each time: equal runs must give
    # equal bytes.
    sealed = {"__metadata__": about | {DIGEST: _digest(tensors, about)}} | json.loads(plain[_LENGTH.size : start])
    header = json.dumps(sealed, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _LENGTH.size)
    return b"".join([_LENGTH.pack(len(header)), header, memoryview(plain)[start:]])


def read_sealed(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, check its contents against its checksum, if it has one, and return its tensors by name.

    Raises:
        ConfigError: The contents differ from the checksum.
        SafetensorError: The file is not a safetensors file.
    """
    return read_with_header(path)[0]


def read_with_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, and compare its contents with its checksum, if it has one.

    Files of other programs have no checksum. Exports of older versions of this package have none either: each of these
    files gives one warning.

    Returns:
        Dict of the tensors by name; and dict of the header's texts by name, with the checksum.

    Raises:
        ConfigError: The contents differ from the checksum.
        SafetensorError: The file is not a safetensors file.
    """
    with safe_open(path, "pt") as file:
        header, found = dict(file.metadata() or {}), dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if WRITER in header or DIGEST in header:
        if header.pop(DIGEST, None) != _digest(tensors, header):
            raise ConfigError(
                f"model.weights: {path} is damaged: its contents differ from its checksum. Copy it again; or remove "
                "done.json of the run that exported it and give that run's command again, which writes it anew."
            )
    elif path.name in EXPORTS and path not in _TOLD:
        _TOLD.add(path)
        LOG.warning(
            "%s was written before exported weights had a checksum: bytes that change there are not noticed.", path
        )
    return tensors, found


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the SHA-256 of a file's header entries and tensors, as hexadecimal text. Their order does not matter.

    Args:
        tensors: Tensors by name.
        header: Texts of the header by name, without the checksum.
    """
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
