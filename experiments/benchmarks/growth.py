"""Measure parts whose cost grows with the number of patches, files, labels or rows: seconds at several sizes.

    python experiments/benchmarks/growth.py --repeats 3 --json growth.json
    python experiments/benchmarks/growth.py --store big.zarr --places TABLE.parquet --patches 5000 50000 590326

A part that grows in proportion has equal numbers in the last column: microseconds for each thing.

With `--store`, it makes stores of these sizes from the shards of a small BigEarthNet store and the places and dates of
a table (see `big_stores.py`), and measures what a run does with them before its first step and in its steps.
"""

import argparse
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from big_stores import measure_stores
from PIL import Image

from stssl.algorithms import LabelerOutputs
from stssl.archives.manifest import Manifest
from stssl.base.batch import IGNORED, View
from stssl.data.draws import LabelsConfig, draw_labeled
from stssl.steps.votes import Votes, VotesConfig
from stssl.store.disk import DiskCache
from stssl.training.run_files import NewRows

SHARES = (0.4, 0.35, 0.3, 0.25, 0.2, 0.2, 0.15, 0.15, 0.12, 0.1, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01, 0.006)
"""Frequencies of 19 classes, about as uneven as those of BigEarthNet."""


def cache_files(count: int) -> float:
    """Return the seconds that a disk cache takes for `count` new files of 10 kB."""
    with tempfile.TemporaryDirectory() as folder:
        cache, data = DiskCache(folder, 1 << 40), bytes(10_000)
        before = time.perf_counter()
        for number in range(count):
            os.close(cache.open(f"p{number}", lambda: data) or 0)
        return time.perf_counter() - before


def drawn_labels(total: int) -> float:
    """Return the seconds that `labels.total` takes to choose `total` of 270,000 patches with several classes each."""
    targets = (np.random.default_rng(0).random((270_000, len(SHARES))) < SHARES).astype(np.uint8)
    before = time.perf_counter()
    draw_labeled(targets, np.arange(len(targets)), LabelsConfig(total=total))
    return time.perf_counter() - before


def followed_rows(count: int) -> float:
    """Return the seconds that a progress bar takes for `count` looks at a file of metrics, one new row each time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        rows, taken = NewRows(path), 0.0
        row = json.dumps({"kind": "train", **{f"value_{number}": 0.123456 for number in range(20)}})[1:]
        for step in range(count):
            with path.open("a") as file:
                file.write(f'{{"step": {step}, {row}\n')
            before = time.perf_counter()
            rows.take()
            taken += time.perf_counter() - before
        return taken


def shipped_manifest(count: int, whole: bool) -> float:
    """Return the seconds to pack and unpack what a Ray worker gets of a manifest with `count` rows. Say how much it is.

    Args:
        count: Number of rows.
        whole: True for the whole manifest, which each worker got before; False for the rows of one shard.
    """
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (4, 4)).save(Path(folder, "0.png"))
        table = Path(folder, "table.parquet")
        numbers = np.arange(count)
        columns = {"path": [f"{n}.png" for n in numbers], "lat": numbers / count, "lon": numbers / count}
        pq.write_table(pa.table(columns | {"label": [f"class {n % 10}" for n in numbers]}), table)
        manifest = Manifest(table)
    before = time.perf_counter()
    data = pickle.dumps(manifest if whole else manifest.of_rows(range(count // 2, count // 2 + 512)))
    pickle.loads(data)  # our own bytes
    taken = time.perf_counter() - before
    print(f"{len(data) / 1e6:.2f} MB of {count:,} rows", file=sys.stderr)
    return taken


def votes(count: int, anew: bool) -> float:
    """Return the seconds of CPU that 448 patches of a step take to be stored among `count` patches and to be voted on.

    Args:
        count: Number of patches that may vote.
        anew: True to also add up all stored predictions, as each step did before; False uses the kept sum.
    """
    metadata = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) * 40
    nobody = torch.full((count, len(SHARES)), IGNORED, dtype=torch.int8)
    kept = Votes(VotesConfig(), metadata, nobody, 2)
    index = torch.arange(448) * (count // 448)
    outputs = LabelerOutputs({View.UNLABELED_WEAK: torch.randn(448, len(SHARES), 2)}, {}, index)
    kept.observe(outputs)
    kept.with_votes(outputs)
    before = time.process_time()
    kept.observe(outputs)
    if anew:
        kept.last_probabilities.float().sum(0)
    kept.with_votes(outputs)
    return time.process_time() - before


PARTS: dict[str, tuple[Callable[[int], float], tuple[int, ...]]] = {
    "disk cache, new files": (cache_files, (100, 1000, 2000, 8000)),
    "labels.total": (drawn_labels, (400, 4000, 27_000)),
    "looks at metrics.jsonl": (followed_rows, (100, 1000, 4000)),
    "votes, a step that adds up all": (partial(votes, anew=True), (5_000, 50_000, 590_326)),
    "votes, a step": (partial(votes, anew=False), (5_000, 50_000, 590_326)),
    "a manifest, whole": (partial(shipped_manifest, whole=True), (10_000, 100_000, 1_000_000)),
    "a manifest, a shard's rows": (partial(shipped_manifest, whole=False), (10_000, 100_000, 1_000_000)),
}


def measure_parts(names: list[str], repeats: int) -> list[dict[str, object]]:
    """Measure the parts in `PARTS` with these names at each of their sizes, and print a table."""
    results: list[dict[str, object]] = []
    print("| part | number | seconds | spread | us for each |\n| --- | --- | --- | --- | --- |")
    for name in names:
        measure, sizes = PARTS[name]
        for size in sizes:
            taken = [measure(size) for _ in range(repeats)]
            middle, spread = statistics.median(taken), max(taken) - min(taken)
            results.append({"part": name, "number": size, "seconds": taken})
            print(f"| {name} | {size:,} | {middle:.3f} | {spread:.3f} | {1e6 * middle / size:.1f} |", flush=True)
    return results


def main() -> None:
    """Measure each part at each of its sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--store", type=Path, help="Small BigEarthNet store: measure larger ones made of its shards.")
    parser.add_argument("--places", type=Path, help="Parquet table of places and dates for these stores.")
    parser.add_argument("--patches", nargs="+", type=int, default=[5000, 50_000, 590_326])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.store:
        results = measure_stores(options.store.absolute(), options.places, options.patches, options.repeats)
    else:
        results = measure_parts(options.parts, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
