"""Write and read checkpoints: each is one file, written whole or not at all, and checked when read.

`last.pt` is the newest checkpoint, `previous.pt` the one before it. Each has all that a run needs to resume exactly.
`best.pt` is a copy of the checkpoint with the best validation score. A file has the bytes of `torch.save`, their
BLAKE2b-128 digest, and a mark of its format. Digest and mark show whether the file is truncated or damaged.
"""

import contextlib
import hashlib
import io
import os
import pickle
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from stssl import __version__
from stssl.base.errors import DataError, RunError, StsslError, first_line
from stssl.base.logs import LOG
from stssl.base.remote_folder import OtherWriterError
from stssl.base.whole_files import cannot_write, is_there, open_plain, sync_folder, write_whole
from stssl.models.sealed import seal
from stssl.training.remote_checkpoints import DIGEST_BYTES, TAIL_BYTES, RemoteCheckpoints
from stssl.training.run_files import version_problem

_FORMAT = b"STSSLCK"
_MARK = _FORMAT + b"1"
_TAIL = TAIL_BYTES
_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)
"""Errors that torch raises when it reads a file that holds no state dict."""
_PARTS = {"recipe": str, "progress": dict, "step": dict, "optimizer": dict}
"""Keys that a run's checkpoint must have, and the types of their values."""


class CheckpointState(TypedDict):
    """Describe the contents of a checkpoint: all state that a run needs to resume exactly.

    Attributes:
        recipe: Hash of the run's recipe.
        written_by: Version of stssl.
        progress: Steps taken, best score and step of this score, and number of steps left out, as in `RunProgress`.
        step: State dict of the training step: networks, averages, and buffers of the algorithm.
        optimizer: State dict of the optimizer.
        ranks: [ranks, values] running BatchNorm statistics of each rank (training process). Only a run with several
            ranks has this key, because their statistics differ between validations.
    """

    recipe: str
    written_by: str
    progress: dict[str, Any]
    step: dict[str, Tensor]
    optimizer: dict[str, Any]
    ranks: NotRequired[Tensor]


class UnusableError(RunError):
    """Error for a checkpoint that is missing, damaged, or written by another run, program or version."""


def write_state(state: Mapping[str, object], path: Path) -> None:
    """Write `state`, the content of a checkpoint by key, to the file `path`.

    If the process dies meanwhile, an old file at `path` stays whole.

    Raises:
        RunError: The file could not be written. The message says why, and how much disk space is free.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with buffer.getbuffer() as payload:
        tail = hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest() + _MARK
    # Append the digest to the same buffer: a copy of the payload would double the memory.
    buffer.seek(0, os.SEEK_END)
    buffer.write(tail)
    write_whole(path, buffer.getbuffer())


def read_state(path: Path) -> dict[str, object]:
    """Read a checkpoint file, and return its content by key, with tensors on the CPU. No code from the file is run.

    Raises:
        UnusableError: The file is missing, truncated, damaged, or written by another program or version.
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
    if tail != hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest() + _MARK:
        raise UnusableError(f"the checkpoint {path} is truncated or damaged ({len(data)} bytes)")
    try:
        # Without `weights_only`, pickle would run code that somebody put into the file.
        state: object = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UnusableError(f"the checkpoint {path} is not one of this program: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise UnusableError(f"the checkpoint {path} is not one of this program: it holds no parts by name")
    return state


def _shown(mark: bytes) -> str:
    return mark.decode("ascii", "backslashreplace")


def require_state(state: Mapping[str, object], path: Path, recipe: str | None = None) -> CheckpointState:
    """Check that the content of a checkpoint file is the state of a run, and return it with the type `CheckpointState`.

    Args:
        state: Content of the file by key.
        path: Path of the file, for messages.
        recipe: Hash of the recipe that the run must have; None accepts any run.

    Raises:
        UnusableError: The file has no state, the state of another run, or the state of a release that is too old.
    """
    problem = version_problem(f"the checkpoint {path}", state.get("written_by"))
    if problem:
        raise UnusableError(problem)
    wrong = [name for name, kind in _PARTS.items() if not isinstance(state.get(name), kind)]
    checked = cast(CheckpointState, state)  # the line above checked the type of each part
    if wrong or not isinstance(checked["progress"].get("step"), int):
        raise UnusableError(f"the checkpoint {path} is not a run's: it has no {wrong[0] if wrong else 'progress.step'}")
    if recipe is not None and checked["recipe"] != recipe:
        raise UnusableError(
            f"the checkpoint {path} is of another run (recipe {checked['recipe'][:12]}, not {recipe[:12]})"
        )
    return checked


def does_not_fit(path: Path, state: CheckpointState, error: Exception) -> UnusableError:
    """Return the error to raise for a checkpoint that does not fit the networks of its recipe.

    Args:
        path: Path of the checkpoint.
        state: Content of the file by key.
        error: Error of torch, raised when the state was loaded into the networks or the optimizer.
    """
    by = state.get("written_by")
    return UnusableError(
        f"the checkpoint {path} does not fit its recipe: {first_line(error)} It was written by stssl "
        f"{by if isinstance(by, str) else 'of an unknown version'}; this is {__version__}"
    )


class Checkpoints:
    """Write and read the checkpoints of one run, in `<run>/checkpoints`. A thread writes while training continues.

    Attributes:
        folder: Folder of the files.
        remote: Checkpoints of the same run in an object store; None if the run lies on a disk.
    """

    def __init__(self, folder: Path, remote: RemoteCheckpoints | None = None) -> None:
        """Store where the checkpoints lie: in `folder`, and in an object store if `remote` is given. Write nothing."""
        self.folder, self.remote = folder, remote
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def path(self, name: str) -> Path:
        """Return the path of one checkpoint's file, which may not exist; `name` is `last`, `previous` or `best`."""
        return self.folder / f"{name}.pt"

    def begin_sending(self) -> None:
        """Fetch the checkpoints from the object store, and prepare to send new ones. Do nothing for a run on a disk."""
        if self.remote is not None:
            self.remote.begin()

    def save(self, state: CheckpointState, best: bool) -> None:
        """Copy the run's state to host memory, and let a thread write the copy as the checkpoint `last`.

        The old `last` becomes `previous`.

        Args:
            state: State of the run.
            best: True to write the copy as `best`, too.

        Raises:
            StsslError: The thread could not write the checkpoint of an earlier call.
        """
        self.wait()
        # Copy before the thread starts: training changes these tensors while the thread writes them. The cast is safe,
        # since a copy has the types of the original.
        copy = cast(CheckpointState, _copied(state))
        self._writer = threading.Thread(target=self._write, args=(copy, best), name="stssl-checkpoint")
        self._writer.start()

    def _write(self, state: CheckpointState, best: bool) -> None:
        try:
            last, fresh = self.path("last"), self.path("fresh")
            write_state(state, fresh)
            # Replace files in this sequence, so that a kill between any two lines leaves `last` or `previous` whole.
            if last.exists():
                _replace_by_link(last, self.path("previous"))
            fresh.replace(last)
            if best:
                _replace_by_link(last, self.path("best"))
            sync_folder(self.folder)
            if self.remote is not None:
                self.remote.send(best)
        except BaseException as error:  # store it for `wait`, which raises it: the training thread does not see it here
            self._error = error

    def wait(self) -> None:
        """Wait until the writing thread has written its checkpoint to the disk and, if there is one, the object store.

        Raises:
            StsslError: The write failed. The message says why.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise _unwritten(self.folder, error) from error

    def exist(self) -> bool:
        """Return True if the run has the checkpoint `last` or `previous`. Do not fetch them from an object store."""
        names = ("last", "previous")
        if self.remote is not None:
            return self.remote.any_committed(*names)
        return any(is_there(self.path(name)) for name in names)

    def has(self, name: str) -> bool:
        """Return True if the run has the checkpoint `name` (`last`, `previous` or `best`).

        If the run lies in an object store, fetch the checkpoint's file from it.
        """
        if self.remote is not None:
            self.remote.fetch(name)
        return is_there(self.path(name))

    def mend(self, state: CheckpointState, best: bool) -> None:
        """Repair the folder after the process was killed during a write: remove half-written files, and mend `best`.

        Args:
            state: State that the run resumes from.
            best: True if this state has the best score so far. Then the file `best` is written again from this state;
                else it stays as it is.
        """
        for path in self.folder.glob(".*.pt.*"):
            path.unlink(missing_ok=True)
        if best:
            write_state(state, self.path("best"))

    def drop_previous(self) -> None:
        """Delete the checkpoint `previous` of a finished run on a disk, to save room.

        `previous` only helps a run to resume if `last` is damaged.
        """
        self.path("previous").unlink(missing_ok=True)

    def newest(self, recipe: str | None = None) -> Iterator[tuple[Path, CheckpointState | UnusableError]]:
        """Yield path and state of each of the checkpoints `last` and `previous` that exists, in this sequence.

        For a checkpoint that cannot be used, yield the error instead of the state.

        Args:
            recipe: Hash of the recipe that the run must have; None accepts any run.
        """
        for path in (self.path("last"), self.path("previous")):
            if self.has(path.stem):
                try:
                    yield path, require_state(read_state(path), path, recipe)
                except UnusableError as error:
                    yield path, error

    def best(self, recipe: str | None = None) -> CheckpointState:
        """Return the state of the best checkpoint, read from `last` or `previous` if `best` cannot be used.

        These files are used only if they hold the same checkpoint.

        Args:
            recipe: Hash of the recipe that the run must have; None accepts any run.

        Raises:
            UnusableError: The best checkpoint cannot be used, and no other one is a copy of it.
        """
        try:
            return self.read("best", recipe)
        except UnusableError as error:
            name, state = self.same_as_best(recipe)
            if state is None:
                raise
            LOG.warning("%s; %s is the same checkpoint and used instead", error, self.path(name))
            return state

    def same_as_best(self, recipe: str | None) -> tuple[str, CheckpointState | None]:
        """Find out if `last` or `previous` is the same checkpoint as `best`: it has the step of the best score.

        Return its name and its state. Return "" and None if neither is the same. `recipe` is the hash of the recipe
        that the run must have; None accepts any run.
        """
        with contextlib.suppress(UnusableError):
            last = self.read("last", recipe)
            step = last["progress"].get("best_step")
            if last["progress"]["step"] == step:
                return "last", last
            previous = self.read("previous", recipe)
            if previous["progress"]["step"] == step:
                return "previous", previous
        return "", None

    def read(self, name: str, recipe: str | None) -> CheckpointState:
        """Return the state of one checkpoint. If the run lies in an object store, fetch the file first.

        Args:
            name: `last`, `previous` or `best`.
            recipe: Hash of the recipe that the run must have; None accepts any run.

        Raises:
            UnusableError: The checkpoint is missing or damaged, or belongs to another run.
        """
        self.has(name)
        return require_state(read_state(self.path(name)), self.path(name), recipe)


def no_usable_checkpoint(problems: list[str], run: str) -> RunError:
    """Return the error to raise for a run without a usable checkpoint.

    `problems` has a sentence on each damaged checkpoint; `run` is the run's folder, for the message.
    """
    return RunError("; ".join(problems) + f". Put a whole one back, or delete {run} to start the run again.")


def _unwritten(folder: Path, error: BaseException) -> StsslError:
    # Do not wrap an error of the object store: it has its own message, and callers may try again after some of them.
    if isinstance(error, DataError | OtherWriterError):
        return error
    reason = cannot_write(folder, error) if isinstance(error, OSError) else f"{error}"
    return RunError(f"could not write a checkpoint: {reason}")


def export_weights(checkpoints: Checkpoints, prefix: str, name: str, entries: Mapping[str, str]) -> Path:
    """Write the weights of one network in the best checkpoint as `<name>.safetensors`, into the checkpoints' folder.

    Args:
        checkpoints: Checkpoints of the run.
        prefix: Start of the names of the network's weights in the state dict. Names in the file have no prefix.
        name: Name of the file, without its ending.
        entries: Further entries of the file's header, by key.

    Returns:
        Path of the file.

    Raises:
        RunError: The best checkpoint cannot be read, or the file cannot be written.
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
    # Do not use safetensors' `save_file`: it ignores the umask, so only the owner could read the file.
    write_whole(target, seal(weights, entries))
    return target


def _replace_by_link(source: Path, target: Path) -> None:
    """Replace the file `target` by a hard link to `source`. On file systems without hard links, copy `source`."""
    # Make the link under another name, and rename it. `os.link` cannot replace a file. If `target` were removed
    # first, a kill could leave no whole checkpoint.
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


def _copied(value: object) -> object:
    """Return a copy of `value` (nested dicts, lists and tuples), with copies of all its tensors in host memory."""
    if isinstance(value, Tensor):
        # Copy tensors even if they are on the CPU: the next step changes them while the thread writes the copy.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
