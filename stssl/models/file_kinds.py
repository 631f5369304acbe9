"""Recognize files that hold no readable weights by their first bytes, and say in messages what to do about them."""

import re
import struct
import zipfile
from pathlib import Path

READABLE = "Give a file of safetensors, or one that torch.save(model.state_dict(), ...) wrote"
_HEADS = (
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "an image (TIFF or GeoTIFF), and no weights"),
    ((b"\x89PNG", b"\xff\xd8\xff", b"\0\0\0\x0cjP"), "an image, and no weights"),
    ((b"\x93NUMPY",), "an array of NumPy"),
    ((b"\x89HDF",), "an HDF5 file, as Keras writes it"),
    ((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page: the download went wrong"),
    ((b"version https://git-lfs",), "a pointer of Git LFS: get the file itself by `git lfs pull`"),
    ((b"\x1f\x8b",), "compressed by gzip: unpack it first"),
)
_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the older format of torch.save, which is a pickle, too."""
_BROKEN = (zipfile.BadZipFile, ValueError, NotImplementedError, LookupError, OverflowError, struct.error)


def other_kind(path: Path) -> str | None:
    """Recognize by its first bytes what kind of file was given instead of a file of weights, such as an ONNX graph.

    Args:
        path: The file.

    Returns:
        Words for an error message, such as `is an ONNX graph`, with advice; None if the file may hold weights.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty. Copy or download it again"
    found = next((what for starts, what in _HEADS if head.startswith(starts)), None)
    if found is None and head.startswith(b"PK"):
        return _zipped(path)
    if found is None and path.suffix == ".onnx":
        found = "an ONNX graph"
    # Leave out safetensors: its first bytes are a number, so two of them may look like the start of a pickle.
    if found is None and path.suffix != ".safetensors" and re.match(rb"\x80[\x02-\x05]", head):
        found = None if head.startswith(_TORCH) else "a plain pickle. Reading it could run code of the file"
    return None if found is None else f"is {found}. {READABLE}"


def _zipped(path: Path) -> str | None:
    """Return words for an error message on what a zip archive is; None if torch.save may have written it.

    Args:
        path: The archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _BROKEN:
        return "is cut off or damaged. Copy or download it again"
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy arrays (.npz). {READABLE}"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return f"is a TorchScript program. {READABLE}"
    if any(name.endswith(("archive_format", "models/model.json")) for name in names):
        return f"is a graph of torch.export (.pt2). {READABLE}"
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive without weights. Unpack it. {READABLE}"
    return None
