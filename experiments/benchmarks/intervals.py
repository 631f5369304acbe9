"""Time intervals by blocks of a large multi-label test part: one column of groups, many draws.

    python experiments/benchmarks/intervals.py --threads 2 --repeats 1 --json intervals.json

The default size is BigEarthNet v1.0's test part: 125,866 patches of 43 classes in ten countries, 1,000 draws. The
table shows seconds, and the highest memory of the process.
"""

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from stssl.base.labels import LabelSpace
from stssl.scoring.evaluation import Evaluation
from stssl.scoring.groups import GroupOptions, score_groups


class Store:
    """Hold the columns that groups need."""

    path = "generated"

    def __init__(self, country: np.ndarray) -> None:
        """Keep the column `country`."""
        about = {"shape": [len(country)], "data_type": "string"}
        self.country, self.description = country, SimpleNamespace(arrays={"country": about})

    def has_column(self, name: str) -> bool:
        """Return True for the one column."""
        return name == "country"

    def column(self, name: str) -> np.ndarray:
        """Return the one column."""
        return self.country

    def column_attributes(self, name: str) -> dict[str, object]:
        """Return no attributes."""
        return {}


def generated(patches: int, classes: int) -> tuple[Any, Evaluation]:
    """Make labels as frequent as BigEarthNet's, and logits that are often right, in areas of 25 patches."""
    rng = np.random.default_rng(0)
    areas = -(-patches // 25)
    place = np.repeat(np.stack([rng.uniform(37, 67, areas), rng.uniform(-9, 29, areas)], 1), 25, 0)[:patches]
    country = np.array([f"country {int(lon + 9) // 4}" for lon in place[:, 1]], object)
    rates = np.geomspace(0.37, 0.003, classes)
    targets = rng.random((patches, classes)) < rates
    logits = torch.from_numpy((rng.normal(size=targets.shape) + 2 * targets - 2).astype(np.float32))
    space = LabelSpace(tuple(f"class {number}" for number in range(classes)), True)
    metadata = torch.from_numpy(np.concatenate([place, np.full((patches, 2), np.nan)], 1))
    data = SimpleNamespace(
        store=Store(country), targets=torch.from_numpy(targets.astype(np.int64)), metadata=metadata, space=space
    )
    return data, Evaluation({}, {}, np.arange(patches), logits)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=125_866)
    parser.add_argument("--classes", type=int, default=43)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    torch.set_num_threads(options.threads)
    data, evaluation = generated(options.patches, options.classes)
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        found = score_groups({"student": evaluation}, data, GroupOptions(("country",), options.draws))
        seconds.append(time.perf_counter() - start)
    row = {
        "patches": options.patches,
        "draws": options.draws,
        "groups": len({one.group for one in found.rows}) - 1,
        "seconds": statistics.median(seconds),
        "cpu_seconds": time.process_time() / options.repeats,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("| " + " | ".join(row) + " |\n|" + " --- |" * len(row))
    print(
        "| " + " | ".join(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in row.values()), "|"
    )
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
