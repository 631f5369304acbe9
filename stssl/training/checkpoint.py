"""Checkpoints: one file each, written whole or not at all, checked when read.

`last.pt` and the one before it, `previous.pt`, carry everything that exact resume needs; `best.pt` is a copy of the
one with the best validation score. A file is the bytes of `torch.save`, then their BLAKE2b-128 digest and a mark, so
that a truncated or damaged file is found out before any of it is used.
"""

import contextlib
import hashlib
import io
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from stssl import __version__
from stssl.base.errors import RunError, first_line
from stssl.base.whole_files import cannot_write, is_there, open_plain, sync_folder, write_whole
from stssl.models.sealed import seal

log = logging.getLogger("stssl")
CheckpointState = dict[str, Any]
_FORMAT = b"STSSLCK"
_MARK = _FORMAT + b"1"
_TAIL = 16 + len(_MARK)
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)
"""What torch raises of bytes that are no state dict."""
PARTS = {"recipe": str, "progress": dict, "step": dict, "optimizer": dict}
"""What the state of a run has, and of which kind."""


class UnusableError(RunError):
    """A checkpoint file that cannot be gone on from: missing, damaged, or another run's, program's or version's."""


def write_state(state: CheckpointState, path: Path) -> None:
    """Write a checkpoint file so that at any moment `path` is absent, the old one or the new one.

    Raises:
        RunError: It could not be written; says why, and how much room there is.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with buffer.getbuffer() as payload:
        tail = hashlib.blake2b(payload, digest_size=16).digest() + _MARK
    buffer.seek(0, os.SEEK_END)
    buffer.write(tail)
    write_whole(path, buffer.getbuffer())


def read_state(path: Path) -> CheckpointState:
    """Read a checkpoint file onto the CPU; nothing but tensors and plain values is read, and no code is run.

    Raises:
        UnusableError: It is missing, truncated, damaged, or another program's or version's; names it.
    """
    try:
        with open_plain(path) as file:
            data = file.read()
    except OSError as error:
        raise UnusableError(f"cannot read the checkpoint {path}: {error.strerror}") from None
    payload, tail = memoryview(data)[:-_TAIL], data[-_TAIL:]
    if tail[-len(_MARK) : -1] == _FORMAT and tail[-1:] != _MARK[-1:]:
        raise UnusableError(
            f"the checkpoint {path} has format {_shown(tail[-1:])} of another version of stssl; this one "
            f"({__version__}) reads format {_shown(_MARK[-1:])}. Use that version, or train under another name"
        )
    if tail != hashlib.blake2b(payload, digest_size=16).digest() + _MARK:
        raise UnusableError(f"the checkpoint {path} is truncated or damaged ({len(data)} bytes)")
    try:
        state: Any = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UnusableError(f"the checkpoint {path} is not one of this program: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise UnusableError(f"the checkpoint {path} is not one of this program: it holds no parts by name")
    return state


def _shown(mark: bytes) -> str:
    return mark.decode("ascii", "backslashreplace")


def require_state(state: CheckpointState, path: Path, recipe: str | None = None) -> CheckpointState:
    """Make sure that a checkpoint is the state of a run, and of one run if its recipe's hash is given.

    Raises:
        UnusableError: It is not; names the file.
    """
    wrong = [name for name, kind in PARTS.items() if not isinstance(state.get(name), kind)]
    if wrong or not isinstance(state["progress"].get("step"), int):
        raise UnusableError(f"the checkpoint {path} is not a run's: it has no {wrong[0] if wrong else 'progress.step'}")
    if recipe is not None and state["recipe"] != recipe:
        raise UnusableError(
            f"the checkpoint {path} is of another run (recipe {state['recipe'][:12]}, not {recipe[:12]})"
        )
    return state


def does_not_fit(path: Path, state: CheckpointState, error: Exception) -> UnusableError:
    """Make the error for a checkpoint whose tensors do not fit its recipe's networks."""
    by = state.get("written_by")
    return UnusableError(
        f"the checkpoint {path} does not fit its recipe: {first_line(error)} It was written by stssl "
        f"{by if isinstance(by, str) else 'of an unknown version'}; this is {__version__}"
    )


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

    def save(self, state: CheckpointState, best: bool) -> None:
        """Copy the state to host memory now, and write it in the background.

        Raises:
            RunError: The write before this one failed.
        """
        self.wait()
        copy = _to_host(state)
        self._writer = threading.Thread(target=self._write, args=(copy, best), name="stssl-checkpoint")
        self._writer.start()

    def _write(self, state: CheckpointState, best: bool) -> None:
        try:
            last, fresh = self.path("last"), self.path("fresh")
            write_state(state, fresh)
            if last.exists():
                _replace_by_link(last, self.path("previous"))
            fresh.replace(last)
            if best:
                _replace_by_link(last, self.path("best"))
            sync_folder(self.folder)
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
            raise _unwritten(self.folder, error) from error

    def exist(self) -> bool:
        """True if a checkpoint was written."""
        return any(is_there(self.path(name)) for name in ("last", "previous"))

    def mend(self, state: CheckpointState, best: bool) -> None:
        """Put right what a kill amid a write left: half-written files, and a best that was not given its name yet."""
        for path in self.folder.glob(".*.pt.*"):
            path.unlink(missing_ok=True)
        if best:
            write_state(state, self.path("best"))

    def newest(self, recipe: str | None = None) -> Iterator[tuple[Path, CheckpointState | UnusableError]]:
        """Each checkpoint that is there, the newest first, or what is wrong with it.

        Args:
            recipe: Hash of the recipe that the run must have; None takes any state.
        """
        for path in (self.path("last"), self.path("previous")):
            if is_there(path):
                try:
                    state = read_state(path)
                    yield path, state if recipe is None else require_state(state, path, recipe)
                except UnusableError as error:
                    yield path, error

    def best(self, recipe: str | None = None) -> CheckpointState:
        """Read the best checkpoint; where it is lost or damaged, another that is the same, saying so.

        Args:
            recipe: Hash of the recipe that the run must have; None takes any state.

        Raises:
            UnusableError: It cannot be used, and no other is the same.
        """
        try:
            return self._read("best", recipe)
        except UnusableError as error:
            name, state = self.same_as_best(recipe)
            if state is None:
                raise
            log.warning("%s; %s is the same checkpoint and used instead", error, self.path(name))
            return state

    def same_as_best(self, recipe: str | None) -> tuple[str, CheckpointState | None]:
        """Name and state of the checkpoint among the last two that is the best one, too; None where neither is."""
        with contextlib.suppress(UnusableError):
            last = self._read("last", recipe)
            step = last["progress"].get("best_step")
            if last["progress"]["step"] == step:
                return "last", last
            previous = self._read("previous", recipe)
            if previous["progress"]["step"] == step:
                return "previous", previous
        return "", None

    def _read(self, name: str, recipe: str | None) -> CheckpointState:
        return require_state(read_state(self.path(name)), self.path(name), recipe)

    def latest(self) -> tuple[CheckpointState, list[str]] | None:
        """The newest whole checkpoint and what was wrong with newer ones; None before the first.

        Raises:
            RunError: None of those that are there is whole.
        """
        problems: list[str] = []
        for _, found in self.newest():
            if not isinstance(found, UnusableError):
                return found, problems
            problems.append(str(found))
        if problems:
            raise none_whole(problems, self.folder.parent)
        return None


def none_whole(problems: list[str], run: Path) -> RunError:
    """Make the error for a run that has checkpoints of which none can be used."""
    return RunError("; ".join(problems) + f". Put a whole one back, or delete {run} to start the run again.")


def _unwritten(folder: Path, error: BaseException) -> RunError:
    reason = cannot_write(folder, error) if isinstance(error, OSError) else f"{error}"
    return RunError(f"could not write a checkpoint: {reason}")


def export_weights(checkpoints: Checkpoints, prefix: str, name: str) -> Path:
    """Write a part of the best checkpoint's step as `<name>.safetensors` beside it; returns its path.

    Args:
        checkpoints: Of the run.
        prefix: Of the part's names in the step's state, left out in the file.
        name: Of the file.
    """
    try:
        state = checkpoints.best()["step"]
    except UnusableError as error:
        run = checkpoints.folder.parent
        raise RunError(
            f"{error}. The run is trained, but its best weights are lost: `stssl evaluate --checkpoint last {run}` "
            f"scores the last ones; delete {run} to train it again."
        ) from None
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    target = checkpoints.folder / f"{name}.safetensors"
    # `save_file` would make a file that its owner alone may read, whatever the umask says.
    write_whole(target, seal(weights))
    return target


def _replace_by_link(source: Path, target: Path) -> None:
    """Give a file a second name, whatever had that name before; copies where the file system has no links."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        write_whole(target, source.read_bytes())
        return
    try:
        part.replace(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_host(item) for item in value)
    return value
