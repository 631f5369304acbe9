"""Compare how many patches per second this package's reader, np.memmap (the upper limit) and other formats read.

    python experiments/benchmarks/reader.py --threads 1 --repeats 7 --json reader.json

Each way of reading gets the same random batches of generated BigEarthNet patches. The files are in memory. Each repeat
measures all ways one after the other: other work on the machine then slows all of them. The table has medians, and
ratios of medians of the same repeats. LMDB and TensorStore need `pip install lmdb tensorstore`; without them, their
rows are missing.

The cost of checksums is measured on two copies of a store, one with checksums and one without. Both are read in turns
of a few batches: with, without, without, with. A ratio compares the seconds of one turn. The table has the median
ratio, by the clock and by CPU time.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import zarr

from stssl.archives.scenery import Painter, Subject
from stssl.archives.sentinel2 import sentinel_arrays
from stssl.base.batch import Stream, View
from stssl.data.augment import AugmentConfig
from stssl.data.loader import Loader, StreamSource
from stssl.data.sampler import StreamSampler
from stssl.data.views import ViewDrawer
from stssl.store.cache import Streamed
from stssl.store.encode import SHARD_CHECKSUMS, encode_shard, shard_checksum, tail_bytes
from stssl.store.reader import Stored, StoreReader
from stssl.store.shard_layout import direct_layout
from stssl.store.shards import ShardedArray
from stssl.store.store_plan import CODECS, StorePlan
from stssl.store.writer import Writer

RGB = ("B04", "B03", "B02")
SHARD, TURN = 512, 1
WAITING_THREADS = 16
"""Threads of a reader on a disk where each read waits."""
Path_ = Callable[[np.ndarray], Any]


def paint(count: int) -> dict[str, np.ndarray]:
    """Generate the pixels of `count` synthetic patches. Return an array [count, bands, height, width] by its name."""
    painter, rng = Painter(0), np.random.default_rng(0)
    made = [
        painter.paint(Subject(rng.choice(43, 3, False), int(rng.integers(1, 365)), 50.0, False, False, (0, i), (1, i)))
        for i in range(count)
    ]
    return {name: np.stack([patch[name] for patch in made]) for name in made[0]}


def write_store(folder: Path, pixels: dict[str, np.ndarray], codec: str, checked: bool = True) -> dict[str, Stored]:
    """Write pixels as a store, in the layout of a conversion.

    Args:
        folder: Folder of the store.
        pixels: For each array of the store, pixels [n, bands, height, width].
        codec: Compression of the patches.
        checked: True to write checksums; False to write none, as older versions did.

    Returns:
        Description of each array, for a reader.
    """
    count = len(pixels["b10"])
    writer = Writer(str(folder), StorePlan(count, SHARD, codec, sentinel_arrays("all"), (), (), (), "", {}))
    stored = {}
    for array in writer.plan.arrays:
        writer._create(array)
        sums = []
        for shard in range(writer.plan.shards):
            rows = writer.plan.rows(shard)
            block = encode_shard(pixels[array.name][rows.start : rows.stop], SHARD, CODECS[codec], checked=checked)
            writer.files.write(f"{array.name}/c/{shard}/0/0/0", block)
            sums.append(shard_checksum(block[-tail_bytes(SHARD) :]))
        file = folder / array.name / "zarr.json"
        meta = json.loads(file.read_text())
        if checked:
            meta["attributes"][SHARD_CHECKSUMS] = sums
        else:
            meta["codecs"][0]["configuration"]["codecs"].pop()
        file.write_text(json.dumps(meta))
        stored[array.name] = Stored(array.bands, pixels[array.name].shape, pixels[array.name].dtype)
    return stored


def memmap_path(folder: Path, pixels: dict[str, np.ndarray], rgb: bool) -> Path_:
    """Write pixels as raw files, and return a function that reads rows by np.memmap. No reader can be faster.

    Args:
        folder: Folder of the raw files.
        pixels: For each array of the store, pixels [n, bands, height, width].
        rgb: True to read only red, green and blue.
    """
    maps = []
    for name, array in pixels.items():
        np.save(folder / f"{name}.npy", array)
        maps.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return lambda rows: maps[0][rows, :3] if rgb else [array[rows] for array in maps]


def reader_path(folder: Path, stored: dict[str, Stored], bands: tuple[str, ...], threads: int, batch: int) -> Path_:
    """Return a function that reads `batch` rows by this package's reader, into the same buffers each time."""
    reader = StoreReader(str(folder), stored, bands, threads)
    buffers = {name: np.empty(shape, dtype) for name, (shape, dtype) in reader.shapes(batch).items()}
    return lambda rows: reader.read(rows, buffers)


def oindex_path(folder: Path, bands: tuple[str, ...]) -> Path_:
    """Return a function that reads rows of the same store by zarr-python."""
    arrays = [zarr.open_array(str(folder), path=name, mode="r") for name in ("b10", "b20", "b60")]
    if len(bands) == 3:
        return lambda rows: arrays[0].oindex[rows, slice(0, 3)]
    return lambda rows: [array.oindex[rows] for array in arrays]


def tensorstore_path(folder: Path, bands: tuple[str, ...]) -> Path_ | None:
    """Return a function that reads rows of the same store by TensorStore. Return None if it is not installed.

    It gets one thread for files and one for copies. Its cache has room for shard indexes only.
    """
    try:
        import tensorstore
    except ImportError:
        return None
    limits = {"file_io_concurrency": {"limit": 1}, "data_copy_concurrency": {"limit": 1}}
    context = tensorstore.Context(limits | {"cache_pool": {"total_bytes_limit": 2_000_000}})
    arrays = [
        tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder / name}/"}},
            context=context,
            recheck_cached_data="open",
        ).result()
        for name in ("b10", "b20", "b60")
    ]
    if len(bands) == 3:
        return lambda rows: arrays[0].oindex[rows, 0:3].read().result()
    return lambda rows: [future.result() for future in [array.oindex[rows].read() for array in arrays]]


def lmdb_path(folder: Path, pixels: dict[str, np.ndarray]) -> Path_ | None:
    """Write red, green and blue of each patch into an LMDB database, as safetensors. Return a function that reads rows.

    Return None if LMDB is not installed.
    """
    try:
        import lmdb  # not a dependency of this project, so it may be missing
    except ImportError:
        return None
    with lmdb.open(str(folder), map_size=2**36) as fresh, fresh.begin(write=True) as change:
        for row, patch in enumerate(pixels["b10"]):
            bands = {band: np.ascontiguousarray(patch[place]) for place, band in enumerate(RGB)}
            change.put(str(row).encode(), safetensors.numpy.save(bands))
    environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)

    def read(rows: np.ndarray) -> np.ndarray:
        with environment.begin() as look:
            found = [safetensors.numpy.load(look.get(str(row).encode())) for row in rows]
        return np.stack([np.stack([patch[band] for band in RGB]) for patch in found])

    return read


def loader_path(reader: StoreReader, count: int, steps: int, batch: int, together: bool) -> Callable[[], int]:
    """Return a function that reads labeled and unlabeled patches through the training loader, as FixMatch does.

    Args:
        reader: Reads the pixels.
        count: Number of patches in the store.
        steps: Number of training steps to read in one call. The call returns the number of patches.
        batch: Number of patches of a step, a quarter of them labeled.
        together: True to read labeled and unlabeled patches of a step in one call of the reader.
    """
    views = frozenset({View.LABELED_WEAK, View.UNLABELED_WEAK, View.UNLABELED_STRONG})
    metadata, labels = torch.zeros(count, 4), torch.zeros(count, 43, dtype=torch.long)
    rows, shared = np.arange(count), Streamed(reader)
    sources = {}
    for stream, size in ((Stream.LABELED, batch // 4), (Stream.UNLABELED, batch - batch // 4)):
        sampler = StreamSampler(count, size, 0, stream.randomness)
        sources[stream] = StreamSource(shared if together else Streamed(reader), rows, metadata, labels, sampler)
    loader = Loader(sources, ViewDrawer(AugmentConfig(), 0, 128), lambda _: views)

    def run() -> int:
        return sum(len(part.rows) for batch in loader.batches(0, steps) for part in batch.values())

    return run


def check_cost(folder: Path, pixels: dict[str, np.ndarray], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure how much time checksums cost: compare a store with checksums and a copy of it without."""
    rng, rows = np.random.default_rng(1), []
    for codec, most in (("lz4", 1.10), ("none", None)):
        stored = write_store(folder / f"{codec} unchecked", pixels, codec, checked=False)
        every = tuple(band for array in stored.values() for band in array.bands)
        for label, bands in (("RGB", RGB), ("all bands", every)):
            sides = [
                reader_path(folder / name, stored, bands, 1, options.batch) for name in (codec, f"{codec} unchecked")
            ]
            draws = rng.integers(0, options.patches, (options.turns + 1, TURN, options.batch))
            turns = np.array([_turn(sides, batches) for batches in draws])[1:]
            clock, cpu = np.median(turns[:, 0] / turns[:, 1], axis=0).tolist()
            extra = float(np.median(turns[:, 0, 1] - turns[:, 1, 1])) / (2 * TURN * options.batch) * 1e6
            what = f"{label}, {codec}, checked / unchecked"
            rows += [
                {"what": f"{what}, by the clock", "measured": clock, "at most": most},
                {"what": f"{what}, of the CPU", "measured": cpu, "at most": most},
                {"what": f"{label}, {codec}, microseconds a patch for checks", "measured": extra, "at most": None},
            ]
    return rows


def _turn(sides: list[Path_], batches: np.ndarray) -> list[tuple[float, float]]:
    """Measure how long two ways of reading take for the same batches, each twice: first, second, second, first.

    Return wall seconds and CPU seconds of both ways.
    """
    spent = np.zeros((2, 2))
    for side in (0, 1, 1, 0):
        before = time.perf_counter(), time.process_time()
        for rows in batches:
            sides[side](rows)
        spent[side] += time.perf_counter() - before[0], time.process_time() - before[1]
    return [(float(clock), float(cpu)) for clock, cpu in spent]


def memory_beside(folder: Path) -> float:
    """Measure how many MB of memory a reader of 590,326 patches takes besides the batches.

    The store is smaller, so the index of the reader is enlarged to this number of patches.
    """
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = []
    for name in ("b10", "b20", "b60"):
        layout = direct_layout(folder / name)
        if layout is None:
            raise SystemExit("the store's layout is not known")
        big = type(layout)((590_326, *layout.shape[1:]), SHARD, layout.dtype, layout.blosc, 0)
        array = ShardedArray(folder / name, big)
        index, _ = array._open(np.array([0]))
        index[:] = index[0]
        kept.append(array)
    held = (tracemalloc.get_traced_memory()[0] - before) / 1e6
    tracemalloc.stop()
    return held


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Measure all ways of reading. Return the rows of the table, and the patches per second of each way and repeat."""
    pixels = paint(options.patches)
    stored = {codec: write_store(folder / codec, pixels, codec) for codec in ("none", "lz4")}
    every = tuple(band for array in stored["lz4"].values() for band in array.bands)
    paths: dict[str, Path_ | None] = {
        "memmap RGB": memmap_path(folder, pixels, True),
        "memmap all": memmap_path(folder, pixels, False),
        "lmdb RGB": lmdb_path(folder / "lmdb", pixels),
    }
    for codec, arrays in stored.items():
        for label, bands in (("RGB", RGB), ("all", every)):
            paths[f"{codec} {label}"] = reader_path(folder / codec, arrays, bands, options.threads, options.batch)
            paths[f"oindex {codec} {label}"] = oindex_path(folder / codec, bands)
            paths[f"tensorstore {codec} {label}"] = tensorstore_path(folder / codec, bands)
    steps = options.batches
    lz4, pair = (StoreReader(str(folder / "lz4"), stored["lz4"], RGB, threads) for threads in (options.threads, 2))
    loading = partial(loader_path, count=options.patches, steps=steps, batch=options.batch)
    through, apart, both = loading(lz4, together=True), loading(lz4, together=False), loading(pair, together=True)
    waiting = {
        threads: reader_path(folder / "lz4", stored["lz4"], RGB, threads, options.batch)
        for threads in (1, WAITING_THREADS)
    }
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        batches = rng.integers(0, options.patches, (steps, options.batch))
        for name, path in paths.items():
            if path is not None:
                less = {"oindex": 50, "tensorstore": 5}.get(name.partition(" ")[0], 1)
                some = batches[: max(1, steps // less)]
                found.setdefault(name, []).append(_rate(partial(_patches_read, path, some)))
        found.setdefault("loader lz4 RGB", []).append(_rate(through))
        found.setdefault("loader lz4 RGB, two reads", []).append(_rate(apart))
        found.setdefault("loader lz4 RGB, 2 threads", []).append(_rate(both))
        with slow_reads():
            for threads, path in waiting.items():
                some = batches[: max(2, steps * threads // 100)]
                found.setdefault(f"1 ms a read, {threads} thr.", []).append(_rate(partial(_patches_read, path, some)))
    return rows_of(found, memory_beside(folder / "lz4")) + check_cost(folder, pixels, options), found


@contextlib.contextmanager
def slow_reads() -> Iterator[None]:
    """Return a context in which each read of a file takes 1 ms longer, as on a network disk."""
    read = os.preadv

    def slow(*arguments: Any) -> int:
        time.sleep(0.001)
        return read(*arguments)

    os.preadv = slow
    try:
        yield
    finally:
        os.preadv = read


def _patches_read(path: Path_, batches: Iterable[np.ndarray]) -> int:
    return sum(len(rows) for rows in batches if path(rows) is not None)


def _rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def rows_of(found: dict[str, list[float]], memory: float) -> list[dict[str, Any]]:
    """Make the rows of the table: what was measured, its value, and the goal."""

    def share(one: str, other: str) -> float | None:
        if one not in found or other not in found:
            return None
        return statistics.median(a / b for a, b in zip(found[one], found[other], strict=True))

    asked = [
        ("RGB, no codec, share of memmap", share("none RGB", "memmap RGB"), 0.60),
        ("RGB, lz4, times LMDB + safetensors", share("lz4 RGB", "lmdb RGB"), 1.0),
        ("RGB, lz4, loader's share of the bare reader", share("loader lz4 RGB", "lz4 RGB"), 0.8),
        ("the same with two reads a step", share("loader lz4 RGB, two reads", "lz4 RGB"), None),
        ("1 ms a read, 16 threads against 1", share("1 ms a read, 16 thr.", "1 ms a read, 1 thr."), 12.0),
        ("RGB, lz4, times zarr oindex", share("lz4 RGB", "oindex lz4 RGB"), 30.0),
        ("RGB, lz4, times TensorStore", share("lz4 RGB", "tensorstore lz4 RGB"), None),
        ("RGB, no codec, times TensorStore", share("none RGB", "tensorstore none RGB"), None),
        ("all bands, lz4, times TensorStore", share("lz4 all", "tensorstore lz4 all"), None),
        ("all bands, no codec, times TensorStore", share("none all", "tensorstore none all"), None),
        ("all bands, no codec, share of memmap", share("none all", "memmap all"), None),
        ("all bands, lz4, times zarr oindex", share("lz4 all", "oindex lz4 all"), 30.0),
    ]
    rows = [{"what": what, "measured": value, "at least": least} for what, value, least in asked]
    rate = statistics.median(found["loader lz4 RGB, 2 threads"])
    rows.append({"what": "RGB, lz4, loader with 2 threads, patches/s", "measured": rate, "at least": 25_000.0})
    return [*rows, {"what": "MB beside the batches, 590,326 patches", "measured": memory, "at most": 100.0}]


def main() -> None:
    """Read the options, measure all ways of reading, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64, help="patches of a batch; the paper's recipes have 512")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of the reader")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--turns", type=int, default=400, help="of reading with checksums and without")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows, found = measure(options, Path(folder))
    print(f"{'path':<27}{'patches/s':>12}")
    for name, rates in found.items():
        print(f"{name:<27}{statistics.median(rates):>12,.0f}")
    print(f"\n{'what':<54}{'measured':>10}{'wanted':>10}")
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.2f}"
        wanted = row.get("at least", row.get("at most"))
        print(f"{row['what']:<54}{measured:>10}{'' if wanted is None else wanted:>10}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "rates": found}, indent=1))


if __name__ == "__main__":
    main()
