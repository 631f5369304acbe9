"""Read files of weights, also those of other programs, without running code from them."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from torch import Tensor

from stssl.base.errors import ConfigError, first_line, shown
from stssl.models.file_kinds import READABLE, other_kind
from stssl.models.published import where_to_get
from stssl.models.sealed import UNREADABLE, read_sealed

StateDict = dict[str, Tensor]
"""Tensors by name."""
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")),
    *(type(np.dtype(name)) for name in ("uint64", "float16", "float32", "float64")),
]
"""Types besides tensors and plain values that a file may hold: settings of trainers, and numbers of NumPy.

To build them runs no code from the file.
"""
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher", "student", "network")
"""Keys under which trainers store the tensors of a network, the preferred ones first."""


class WeightFile(NamedTuple):
    """Hold the contents of a file of weights.

    Attributes:
        tensors: Tensors by name.
        rest: Other contents by name, such as the settings of the trainer.
        container: Key of the file under which the tensors were, such as `state_dict`; None if they were at the top
            level.
        other: Names of the entries that were not used: they are no tensors, or stand outside the container.
    """

    tensors: StateDict
    rest: dict[str, object]
    container: str | None
    other: list[str]

    def setting(self, *names: str) -> object:
        """Return a setting of the program that trained the weights, such as the name of its data set.

        Args:
            *names: Names that the setting has in different programs.

        Returns:
            Value under the first of the names that the file has; None if it has none of them.
        """
        for place in (self.rest, self.rest.get("args"), self.rest.get("hyper_parameters")):
            found = vars(place) if isinstance(place, argparse.Namespace) else place
            if isinstance(found, dict):
                for name in names:
                    if found.get(name) is not None:
                        return found[name]
        return None


def read_weight_file(path: str) -> WeightFile:
    """Read a file of weights, in the format of safetensors or of `torch.save`. Run no code from it.

    Returns:
        Tensors by name, and the file's other contents.

    Raises:
        ConfigError: The file does not exist, is damaged, holds objects besides tensors and harmless values, or holds no
            tensors by name.
    """
    file = Path(path)
    if not file.is_file():  # reading a pipe could wait forever
        hint = where_to_get(path)
        if file.is_dir():
            raise ConfigError(f"model.weights: {path} is a folder. Give a file in it; for a run, give run:{path}.")
        raise ConfigError(f"model.weights: there is no file {path}" + (f".{hint}" if hint else ""))
    try:
        if other := other_kind(file):
            raise ConfigError(f"model.weights: {path} {other}.")
        if file.suffix == ".safetensors":
            content: object = read_sealed(file)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"model.weights: cannot read {path}: {error.strerror or first_line(error)}") from None
    except UNREADABLE as error:
        raise ConfigError(f"model.weights: {path} {_reason(error)}") from None
    return _opened(content, path)


def _reason(error: BaseException) -> str:
    """Return words for an error message on why a file could not be read.

    torch's own message is not shown: it would advise to run code of the file.

    Args:
        error: Error that torch or safetensors raised.
    """
    text = str(error)
    found = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", text) or re.search(r"GLOBAL ([\w.]+)", text)
    if found:
        return (
            f"cannot be read: it holds an object of {shown(found[1])}, and reading that could run code of the "
            "file. Save its tensors alone, with torch.save(model.state_dict(), ...) or as safetensors."
        )
    return f"is damaged, or holds no weights that can be read. Copy or download it again. {READABLE}."


def _opened(content: object, path: str) -> WeightFile:
    """Return the contents of a file with its tensors separated from its other entries.

    Args:
        content: Contents as torch or safetensors read them: a dict of tensors, or one that has such a dict in it.
        path: Path of the file, for the message.

    Raises:
        ConfigError: The contents hold no tensors by name.
    """
    container, rest = None, {}
    for key in CONTAINERS:
        inside = content.get(key) if isinstance(content, dict) else None
        if isinstance(inside, dict) and any(isinstance(value, Tensor) for value in inside.values()):
            assert isinstance(content, dict)
            rest = {str(name): value for name, value in content.items() if name != key}
            content, container = inside, key
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.weights: {path} does not hold tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if container is None:
        rest = {name: content[name] for name in odd if name in content}
    return WeightFile(tensors, rest, container, odd if container is None else [*odd, *rest])
