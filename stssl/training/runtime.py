"""Handle the machine that a run uses: shared storage, memory, signals, torch.compile.

`check_shared` finds storage that the nodes do not share. `memory_advice` says what to do if memory runs out.
`StopRequest` listens for signals. `compile_blocks` compiles networks, and uses plain PyTorch if that fails.
"""

import contextlib
import ctypes
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from stssl.base.distributed import exchange_device, gather_rows, made_once, rank, world_size
from stssl.base.errors import RunError
from stssl.base.logs import LOG
from stssl.base.stopping import TOGETHER_S, Asked
from stssl.base.whole_files import write_whole
from stssl.models.backbones import stages
from stssl.models.layout import memory_format
from stssl.recipes.recipe import Recipe, RunRecipe

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt` parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, from malloc.h."""
VARIANTS = 256
"""Largest number of variants that torch may compile of a block's code before it stops compiling."""

P = ParamSpec("P")
T = TypeVar("T")


def check_shared(folder: Path) -> None:
    """Check that all ranks (training processes) see the same folder. All ranks call this together before training.

    Rank 0 writes a file with a random name, and each rank looks for it.

    Raises:
        RunError: Some ranks do not see the file: the message names them. Or rank 0 cannot write it.
    """
    if world_size() == 1:
        return
    device = exchange_device()
    mark = folder / str(made_once(partial(_leave_mark, folder), device))
    with contextlib.suppress(OSError):
        # List the folder: a network file system may remember for seconds that a file is absent, and now looks again.
        list(folder.iterdir())
    blind = gather_rows(torch.tensor([not mark.exists()], device=device)).flatten().tolist()
    if rank() == 0:
        mark.unlink(missing_ok=True)
    if any(blind):
        ranks = ", ".join(str(number) for number, missing in enumerate(blind) if missing)
        raise RunError(
            f"launch.storage: {folder} is not the same folder on all nodes: rank {ranks} does not see what rank 0 "
            f"wrote (this is rank {rank()} on {socket.gethostname()}). Give a folder that all nodes share."
        )


def _leave_mark(folder: Path) -> str:
    """Write an empty file into a folder, and return its name, so that all ranks can look for the file.

    Raises:
        RunError: The file cannot be written.
    """
    # Choose a random name: with a fixed name, ranks could see a file that an earlier start has left.
    name = f".seen-{uuid.uuid4().hex}"
    write_whole(folder / name, b"")
    return name


def keep_memory() -> None:
    """Make this process keep freed memory for its next allocations. Do nothing without glibc.

    By default, a process returns memory to the system after each training step. Getting it again takes a tenth of the
    time of a step on CPUs.
    """
    with contextlib.suppress(OSError, AttributeError):  # go on without it: macOS and musl have no `mallopt`
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**25)


@contextlib.contextmanager
def memory_advice(recipe: RunRecipe) -> Iterator[None]:
    """Return a context that turns a lack of memory into an error that names keys of `recipe` to change.

    Raises:
        RunError: The code ran out of memory on the host or the device.
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
    """Yield suggestions for an error message: what to change in the recipe so that training needs less memory."""
    if recipe.compute.precision != "bf16":
        yield "compute.precision=bf16"
    if isinstance(recipe, Recipe):
        micro = recipe.batch.micro // 2 if recipe.batch.micro and recipe.batch.micro > 1 else 8
        yield f"batch.micro={micro} (the same global batch in smaller parts)"
    if recipe.data.cache != "none":
        yield "data.cache=none"
    yield "more workers"


class StopRequest:
    """Record that a signal asked this process to end (Ctrl-C, SIGTERM, closed terminal). The loop checks it each step.

    A second Ctrl-C ends the run at once, unless the run is writing its last checkpoint (`leaving`).

    Attributes:
        by: The first signal; None as long as no signal came.
        at: Time of that signal, in seconds of `time.monotonic`.
        leaving: True while the last checkpoint is written.
    """

    def __init__(self) -> None:
        """Create the record. No signal has come yet."""
        self.by: signal.Signals | None = None
        self.at, self.leaving = 0.0, False

    @contextlib.contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Return a context in which signals are recorded and do not end the process.

        It does nothing outside of the main thread. Signals that the process ignores, as under `nohup`, stay ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number: int, frame: FrameType | None) -> None:
            again = self.by is not None and time.monotonic() - self.at > TOGETHER_S
            if again and number == signal.SIGINT and not self.leaving:
                raise Asked(number)
            if self.by is None:
                self.by, self.at = signal.Signals(number), time.monotonic()

        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        # Do not replace a handler of None: C code set it, and Python could not restore it afterwards.
        taken = [name for name, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        for name in taken:
            signal.signal(name, ask)
        try:
            yield self
        finally:
            for name in taken:
                signal.signal(name, before[name])


def start_line(recipe: RunRecipe, device: torch.device, precision: str, rows: int) -> str:
    """Return a line for the log that names the run, its length, and the device that trains it.

    Args:
        recipe: Recipe of the run.
        device: Device of the networks.
        precision: Number format in which networks compute.
        rows: Number of patches in a global batch.
    """
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{recipe.name}: {recipe.what} of {recipe.schedule.steps:,} steps, {rows} patches each, "
        f"on {world_size()} rank(s), here {socket.gethostname()} with {where}, {precision}"
    )


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return this process's peak memory in GB, as `memory_gb`: GPU memory if the device is a GPU, else host memory."""
    if device.type == "cuda":
        return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    import resource  # imported here, because only Unix has this module

    return {"memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def compile_blocks(backbone: nn.Module, graphs: bool = False) -> None:
    """Replace the `forward` of each block of a backbone by one that torch.compile compiles at its first call.

    The modules stay the same, so the names of weights stay the same, too. Hooks of modules are not compiled.

    Args:
        backbone: Network whose blocks to compile.
        graphs: True to record the GPU work of each block as CUDA graphs. Then call `begin_graph_step` before each step.
    """
    # Raise torch's limit of compiled variants, because it counts those of all blocks, networks and modes together.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # On the CPU, Inductor puts every convolution into channels_last. Some convolutions crash in it
    # (models/layout.py), so Inductor chooses the layout only for backbones that run in channels_last anyway.
    device = next(backbone.parameters()).device
    free = memory_format(backbone, device) == torch.channels_last
    for block in stages(backbone):
        block.forward = with_fallback(block.forward, free, graphs)


def begin_graph_step() -> None:
    """Tell torch that a new training step begins, so that CUDA graphs may reuse the memory of the last step's results.

    Without this mark, torch may keep that memory, or overwrite a result of this step that is still needed.
    """
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # torch gives no types here


def with_fallback(function: Callable[P, T], free: bool = True, graphs: bool = False) -> Callable[P, T]:
    """Return a function that does the same as `function`, compiled by torch.compile at its first call.

    If compiling fails, the returned function logs one warning, and calls `function` uncompiled from then on.

    Args:
        function: Function to compile.
        free: True if the compiler may choose the memory layout of images.
        graphs: True to record GPU work as CUDA graphs. It changes nothing on a CPU.
    """
    # torch's mode "reduce-overhead" is this option. torch.compile takes either a mode or options.
    options: dict[str, str | int | bool | Callable[..., object]] = {"triton.cudagraphs": True} if graphs else {}
    if not free:
        options["layout_optimization"] = False
    compiled = torch.compile(function, dynamic=False, options=options or None)
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
