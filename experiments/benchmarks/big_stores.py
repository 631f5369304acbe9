"""Make large stores from the shards of a small one, and measure what a run does with them. `growth.py` uses this.

The shards of a large store are hard links, which take no room on the disk. Its places and dates are real if a table
gives them, such as that of BigEarthNet: a Parquet file with the columns `lat`, `lon`, `date` and perhaps `country`. It
repeats if it has fewer rows than patches are wanted.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from pyarrow import parquet

from stssl.base.arrays import AnyArray
from stssl.base.batch import View
from stssl.base.config import validate
from stssl.base.hashing import column_hash
from stssl.data.splits import BlockSplit, make_split
from stssl.recipes.build import build_loader
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.scoring.metrics import score
from stssl.steps.votes import nearest_places
from stssl.store.encode import SHARD_CHECKSUMS
from stssl.store.store import Store
from stssl.store.zarr_metadata import description_hashes


def repeated(values: AnyArray, count: int) -> AnyArray:
    """Repeat the rows of an array until it has `count` rows."""
    return np.resize(values, (count, *values.shape[1:]))


def real_columns(table: Path, count: int) -> dict[str, AnyArray]:
    """Read places and dates of patches from a Parquet file, as columns of a store with `count` rows."""
    names = parquet.read_schema(table).names
    wanted = [name for name in ("lat", "lon", "date", "country") if name in names]
    read = parquet.read_table(table, columns=wanted).to_pydict()
    rows = {name: repeated(np.array(values), count) for name, values in read.items()}
    dates = rows.pop("date").astype("datetime64[s]")
    day = (dates.astype("datetime64[D]") - dates.astype("datetime64[Y]")).astype(np.int16) + 1
    return rows | {"time": dates.astype(np.int64), "day_of_year": day}


def enlarge(source: Path, out: Path, patches: int, table: Path | None = None) -> Path:
    """Write a store that repeats the whole shards of another store.

    Args:
        source: Store with at least one whole shard.
        out: Path of the new store, on the same disk. What is there is replaced.
        patches: Number of patches.
        table: Parquet file with real places and dates; None repeats those of the source.

    Returns:
        The path `out`.
    """
    store = Store.open(source)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out, ignore=lambda folder, names: [name for name in names if name == "c"])
    tree: dict[str, Any] = json.loads((source / "zarr.json").read_text())
    arrays: dict[str, Any] = tree["consolidated_metadata"]["metadata"]
    for name in (*store.groups, *store.maps):
        link_shards(source / name, out / name, arrays[name], store.size, patches)
    new = real_columns(table, patches) if table else {}
    hashes = tree["attributes"]["column_hashes"]
    for name in hashes:
        values = repeated(np.asarray(store.column(name)), patches)
        if name == "patch_id":
            values = np.array([f"{old}_{row}" for row, old in enumerate(values)])
        if name in new:
            values = new[name] if values.dtype.kind in "UOT" else new[name].astype(values.dtype)
        write_column(out / name, arrays[name], values)
        hashes[name] = column_hash(values)
    tree["attributes"]["patches"] = patches
    tree["attributes"]["description_hashes"] = description_hashes(tree["attributes"], arrays)
    (out / "zarr.json").write_text(json.dumps(tree))
    return out


def link_shards(source: Path, out: Path, about: dict[str, Any], size: int, patches: int) -> None:
    """Fill a pixel array with hard links to the whole shards of another array, one after the other.

    Args:
        source: Folder of the array that has the shards.
        out: Folder of the array to fill.
        about: Description of the array. It is changed to that of the larger one.
        size: Number of patches of the source.
        patches: Number of patches.
    """
    shard = about["chunk_grid"]["configuration"]["chunk_shape"][0]
    whole, wanted = size // shard, -(-patches // shard)
    if not whole:
        raise SystemExit(f"{source} has no whole shard: give a store with at least {shard} patches")
    for number in range(wanted):
        place = out / "c" / str(number) / "0" / "0" / "0"
        place.parent.mkdir(parents=True)
        os.link(source / "c" / str(number % whole) / "0" / "0" / "0", place)
    about["shape"][0] = patches
    checksums = about["attributes"][SHARD_CHECKSUMS]
    about["attributes"][SHARD_CHECKSUMS] = [checksums[number % whole] for number in range(wanted)]
    (out / "zarr.json").write_text(json.dumps(about))


def write_column(folder: Path, about: dict[str, Any], values: AnyArray) -> None:
    """Write a column as an array with one chunk.

    Args:
        folder: Folder of the array.
        about: Description of the column in the smaller store. It is changed to that of the larger one.
        values: One row for each patch.
    """
    about["shape"] = [*values.shape]
    about["chunk_grid"]["configuration"]["chunk_shape"] = [*values.shape]
    (folder / "zarr.json").write_text(json.dumps(about))
    array = zarr.open_array(str(folder), mode="r+")
    array[...] = values.astype(object) if values.dtype.kind in "UOT" else values


class Measured(NamedTuple):
    """Hold what a part took: seconds, and the most memory in bytes beyond what was there before."""

    seconds: float
    memory: int


def recipe_of(store: str) -> Recipe:
    """Return a recipe that trains on a store in BigEarthNet's layout: three bands, 64 and 448 patches a step."""
    tree = {
        "name": "growth",
        "data": {"store": store, "labels": "labels_19", "bands": ["B04", "B03", "B02"], "split": "official"},
        "labels": {"fraction": 0.01, "allow_missing_classes": True},
        "model": {"backbone": "slim_resnet", "image_size": 120},
        "algorithm": {"name": "fixmatch"},
    }
    return validate(Recipe, tree, "big_stores.py")


def opened(store: str) -> Callable[[], object]:
    """Return a function that opens a store and reads all columns."""

    def work() -> object:
        found = Store.open(store)
        return [found.column(name) for name in found.description.arrays if found.has_column(name)]

    return work


def run_data(store: str) -> Callable[[], object]:
    """Return a function that does what a run does with its data before the first step: split, classes, labels."""
    return partial(open_data, recipe_of(store), torch.device("cpu"))


def dealt_blocks(store: str) -> Callable[[], object]:
    """Return a function that splits a store into squares of one degree."""
    found = Store.open(store)
    return partial(make_split, found, BlockSplit(name="blocks"))


def neighbors(store: str) -> Callable[[], object]:
    """Return a function that finds the neighbors that vote for each training patch."""
    data = open_data(recipe_of(store))
    return partial(nearest_places, data.metadata[torch.from_numpy(data.split.train)], 32)


def first_steps(store: str) -> Callable[[], object]:
    """Return a function that loads the patches of eight steps, and of one step in the second epoch."""
    recipe = recipe_of(store)
    data = open_data(recipe, torch.device("cpu"))
    loader = build_loader(recipe, data, lambda step: frozenset(View))
    epoch = len(data.split.train) // (recipe.batch.labeled * recipe.batch.unlabeled_ratio) + 1

    def work() -> object:
        return [len(batch) for start, stop in ((0, 8), (epoch, epoch + 1)) for batch in loader.batches(start, stop)]

    return work


def scored(store: str) -> Callable[[], object]:
    """Return a function that scores made-up predictions of the test part."""
    data = open_data(recipe_of(store))
    targets = data.targets[torch.from_numpy(data.split.test)]
    logits = torch.randn(len(targets), len(data.space.classes), generator=torch.Generator().manual_seed(0))
    score(logits[:100], targets[:100], data.space)  # imports torchmetrics, which is no part of the scores
    return partial(score, logits, targets, data.space)


STORE_PARTS: dict[str, Callable[[str], Callable[[], object]]] = {
    "open, all columns": opened,
    "data of a run": run_data,
    "split in blocks": dealt_blocks,
    "neighbors for votes": neighbors,
    "nine steps of the loader": first_steps,
    "scores of the test part": scored,
}
"""Parts by name. Each prepares something for a store, and returns the function to measure."""


def memory_line(name: str) -> int:
    """Return a value of this process's `/proc/self/status` in bytes, such as VmHWM, the most memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_here(part: str, store: str, answer: Connection) -> None:
    """Prepare and measure a part in this process, and send a `Measured`."""
    work = STORE_PARTS[part](store)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the most memory so far
    start, before = memory_line("VmRSS"), time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - before
    answer.send(Measured(seconds, memory_line("VmHWM") - start))
    del kept


def measure_alone(part: str, store: str) -> Measured:
    """Measure a part in a process of its own, so that memory of other parts does not count."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure_here, args=(part, store, theirs))
    process.start()
    theirs.close()
    found: Measured = ours.recv()
    process.join()
    return found


def measure_stores(source: Path, table: Path | None, sizes: list[int], repeats: int) -> list[dict[str, object]]:
    """Make stores of several sizes, measure what runs do with them, and print a table.

    Args:
        source: Small store whose shards are repeated.
        table: Table of real places and dates; None repeats those of the source.
        sizes: Numbers of patches.
        repeats: How often each part is measured.
    """
    results: list[dict[str, object]] = []
    print("| part | patches | seconds | spread | us a patch | MB |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        stores = {size: enlarge(source, Path(folder, f"{size}.zarr"), size, table) for size in sizes}
        for part in STORE_PARTS:
            for size, store in stores.items():
                taken = [measure_alone(part, str(store)) for _ in range(repeats)]
                seconds, memory = [one.seconds for one in taken], max(one.memory for one in taken)
                middle, spread = statistics.median(seconds), max(seconds) - min(seconds)
                results.append({"part": part, "number": size, "seconds": seconds, "memory": memory})
                words = (f"{size:,}", f"{middle:.3f}", f"{spread:.3f}", f"{1e6 * middle / size:.1f}")
                print(f"| {part} | {' | '.join(words)} | {memory / 1e6:.0f} |", flush=True)
    return results
