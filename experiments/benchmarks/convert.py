"""Measure how many patches per second a conversion of BigEarthNet v1.0 handles, and the steps that it consists of.

    python experiments/benchmarks/convert.py --patches 2000 --repeats 5 --json convert.json

The script generates an archive in the real layout: each patch is 12 GeoTIFFs and one JSON file. All bands are read, and
the files are in memory already. `--threads 1` measures one process without Ray. A larger number measures that many Ray
workers, including their start.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from stssl.archives import tiff
from stssl.archives.base import Archive
from stssl.archives.conversion import Options, convert_archive, open_archive, verify_store
from stssl.archives.synthetic import synthesize_archive


def rate(work: Callable[[], object], patches: int) -> float:
    """Call a function once, and return how many patches it handled in each second.

    Args:
        work: Function that handles the patches.
        patches: Number of patches that it handles.
    """
    start = time.perf_counter()
    work()
    return patches / (time.perf_counter() - start)


def main() -> None:
    """Read the options, measure the conversion and its steps several times, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1, help="workers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workers = 0 if options.threads == 1 else options.threads
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["synthesize"] = [rate(lambda: synthesize_archive(folder / "archive", options.patches), options.patches)]
        archive = open_archive("bigearthnet-v1", folder / "archive")
        few = range(0, options.patches, 20)
        for _ in range(options.repeats):
            store = folder / "store.zarr"
            shutil.rmtree(store, ignore_errors=True)
            paths: dict[str, tuple[Callable[[], object], int]] = {
                "read, strips": (lambda: [archive.read(row) for row in range(options.patches)], options.patches),
                "read, rasterio": (lambda: read_slowly(archive, few), len(few)),
                "convert": (
                    partial(convert_archive, "bigearthnet-v1", folder / "archive", store, Options(workers=workers)),
                    options.patches,
                ),
                "verify": (partial(verify_store, store), options.patches),
            }
            for path, (work, count) in paths.items():
                found.setdefault(path, []).append(rate(work, count))
    per_core = statistics.median(found["convert"]) / options.threads
    print(f"{'path':<18}{'patches/s':>12}")
    for path, rates in found.items():
        print(f"{path:<18}{statistics.median(rates):>12,.0f}")
    rows = [{"what": "conversion of all bands, patches/s per core", "measured": per_core, "at least": 400.0}]
    print(f"\n{rows[0]['what']:<46}{per_core:>10,.0f}{'wanted':>10}{400:>6}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "rates": found}, indent=1))


def read_slowly(archive: Archive, rows: range) -> None:
    """Read patches of an archive by rasterio alone, to compare it with the package's faster reader of simple TIFFs."""
    with mock.patch.object(tiff, "strips", lambda data: None):
        for row in rows:
            archive.read(row)


if __name__ == "__main__":
    main()
