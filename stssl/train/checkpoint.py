"""Checkpoints: one file each, written whole or not at all, checked when read.

`last.pt` and the one before it, `previous.pt`, carry everything that exact resume needs; `best.pt` is a copy of the
one with the best validation score. A file is the bytes of `torch.save`, then their BLAKE2b-128 digest and a mark, so
that a truncated or damaged file is found out before any of it is used.
"""

import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stssl.errors import RunError

State = dict[str, Any]
_MARK = b"STSSLCK1"
_TAIL = 16 + len(_MARK)


def write_state(state: State, path: Path) -> None:
    """Write a checkpoint file so that at any moment `path` is absent, the old one or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(payload)
        file.write(hashlib.blake2b(payload, digest_size=16).digest() + _MARK)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_state(path: Path) -> State:
    """Read a checkpoint file onto the CPU.

    Raises:
        RunError: It is missing, truncated or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    payload, tail = data[:-_TAIL], data[-_TAIL:]
    if tail != hashlib.blake2b(payload, digest_size=16).digest() + _MARK:
        raise RunError(f"the checkpoint {path} is truncated or damaged ({len(data)} bytes)")
    state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


class Checkpoints:
    """The checkpoints of one run, in `<run>/checkpoints`."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made when first written to."""
        self.folder = folder
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def path(self, name: str) -> Path:
        """File of `last`, `previous` or `best`."""
        return self.folder / f"{name}.pt"

    def save(self, state: State, best: bool) -> None:
        """Copy the state to host memory now, and write it in the background.

        Raises:
            RunError: The write before this one failed.
        """
        self.wait()
        copy = _to_host(state)
        self._writer = threading.Thread(target=self._write, args=(copy, best), name="stssl-checkpoint")
        self._writer.start()

    def _write(self, state: State, best: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            last, fresh = self.path("last"), self.path("fresh")
            write_state(state, fresh)
            if last.exists():
                _replace_by_link(last, self.path("previous"))
            fresh.replace(last)
            if best:
                _replace_by_link(last, self.path("best"))
        except BaseException as error:  # handed to the training thread by wait()
            self._error = error

    def wait(self) -> None:
        """Wait until the background write is on disk.

        Raises:
            RunError: It failed; says why.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise RunError(f"could not write a checkpoint to {self.folder}: {error}. Is the disk full?") from error

    def exist(self) -> bool:
        """Whether one was written."""
        return any(self.path(name).exists() for name in ("last", "previous"))

    def mend(self, state: State, best: bool) -> None:
        """Put right what a kill amid a write left: half-written files, and a best that was not given its name yet."""
        for path in self.folder.glob(".*.pt.*"):
            path.unlink(missing_ok=True)
        if best:
            write_state(state, self.path("best"))

    def latest(self) -> tuple[State, list[str]] | None:
        """The newest whole checkpoint and what was wrong with newer ones; None before the first."""
        problems: list[str] = []
        for name in ("last", "previous"):
            if self.path(name).exists():
                try:
                    return read_state(self.path(name)), problems
                except RunError as error:
                    problems.append(str(error))
        if problems:
            raise RunError("; ".join(problems) + ". Delete the run's folder to start it again.")
        return None


def export_weights(checkpoints: Checkpoints, prefix: str, name: str) -> Path:
    """Write a part of the best checkpoint's step as `<name>.safetensors` beside it; returns its path.

    Args:
        checkpoints: Of the run.
        prefix: Of the part's names in the step's state, left out in the file.
        name: Of the file.
    """
    state = read_state(checkpoints.path("best"))["step"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    target = checkpoints.folder / f"{name}.safetensors"
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    save_file({key: value.contiguous() for key, value in weights.items()}, fresh)
    fresh.replace(target)
    return target


def _replace_by_link(source: Path, target: Path) -> None:
    """Give a file a second name, whatever had that name before; copies where the file system has no links."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        part.write_bytes(source.read_bytes())
    part.replace(target)


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_host(item) for item in value)
    return value
