"""Read pixels for a loader: from the shards of a store, or from a decoded copy in host or device memory."""

import contextlib
import sys
import threading
import weakref
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import AnyArray, Ints
from stssl.base.distributed import ranks_here
from stssl.base.errors import RunError
from stssl.store.node_memory import meet, node_memory

Where = Literal["none", "host", "device"]
CHUNK = 1024


class ArrayReader(Protocol):
    """Define the methods that a reader of a store must have: it returns the pixels of patches as NumPy arrays.

    The arrays come by band group: one array for the bands of each resolution.
    """

    @property
    def layout(self) -> dict[str, tuple[str, ...]]:
        """Return, for the name of each band group (the bands of one resolution), the names of the bands it delivers."""
        ...

    def shapes(self, count: int) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """Return, for the name of each band group, shape and type of an array for the pixels of `count` patches."""
        ...

    def read(self, indices: Ints, out: dict[str, AnyArray] | None = None) -> dict[str, AnyArray]:
        """Read the pixels of n patches, given their rows in the store. If `out` is given, read into its arrays.

        Args:
            indices: [n] store rows.
            out: For each band group (the bands of one resolution), an array that gets the pixels. None makes new
                arrays.

        Returns:
            For each band group, an array [n, bands, height, width]; the arrays of `out` if given.
        """
        ...


_Lent = tuple[AnyArray, "weakref.ref[AnyArray]"]
"""An array that owns memory, and a weak reference to the view that a caller uses."""


class Buffers:
    """Lend host memory for pixels, and lend it again when no array or tensor refers to it any more.

    This is faster than new memory, for which the system must make each page at its first use (a page fault).
    """

    def __init__(self) -> None:
        """Begin without any memory. The first calls of `take` allocate it."""
        self._kept: dict[tuple[tuple[int, ...], np.dtype[np.generic]], list[_Lent]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        """Return what pickle needs to make an empty object: the process that reads the pickle gets its own memory."""
        return Buffers, ()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> AnyArray:
        """Return an uninitialized array for pixels. If possible, it reuses the memory of an earlier array.

        Nothing else gets this memory while the array, or a `torch.from_numpy` tensor of it, exists.

        Args:
            shape: Shape of the array.
            dtype: Type of its values.
        """
        with self._lock:
            kept = self._kept.setdefault((shape, dtype), [])
            place = next((i for i, (_, lent) in enumerate(kept) if lent() is None), None)
            array = np.empty(shape, dtype) if place is None else kept.pop(place)[0]
            # Lend a view, not the array: a weak reference to it tells when no tensor shares the memory any more.
            view = array[:]
            kept.append((array, weakref.ref(view)))
        return view

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor for pixels in host memory, which is pinned on a machine with a GPU.

        Args:
            shape: Shape of the tensor.
            dtype: Type of its values.
        """
        if torch.cuda.is_available():
            # Leave the reuse of pinned memory to torch: it knows when a copy from this memory to the GPU has ended.
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return torch.from_numpy(self.take(shape, torch.empty(0, dtype=dtype).numpy().dtype))


def _torch_type(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Streamed:
    """Read the pixels of each batch from the store, and keep none in memory.

    On a machine with a GPU, read into pinned memory.
    """

    def __init__(self, reader: ArrayReader) -> None:
        """Set the reader from which all pixels come.

        Args:
            reader: Reader of the store, which returns the pixels of store rows as NumPy arrays.
        """
        self.reader, self.layout, self._buffers = reader, reader.layout, Buffers()

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Read the pixels of n patches from the store.

        Args:
            rows: [n] store rows of the patches.

        Returns:
            For each band group (the bands of one resolution), a tensor [n, bands, height, width] in host memory.
        """
        shapes = self.reader.shapes(len(rows))
        tensors = {name: self._buffers.tensor(shape, _torch_type(dtype)) for name, (shape, dtype) in shapes.items()}
        self.reader.read(rows, {name: tensor.numpy() for name, tensor in tensors.items()})
        return tensors


class Held:
    """Hold the decoded pixels of patches in memory, and return those of the patches that a batch needs."""

    def __init__(self, arrays: dict[str, Tensor], layout: dict[str, tuple[str, ...]], position: Ints) -> None:
        """Take over decoded pixels that are in memory already. Do not copy them.

        Args:
            arrays: For each band group (the bands of one resolution), pixels [patches, bands, height, width].
            layout: For each band group, the names of its bands.
            position: For each row of the store, the index of its patch in `arrays`; -1 if it is not there.
        """
        self.arrays, self.layout, self.position, self._buffers = arrays, layout, position, Buffers()

    @property
    def nbytes(self) -> int:
        """Return the size of all pixels in memory, in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def read(self, rows: Ints) -> dict[str, Tensor]:
        """Return the pixels of n patches from memory.

        Args:
            rows: [n] store rows of the patches.

        Returns:
            For each band group (the bands of one resolution), a tensor [n, bands, height, width] on the device that
                holds the pixels.

        Raises:
            RunError: A patch is not among those in memory.
        """
        places = torch.from_numpy(self.position[rows])
        if len(places) and places.min() < 0:
            raise RunError(f"patch {int(rows[int(places.argmin())])} is asked for, and not among those held in memory")
        return {name: self._picked(array, places) for name, array in self.arrays.items()}

    def _picked(self, array: Tensor, places: Tensor) -> Tensor:
        """Return the pixels of a batch, copied from `array` into a tensor [n, bands, height, width] on the same device.

        In host memory, this tensor is pinned or reuses the memory of an earlier batch.

        Args:
            array: [patches, bands, height, width] pixels in memory.
            places: [n] indexes of the batch's patches in `array`.
        """
        if array.device.type != "cpu":
            return array[places.to(array.device)]
        out = self._buffers.tensor((len(places), *array.shape[1:]), array.dtype)
        return torch.index_select(array, 0, places, out=out)


PixelSource = Streamed | Held


def hold(reader: ArrayReader, rows: Ints, size: int, where: Where, device: torch.device) -> PixelSource:
    """Return the source of a run's pixels. It reads the store for each batch, or holds all pixels of the run in memory.

    Args:
        reader: Reader of the store.
        rows: All store rows that the run will read.
        size: Number of all rows in the store.
        where: Value of the recipe key `data.cache`. `none` reads the store for each batch. `host` and `device` hold the
            decoded pixels in host memory or on `device`. All ranks of a machine share the copy in host memory, if
            possible.
        device: Device of the networks.

    Raises:
        RunError: The copy does not fit into the memory. The message says how much it needs and how much is free.
    """
    if where == "none":
        return Streamed(reader)
    target = device if where == "device" else torch.device("cpu")
    rows = np.unique(rows)
    # Read one patch to learn how much memory is needed: all patches have its size and type.
    first = reader.read(rows[:1])
    shapes = {name: ((len(rows), *array.shape[1:]), torch.from_numpy(array).dtype) for name, array in first.items()}
    needed = sum(array[0].nbytes for array in first.values()) * len(rows)
    _require_room(needed, len(rows), where, _free(target))
    shared = node_memory(shapes) if where == "host" else None
    if shared is None:
        # Divide the free memory among the ranks of this machine: all of them ask how much is free before the others
        # have taken their share.
        sharers = ranks_here() if target.type == "cpu" else 1
        _require_room(needed, len(rows), where, _free(target) // sharers)
        arrays = {name: torch.empty(shape, dtype=dtype, device=target) for name, (shape, dtype) in shapes.items()}
        own = slice(0, len(rows))
    else:
        arrays, own = shared.tensors, shared.own(len(rows))
    # Copy in pieces: host memory must not hold a second whole copy on its way to the device.
    for start in range(own.start, own.stop, CHUNK):
        stop = min(start + CHUNK, own.stop)
        for name, array in reader.read(rows[start:stop]).items():
            arrays[name][start:stop] = torch.from_numpy(array).to(target)
    if shared is not None:
        meet()  # wait until the other ranks of this machine have filled their parts of the memory
    position = np.full(size, -1, np.int64)
    position[rows] = np.arange(len(rows))
    return Held(arrays, reader.layout, position)


def _require_room(needed: int, count: int, where: Where, free: int) -> None:
    """Check that a copy of the pixels takes at most 80 % of the free memory.

    Args:
        needed: Bytes that the copy takes.
        count: Number of patches in the copy, for the message.
        where: Value of `data.cache`, for the message.
        free: Bytes that are free for the copy.

    Raises:
        RunError: The copy does not fit. The message says how much it needs and how much is free.
    """
    # Leave 20 % of the memory to networks, batches and other processes: if memory runs out, the system kills the
    # process without a message.
    if needed > 0.8 * free:
        raise RunError(
            f"data.cache={where} takes {needed / 1e9:.2f} GB for {count:,} patches, and {free / 1e9:.2f} GB are free "
            "for each copy. Use data.cache=none, fewer data.bands, or fewer workers a machine."
        )


def _free(device: torch.device) -> int:
    """Return how many bytes of memory are free on a device (the CPU or a GPU) for a new tensor."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as file:  # noqa: PTH123
        known = dict(line.split(":") for line in file)
    return min(int(known["MemAvailable"].split()[0]) * 1024, group_free())


def group_free(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of memory this process may still take under the limits of its control groups (cgroups).

    A container or a cluster job may have a lower limit than the machine's memory. Without any limit, return
    `sys.maxsize`.

    Args:
        own: File that lists the control groups of this process.
        root: Folder of the control groups' own files.
    """
    free = sys.maxsize
    for line in own.read_text().splitlines() if own.exists() else ():
        _, kinds, group = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        folder = root / kinds / group.strip("/")
        limit, used = ("memory.max", "memory.current") if not kinds else _FIRST_VERSION
        for level in (folder, *folder.parents):
            # Skip a group without a limit: the root group has no such file, and "max" in the file is no number.
            with contextlib.suppress(OSError, ValueError):
                taken = int((level / used).read_text()) - _cached(level / "memory.stat")
                free = min(free, max(0, int((level / limit).read_text()) - taken))
            if level == root:
                break
    return free


_FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _cached(statistics: Path) -> int:
    """Return how many bytes of a control group's memory hold cached files.

    These bytes count as free memory, since the system frees them on demand.

    Args:
        statistics: Path of the control group's file `memory.stat`.
    """
    known = dict(line.split() for line in statistics.read_text().splitlines())
    return sum(int(known.get(f"total_{name}", known.get(name, 0))) for name in ("active_file", "inactive_file"))
