"""Handle the machine a run is on: shared storage, memory that runs out, signals to stop."""

import contextlib
import ctypes
import logging
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from stssl.base.distributed import gather_rows, rank, world_size
from stssl.base.errors import RunError
from stssl.base.stopping import TOGETHER_S, Asked
from stssl.recipes.recipe import RunRecipe

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of malloc.h."""


def log() -> logging.Logger:
    """The program's logger; warnings reach the terminal without any set-up."""
    return logging.getLogger("stssl")


def check_shared(folder: Path) -> None:
    """Find out before the first step whether all ranks see the same folder; ranks call this together.

    Raises:
        RunError: They do not; names those that don't.
    """
    if world_size() == 1:
        return
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    number = torch.tensor([uuid.uuid4().int % 2**62], device=device)
    dist.broadcast(number, 0)
    mark = folder / f".seen-{int(number)}"
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    dist.barrier()
    with contextlib.suppress(OSError):
        list(folder.iterdir())  # lets network file systems look again
    blind = gather_rows(torch.tensor([not mark.exists()], device=device)).flatten().tolist()
    if rank() == 0:
        mark.unlink(missing_ok=True)
    if any(blind):
        ranks = ", ".join(str(number) for number, missing in enumerate(blind) if missing)
        raise RunError(
            f"launch.storage: {folder} is not the same folder on all nodes: rank {ranks} does not see what rank 0 "
            f"wrote (this is rank {rank()} on {socket.gethostname()}). Give a folder that all nodes share."
        )


def keep_memory() -> None:
    """Let this process keep memory that it freed, where the C library is glibc.

    Activations are freed in each step, and on the CPU getting them back from the system page by page takes a tenth.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**25)


@contextlib.contextmanager
def memory_advice(recipe: RunRecipe) -> Iterator[None]:
    """Turn running out of memory into an error that says what helps."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in text:
            raise
        reason = text.splitlines()[0] if text else "the machine has no more"
        raise RunError(f"out of memory: {reason}. Try {', '.join(_savings(recipe))}.") from error


def _savings(recipe: RunRecipe) -> Iterator[str]:
    """Suggest recipe keys that take less memory."""
    if recipe.compute.precision != "bf16":
        yield "compute.precision=bf16"
    batch: Any = getattr(recipe, "batch", None)
    if hasattr(batch, "micro"):
        micro = batch.micro // 2 if batch.micro and batch.micro > 1 else 8
        yield f"batch.micro={micro} (the same global batch in smaller parts)"
    if recipe.data.cache != "none":
        yield "data.cache=none"
    yield "more workers"


class Stop:
    """Remember that the process was asked to end (Ctrl-C, SIGTERM, closed terminal), to be looked at between steps.

    Ctrl-C a second time ends the run at once, but for while its last checkpoint is written.
    """

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.by: signal.Signals | None = None
        self.at, self.leaving = 0.0, False

    @property
    def asked(self) -> bool:
        """True if the process was asked to end."""
        return self.by is not None

    @contextlib.contextmanager
    def listening(self, alone: bool) -> Iterator["Stop"]:
        """Take signals as a question for as long as this lasts; only a main thread can, and only one rank `alone`.

        A signal that is ignored, as under `nohup`, stays ignored.
        """
        if not alone or threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number: int, frame: FrameType | None) -> None:
            again = self.by is not None and time.monotonic() - self.at > TOGETHER_S
            if again and number == signal.SIGINT and not self.leaving:
                raise Asked(number)
            if self.by is None:
                self.by, self.at = signal.Signals(number), time.monotonic()

        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        taken = [name for name, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        for name in taken:
            signal.signal(name, ask)
        try:
            yield self
        finally:
            for name in taken:
                signal.signal(name, before[name])


def start_line(recipe: RunRecipe, device: torch.device, rows: int) -> str:
    """Say in one line what runs where.

    Args:
        recipe: Recipe of the run.
        device: Device of the networks.
        rows: Patches of a global batch.
    """
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{recipe.name}: {recipe.what} of {recipe.schedule.steps:,} steps, {rows} patches each, "
        f"on {world_size()} rank(s), here {socket.gethostname()} with {where}, {recipe.compute.precision}"
    )


def slow_arithmetic(recipe: RunRecipe, device: torch.device) -> str | None:
    """Warn if a CPU without bf16 instructions is asked for bf16; None otherwise."""
    if device.type != "cpu" or recipe.compute.precision != "bf16":
        return None
    cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # a newer torch tells
    if cpu.get("architecture") != "x86_64" or cpu.get("avx512_bf16") or cpu.get("amx_bf16"):
        return None
    return (
        f"compute.precision=bf16: {cpu.get('cpu_name', 'this CPU')} has no bf16 instructions, so that steps take "
        "nearly twice as long as with compute.precision=fp32"
    )


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process in GB: of the device where it has any of its own, else of the host."""
    if device.type == "cuda":
        return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    import resource

    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_gb": peak * 1024 / 1e9}
