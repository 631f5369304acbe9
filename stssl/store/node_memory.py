"""Share memory among the ranks (training processes) of one machine, so that they hold one copy of the pixels."""

import contextlib
import hashlib
import math
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stssl.base.distributed import exchange_device, gather_rows, rank, rows_of, world_size
from stssl.base.logs import LOG
from stssl.base.processes import machine_start

MEMORY = Path("/dev/shm")
"""Folder whose files lie in memory, on Linux."""


@dataclass(frozen=True)
class NodeMemory:
    """Hold tensors that all ranks (training processes) of this machine share, and say which rows this rank fills.

    Attributes:
        tensors: Tensors by name. Values that one rank writes are visible to the other ranks of this machine.
        share: Place of this rank among the machine's ranks, counted from 0, and the number of these ranks.
    """

    tensors: dict[str, Tensor]
    share: tuple[int, int]

    def own(self, count: int) -> slice:
        """Return the range of rows, of `count` rows of the tensors, that this rank (training process) must fill."""
        return rows_of(count, *self.share)


def meet() -> None:
    """Wait until all ranks (training processes) have called this function."""
    _all_numbers(0)


def node_memory(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> NodeMemory | None:
    """Allocate tensors in memory that the ranks (training processes) of each machine share.

    All ranks must call this together. The memory is a file in `/dev/shm`, whose name is deleted at once: so the system
    frees the memory when the last process ends, even if it crashes.

    Args:
        shapes: Shape and type of each tensor, by name; the same on all ranks.

    Returns:
        The tensors, uninitialized; None if each machine has one rank, or if `/dev/shm` of some machine is too small.
    """
    if world_size() == 1:
        return None
    hosts = _all_numbers(_number(f"{socket.gethostname()} {_boot()}"))
    mates = [number for number, host in enumerate(hosts) if host == hosts[rank()]]
    if len(set(hosts)) == len(hosts):
        return None
    marks = _all_numbers(_number(uuid.uuid4().hex))
    path, first = MEMORY / f"stssl-{marks[mates[0]]:x}", mates[0] == rank()
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    # Give each tensor whole pages, because its address must be a multiple of its type's size: that of a page always is.
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name], end = end, end + -(-size // 4096) * 4096
    try:
        made = _allocated(path, end) if first else True
        if not all(_all_numbers(int(made))):
            if rank() == 0:
                LOG.warning("data.cache=host: %s is too small for one copy a machine, so each rank holds one", MEMORY)
            return None
        whole = torch.from_file(str(path), shared=True, size=end, dtype=torch.uint8)
        meet()  # wait until all ranks have opened the file: after its name is deleted below, they could not open it
    finally:
        if first:
            path.unlink(missing_ok=True)
    tensors = {
        name: whole[starts[name] : starts[name] + sizes[name]].view(dtype).view(shape)
        for name, (shape, dtype) in shapes.items()
    }
    return NodeMemory(tensors, (mates.index(rank()), len(mates)))


def _allocated(path: Path, size: int) -> bool:
    """Create a file in memory, and reserve all its pages. Return True if this worked, False if too few pages are free.

    Without reserved pages, a later write could kill the process.

    Args:
        path: Path of the new file in `/dev/shm`.
        size: Size of the file in bytes.
    """
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(number, 0, size)
        finally:
            os.close(number)
        return True
    return False


def _boot() -> str:
    """Return a text that processes have in common only if they run on one machine and see the same `/dev/shm`.

    Host names cannot tell this: containers on different machines may have equal ones.
    """
    return f"{machine_start()} {MEMORY.stat().st_dev if MEMORY.exists() else ''}"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def _all_numbers(number: int) -> list[int]:
    """Gather one number from each rank (training process).

    Return the list of all numbers, sorted by rank, on every rank. All ranks must call this together.
    """
    found: list[int] = gather_rows(torch.tensor([number], device=exchange_device()), [1] * world_size()).tolist()
    return found
