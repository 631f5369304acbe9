"""Pretrains with several pretexts and seeds and compares them with random weights by k-NN and a linear probe on test.

    EUROSAT=eurosat.zarr python experiments/benchmarks/pretraining.py --out runs/pretraining --blocks
        --labels per-class=20 --set compute.threads=1
        -- "experiments/pretrain/cpu.yaml,pretext.geo={name: none}" experiments/pretrain/cpu.yaml

A recipe may be followed by overrides, joined by `,`. Runs that are finished are not run again. `--blocks` draws spatial
blocks anew for each seed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One pretraining run and its probes."""

    recipe: str
    seed: int
    options: argparse.Namespace

    @property
    def label(self) -> str:
        """Row of the table."""
        file, *changes = self.recipe.split(",")
        return " ".join([Path(file).stem, *changes])

    @property
    def folder(self) -> Path:
        """Of the run."""
        plain = self.label.replace(" ", "-").replace("/", "_")
        return self.options.out / f"{plain}-s{self.seed}"

    def run(self) -> None:
        """Pretrain, then probe the pretrained and, once for each seed, the random weights."""
        file, *changes = self.recipe.split(",")
        split = [f"data.split={{name: blocks, seed: {self.seed}}}"] if self.options.blocks else []
        where = [f"name={self.folder.name}", f"launch.storage={self.options.out}", "launch.workers=0"]
        what = [f"seed={self.seed}", *split, *changes, *self.options.set]
        self.call("pretrain", file, *where, *what)
        labels = [f"--labels={text}" for text in self.options.labels]
        for more in ([], ["--random"]):
            if not self.file(bool(more)).exists():
                self.call("probe", str(self.folder), f"--seed={self.seed}", *labels, *more)
        print(f"done {self.folder.name}", file=sys.stderr, flush=True)

    def call(self, *arguments: str) -> None:
        """A command in a process of its own; what it prints goes to a log."""
        with (self.options.out / f"{self.folder.name}.log").open("a") as log:
            command = [sys.executable, "-m", "stssl.cli", *arguments]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)

    def file(self, random: bool) -> Path:
        """Where the probe writes."""
        return self.folder / "probe" / f"{'random' if random else 'pretrained'}-s{self.seed}.json"

    def rows(self, random: bool) -> list[dict]:
        """What the probe found."""
        return json.loads(self.file(random).read_text())["rows"]


def spread(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table(jobs: list[Job]) -> list[dict]:
    """One row for each recipe, way of probing and number of labels, with the scores of all seeds."""
    rows: dict[tuple[str, str, str], dict] = {}
    first = jobs[0].label
    for job in jobs:
        for random in (False, True):
            if random and job.label != first:
                continue  # random weights do not depend on the pretext
            for found in job.rows(random):
                name = "random weights" if random else job.label
                row = rows.setdefault((name, found["method"], found["labels"]), {})
                for score in ("accuracy", "balanced_accuracy", "mAP", "mAP_micro", "F1"):
                    if score in found["test"]:
                        row.setdefault(score, []).append(found["test"][score])
    return [dict(zip(("pretext", "method", "labels"), key, strict=True)) | row for key, row in rows.items()]


def main() -> None:
    """Run everything that is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", nargs="+", default=["per-class=20", "all"])
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of all recipes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [Job(recipe, seed, options) for seed in options.seeds for recipe in options.recipes]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(Job.run, jobs))
    rows = table(jobs)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(spread(v) if isinstance(v := row[key], list) else v for key in columns) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
