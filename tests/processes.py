"""Start and end processes in tests. They start fast: a server that has imported torch and timm forks them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import psutil
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stssl.training.launch", "stssl.training.state", "timm", "torchmetrics"])


def exit_code(work: Callable[..., None], *arguments: Any, limit: float = 120) -> int:
    """Run a function of a module in a new process, and return its exit status: negative if a signal ended it."""
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    process.join(limit)
    assert process.exitcode is not None, f"still running after {limit} s"
    return process.exitcode


def on_ranks(world: int, work: Callable[..., None], folder: Any, *arguments: Any) -> None:
    """Run `work(rank, folder, *arguments)` in `world` processes that are connected by torch's backend gloo."""
    arguments = (world, work, folder, *arguments)
    start_processes(_rank, arguments, nprocs=world, start_method="forkserver")  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _rank(rank: int, world: int, work: Callable[..., None], folder: Any, *arguments: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    work(rank, folder, *arguments)
    dist.destroy_process_group()


def start(*command: str) -> subprocess.Popen[str]:
    """Start a command in a new session, with standard output and errors in one pipe."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, start_new_session=True, **options)


def finish(process: subprocess.Popen[str], limit: float, linger: float = 30) -> tuple[int, str]:
    """Wait until a command and all processes that it started have ended. Kill those that do not end in time.

    Returns:
        Exit status and output of the command.
    """
    try:
        output, _ = process.communicate(timeout=limit)
        end = time.monotonic() + linger
        while (left := family(process.pid)) and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        kill(family(process.pid))
    assert not left, f"still there after the end of {process.args!r}: {left}\n{output[-2000:]}"
    return process.returncode, output


def family(pid: int) -> dict[int, str]:
    """Return the command lines, by process id, of a process, all its descendants and all processes of its session."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if pid in (process.pid, os.getsid(process.pid), *(above.pid for above in process.parents())):
                found[process.pid] = " ".join(process.cmdline())
    return found


def still_there(processes: Collection[psutil.Process], linger: float = 30) -> dict[int, str]:
    """Return the command lines, by process id, of those processes that have not ended after `linger` seconds.

    Ray's agents form sessions of their own and end some seconds after the process that started them. Processes that
    ended but that no parent has read count as ended.
    """
    end = time.monotonic() + linger
    while (left := {one.pid: line for one in processes if (line := _line(one))}) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline()) or process.name()
    return ""


def kill(pids: Iterable[int]) -> None:
    """Kill processes by SIGKILL."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
