"""Gather and sum tensors over ranks (training processes). In a single process, these functions return their input."""

import json
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stssl.base.errors import StsslError

MOST_READING = 16
"""Largest default number of threads that read for one rank. With more, the pieces of a batch would become too small."""


def world_size() -> int:
    """Return the number of training processes (ranks). Without distributed training, return 1."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this training process, counted from 0. Without distributed training, return 0."""
    return dist.get_rank() if world_size() > 1 else 0


def ranks_here() -> int:
    """Return the number of training processes (ranks) of this run on this machine.

    It is in the environment variable LOCAL_WORLD_SIZE. Return 1 if that is not set.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def reading_threads(ranks: int | None = None) -> int:
    """Return the default of `data.threads`: how many threads read patches for one rank (training process).

    This is the rank's share of the CPU cores of this machine, at least 1 and at most `MOST_READING`.

    Args:
        ranks: Number of ranks on this machine; None takes it from the environment.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_READING, cores // (ranks or ranks_here())))


def rows_of(total: int, rank: int, world: int) -> slice:
    """Divide the rows of a global batch among training processes, and return the slice of rows for one process.

    The numbers of rows of two processes differ by at most one.

    Args:
        total: Number of rows in the global batch.
        rank: Number of the process, counted from 0.
        world: Number of processes.
    """
    return slice(total * rank // world, total * (rank + 1) // world)


def row_counts(rows: Tensor) -> list[int]:
    """Return the length of the tensor `rows` on each training process (rank), rank 0 first.

    All ranks call this together. It waits until the device has finished its earlier work.
    """
    if world_size() == 1:
        return [len(rows)]
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    return [int(size) for size in sizes]


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all training processes (ranks) as one tensor, rank 0 first, without gradients.

    Args:
        rows: [n, ...] tensor of this rank. Only the number of rows n may differ between ranks.
        counts: Number of rows on each rank. If None, the ranks exchange these numbers first, and this waits for the
            device.
    """
    rows = rows.detach()
    if world_size() == 1:
        return rows
    counts = row_counts(rows) if counts is None else counts
    # `all_gather` needs the same shape from all ranks. So pad shorter tensors, and cut the result.
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all training processes, element by element, as a new tensor without gradients."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_texts(text: str) -> list[str]:
    """Return the texts of all training processes (ranks), rank 0 first. All ranks call this together."""
    if world_size() == 1:
        return [text]
    device = exchange_device()
    written = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8).to(device)
    counts = row_counts(written)
    parts = torch.split(gather_rows(written, counts), counts)
    return [bytes(part[:-1].tolist()).decode() for part in parts]


def exchange_device() -> torch.device:
    """Return the device for small tensors that ranks exchange: with NCCL the GPU, else the CPU.

    NCCL cannot send tensors that lie in the memory of the CPU.
    """
    nccl = world_size() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda") if nccl else torch.device("cpu")


def made_once(make: Callable[[], object], device: torch.device) -> object:
    """Call the function `make` on rank 0 only, and return its result on all ranks. All ranks call this together.

    Args:
        make: Function that returns plain values, as JSON has them. NaN and infinities are allowed.
        device: Device of the tensors that the ranks exchange.

    Raises:
        StsslError: `make` raised it on rank 0. All ranks raise an error of the same class with the same message.
        RuntimeError: `make` raised another error on rank 0. Rank 0 raises that error itself.
    """
    if world_size() == 1:
        return make()
    text, failure = b"", None
    if rank() == 0:
        try:
            text = json.dumps({"made": make()}).encode()
        # Rank 0 must send any error before it raises it: the other ranks already wait for the result.
        except Exception as error:
            text, failure = json.dumps(_about(error)).encode(), error
    found = json.loads(_sent_by_first(text, device))
    if failure is not None:
        raise failure
    if "made" not in found:
        raise _raised(**found)
    made: object = found["made"]
    return made


def _sent_by_first(text: bytes, device: torch.device) -> bytes:
    """Send bytes from rank 0 to all ranks, and return them on each rank. All ranks call this together.

    Args:
        text: Bytes of rank 0. What the other ranks pass is ignored.
        device: Device of the tensors that the ranks exchange.
    """
    size = torch.tensor([len(text)], device=device)
    dist.broadcast(size, 0)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device) if rank() == 0 else None
    data = torch.empty(int(size), dtype=torch.uint8, device=device) if data is None else data
    dist.broadcast(data, 0)
    return bytes(data.tolist())


def _about(error: Exception) -> dict[str, object]:
    """Return the class name (`kind`), `message` and `exit_code` of an error of rank 0.

    The other ranks make the error that they raise from these values. The exit code is None if the error has none.
    """
    return {"kind": type(error).__name__, "message": str(error), "exit_code": getattr(error, "exit_code", None)}


def _raised(kind: str, message: str, exit_code: int | None) -> Exception:
    """Return the error that the other ranks raise after an error of rank 0.

    Its class is that of rank 0's error if this is `StsslError` or a subclass; else `RuntimeError`.

    Args:
        kind: Name of the class of rank 0's error.
        message: Message of that error.
        exit_code: Exit code of the command, if the error has one.
    """
    classes: list[type[StsslError]] = [StsslError]
    for known in classes:  # the loop appends subclasses, so it reaches all classes below
        if known.__name__ == kind:
            error = known(message)
            error.exit_code = exit_code or error.exit_code
            return error
        classes += known.__subclasses__()
    # Not a `StsslError`: Ray may start the workers again after a defect, such as a lost GPU, but not after a mistake.
    return RuntimeError(f"rank 0 failed: {kind}: {message}")
