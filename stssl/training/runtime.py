"""Handle the machine a run is on: shared storage, memory, signals to stop, torch.compile.

`check_shared` finds storage that nodes do not share, `memory_advice` explains a lack of memory, `StopRequest` listens
for signals, `compile_blocks` compiles networks and falls back to plain PyTorch.
"""

import contextlib
import ctypes
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from stssl.base.distributed import gather_rows, rank, world_size
from stssl.base.errors import RunError
from stssl.base.logs import LOG
from stssl.base.stopping import TOGETHER_S, Asked
from stssl.models.backbones import stages
from stssl.models.layout import memory_format
from stssl.recipes.recipe import Recipe, RunRecipe

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt` parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, from malloc.h."""
VARIANTS = 256
"""Compiled variants of a block's code that torch keeps before it stops compiling."""

P = ParamSpec("P")
T = TypeVar("T")


def check_shared(folder: Path) -> None:
    """Check before the first step that all ranks see the same folder; all ranks call this together.

    Rank 0 writes a file with a random name, and each rank looks for it.

    Raises:
        RunError: Some ranks do not see the file; names them.
    """
    if world_size() == 1:
        return
    # NCCL moves tensors between GPUs alone. The name is random, since an earlier start may have left such a file.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    number = torch.tensor([uuid.uuid4().int % 2**62], device=device)
    dist.broadcast(number, 0)
    mark = folder / f".seen-{int(number)}"
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    dist.barrier()
    with contextlib.suppress(OSError):
        list(folder.iterdir())  # network file systems remember for seconds that a file was absent; listing looks again
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
    """Let this process keep memory that it freed instead of returning it to the system, if its C library is glibc.

    Each step frees its activations. On a CPU, getting that memory back page by page took a tenth of the step.
    """
    with contextlib.suppress(OSError, AttributeError):  # macOS and musl have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**25)


@contextlib.contextmanager
def memory_advice(recipe: RunRecipe) -> Iterator[None]:
    """Raise a lack of memory inside this context as an error that names recipe keys which help.

    Raises:
        RunError: The code inside ran out of memory on the host or the device.
    """
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
    if isinstance(recipe, Recipe):
        micro = recipe.batch.micro // 2 if recipe.batch.micro and recipe.batch.micro > 1 else 8
        yield f"batch.micro={micro} (the same global batch in smaller parts)"
    if recipe.data.cache != "none":
        yield "data.cache=none"
    yield "more workers"


class StopRequest:
    """Remember that the process was asked to end (Ctrl-C, SIGTERM, closed terminal); the loop checks between steps.

    A second Ctrl-C ends the run at once, unless its last checkpoint is being written (`leaving`).

    Attributes:
        by: The first signal; None until one comes.
        at: Time of that signal, in seconds of `time.monotonic`.
        leaving: True while the last checkpoint is written.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.by: signal.Signals | None = None
        self.at, self.leaving = 0.0, False

    @property
    def asked(self) -> bool:
        """Return True if the process was asked to end."""
        return self.by is not None

    @contextlib.contextmanager
    def listening(self, alone: bool) -> Iterator["StopRequest"]:
        """Record signals instead of ending the process, inside this context and in a main thread only.

        A signal that the process ignores, as under `nohup`, stays ignored.

        Args:
            alone: True if this is the run's only rank; with several ranks, signals keep their usual effect.
        """
        # One rank of several must not leave the loop: the others would wait for its gradients.
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
        # None is a handler that C code set, which Python could not put back.
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
        rows: Number of patches of a global batch.
    """
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{recipe.name}: {recipe.what} of {recipe.schedule.steps:,} steps, {rows} patches each, "
        f"on {world_size()} rank(s), here {socket.gethostname()} with {where}, {recipe.compute.precision}"
    )


def slow_arithmetic(recipe: RunRecipe, device: torch.device) -> str | None:
    """Return a warning if the recipe asks for bf16 on a CPU without bf16 instructions, else None."""
    if device.type != "cpu" or recipe.compute.precision != "bf16":
        return None
    # torch before 2.10 has no get_capabilities; then nothing is known, and nothing is said.
    cpu: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if cpu.get("architecture") != "x86_64" or cpu.get("avx512_bf16") or cpu.get("amx_bf16"):
        return None
    return (
        f"compute.precision=bf16: {cpu.get('cpu_name', 'this CPU')} has no bf16 instructions, so that steps take "
        "nearly twice as long as with compute.precision=fp32"
    )


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return this process's peak memory in GB as `memory_gb`: the device's if it is a GPU, else the host's."""
    if device.type == "cuda":
        return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    import resource  # Unix only, like nothing else in this module

    return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def compile_blocks(backbone: nn.Module) -> None:
    """Replace each block's `forward` by one that torch.compile compiles when it is first called.

    Names of weights stay the same, because the modules do. Hooks stay outside the compiled code.
    """
    # All blocks share one code object, whose variants (blocks, networks, training or not) count together.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Inductor puts every convolution on the CPU into channels_last, even those that crash in it (models/layout.py).
    device = next(backbone.parameters()).device
    free = memory_format(backbone, device) == torch.channels_last
    for block in stages(backbone):
        block.forward = with_fallback(block.forward, free)


def with_fallback(function: Callable[P, T], free: bool = True) -> Callable[P, T]:
    """Return the compiled function; if it cannot be compiled, it warns once and runs the plain one from then on.

    Args:
        function: Function to compile.
        free: True if the compiler may choose the memory layout of images.
    """
    compiled = torch.compile(function, dynamic=False, options=None if free else {"layout_optimization": False})
    chosen: list[Callable[P, T]] = [compiled]

    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return chosen[0](*arguments, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            LOG.warning("compute.compile: continuing without torch.compile: %s", reason)
            chosen[0] = function
            return function(*arguments, **named)

    return call
