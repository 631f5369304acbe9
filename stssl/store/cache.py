"""Read pixels for a loader: from the store's shards, or from a decoded copy in host or device memory."""

import contextlib
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import AnyArray, Ints
from stssl.base.errors import RunError

Where = Literal["none", "host", "device"]
CHUNK = 1024


class ArrayReader(Protocol):
    """Read NumPy arrays of store rows."""

    @property
    def layout(self) -> dict[str, tuple[str, ...]]:
        """Return the bands that are delivered for each band group."""
        ...

    def shapes(self, count: int) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Return shape and type of the arrays that hold `count` patches."""
        ...

    def read(self, indices: Ints, out: dict[str, AnyArray] | None = None) -> dict[str, AnyArray]:
        """Read one array [n, bands, height, width] for each band group, into `out` if it is given."""
        ...


_Lent = tuple[AnyArray, "weakref.ref[AnyArray]"]
"""Memory, and the view of it that was lent."""


class Buffers:
    """Reuse host memory once no tensor refers to it, since fresh memory costs a page fault for each of its pages."""

    def __init__(self) -> None:
        """Start without any memory."""
        self._kept: dict[tuple[tuple[int, ...], np.dtype[np.generic]], list[_Lent]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        """Pickle nothing: another process starts without any memory."""
        return Buffers, ()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> AnyArray:
        """Return an array that nothing else uses while a tensor made of it by `torch.from_numpy` exists."""
        with self._lock:
            kept = self._kept.setdefault((shape, dtype), [])
            place = next((i for i, (_, lent) in enumerate(kept) if lent() is None), None)
            array = np.empty(shape, dtype) if place is None else kept.pop(place)[0]
            # A view is lent, since `weakref.ref` on it tells when the last tensor that shares the memory is gone.
            view = array[:]
            kept.append((array, weakref.ref(view)))
        return view


class Streamed:
    """Read patches from the store each time, into pinned memory if there is a GPU."""

    def __init__(self, reader: ArrayReader) -> None:
        """Read with `reader`."""
        self.reader, self.layout, self._buffers = reader, reader.layout, Buffers()

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Read one tensor [n, bands, height, width] for each band group."""
        tensors = {name: self._empty(*about) for name, about in self.reader.shapes(len(rows)).items()}
        self.reader.read(rows, {name: tensor.numpy() for name, tensor in tensors.items()})
        return tensors

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
        if torch.cuda.is_available():
            # torch keeps pinned memory, and knows when a copy from it has ended.
            return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
        return torch.from_numpy(self._buffers.take(shape, dtype))


class Held:
    """Deliver rows of a decoded copy."""

    def __init__(self, arrays: dict[str, Tensor], layout: dict[str, tuple[str, ...]], position: Ints) -> None:
        """Deliver rows of `arrays`.

        Args:
            arrays: Pixels [held, bands, height, width] of each band group.
            layout: For each band group the bands delivered.
            position: [N] place of each store row in the arrays; -1 for rows that are not held.
        """
        self.arrays, self.layout, self.position = arrays, layout, position

    @property
    def nbytes(self) -> int:
        """Return the size of the copy in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Return one tensor [n, bands, height, width] for each band group, on the device that holds the copy.

        Raises:
            RunError: A row is not held.
        """
        places = torch.from_numpy(self.position[rows])
        if len(places) and places.min() < 0:
            raise RunError(f"patch {int(rows[int(places.argmin())])} is asked for, and not among those held in memory")
        return {name: array[places.to(array.device)] for name, array in self.arrays.items()}


PixelSource = Streamed | Held


def hold(reader: ArrayReader, rows: Ints, size: int, where: Where, device: torch.device) -> PixelSource:
    """Prepare to deliver `rows` in the way that `data.cache` asks for.

    Args:
        reader: Reader of the store.
        rows: Store rows that will be asked for.
        size: Rows of the store.
        where: `none` reads each time; `host` and `device` hold a decoded copy there, one in each process.
        device: Device of the networks.

    Raises:
        RunError: The copy does not fit; the message says how much it takes and how much is free.
    """
    if where == "none":
        return Streamed(reader)
    target = device if where == "device" else torch.device("cpu")
    rows = np.unique(rows)
    # One decoded patch tells sizes and types of all.
    first = reader.read(rows[:1])
    needed = sum(array[0].nbytes for array in first.values()) * len(rows)
    # Ranks of one machine ask at the same time, each before the others have taken their part.
    free = _free(target) // (_ranks_here() if target.type == "cpu" else 1)
    # Networks, batches and other processes need the rest; the system would kill the process without a word.
    if needed > 0.8 * free:
        takes = f"data.cache={where} takes {needed / 1e9:.2f} GB in each process for {len(rows):,} patches"
        raise RunError(
            f"{takes}, and {target} has {free / 1e9:.2f} GB free for each. "
            "Use data.cache=none, fewer data.bands, or fewer workers a machine."
        )
    arrays = {
        name: torch.empty((len(rows), *array.shape[1:]), dtype=torch.from_numpy(array).dtype, device=target)
        for name, array in first.items()
    }
    # In pieces, so that the decoded copy on its way to a device does not stand in host memory a second time.
    for start in range(0, len(rows), CHUNK):
        for name, array in reader.read(rows[start : start + CHUNK]).items():
            arrays[name][start : start + CHUNK] = torch.from_numpy(array).to(target)
    position = np.full(size, -1, np.int64)
    position[rows] = np.arange(len(rows))
    return Held(arrays, reader.layout, position)


def _free(device: torch.device) -> int:
    """Return how many bytes a new tensor may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as file:  # noqa: PTH123
        known = dict(line.split(":") for line in file)
    return min(int(known["MemAvailable"].split()[0]) * 1024, group_free())


def _ranks_here() -> int:
    """Count the ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def group_free(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes this process's control groups leave; containers and jobs have less than their machine."""
    free = sys.maxsize
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kinds, group = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        folder = root / kinds / group.strip("/")
        limit, used = ("memory.max", "memory.current") if not kinds else _FIRST_VERSION
        for level in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # The root has no limit; without one stands "max".
                taken = int((level / used).read_text()) - _cached(level / "memory.stat")
                free = min(free, max(0, int((level / limit).read_text()) - taken))
            if level == root:
                break
    return free


_FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _cached(statistics: Path) -> int:
    """Return the bytes of files that a group keeps in memory only as long as nothing else needs it."""
    known = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(known.get(f"total_{name}", known.get(name, 0))) for name in ("active_file", "inactive_file"))
