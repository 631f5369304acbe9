"""Pretrain with several recipes and seeds, and compare them with random weights by k-NN and linear probes on test.

    EUROSAT=eurosat.zarr python experiments/benchmarks/pretraining.py --out runs/pretraining --blocks \
        --labels per-class=20 -- "experiments/pretrain/cpu.yaml,pretext.geo={name: none}" experiments/pretrain/cpu.yaml

Overrides may follow a recipe, joined by commas. Finished runs are not run again. `--blocks` splits the patches by
place, and differently for each seed.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from study import carry_out, plain, spread


@dataclass(frozen=True)
class Job:
    """Hold one pretraining run (a recipe with a seed), and the probes that measure its features."""

    recipe: str
    changes: tuple[str, ...]
    seed: int
    labels: tuple[str, ...]
    blocks: bool
    control: bool
    out: Path

    @property
    def weights(self) -> tuple[bool, ...]:
        """List which weights to probe: False means the pretrained weights, True means random weights for comparison.

        Only one recipe of each seed probes random weights, as they do not depend on the recipe.
        """
        return (False, True) if self.control else (False,)

    @property
    def label(self) -> str:
        """Return the recipe's name and its overrides, which name a row of the printed table."""
        return " ".join([Path(self.recipe).stem, *self.changes])

    @property
    def name(self) -> str:
        """Return the name of the pretraining run, which its folder has too."""
        return f"{plain(self.label)}-s{self.seed}"

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Read the recipe with all defaults, at the first use. Later changes of its file have no effect."""
        from stssl.recipes.pretraining import PretrainRecipe
        from stssl.recipes.recipe import load_as

        where = [f"name={self.name}", f"launch.storage={self.out}", "launch.workers=0", "compute.threads=1"]
        split = [f"data.split={{name: blocks, seed: {self.seed}}}"] if self.blocks else []
        return load_as(PretrainRecipe, Path(self.recipe), [*where, *split, f"seed={self.seed}", *self.changes]).tree()

    def run(self) -> None:
        """Pretrain the backbone, and measure its features by probes. Leave out what was done before."""
        from stssl.analysis.probe import probe_run
        from stssl.base.config import validate
        from stssl.recipes.pretraining import PretrainRecipe
        from stssl.training.launch import run

        folder = run(validate(PretrainRecipe, self.tree, self.name)).path
        for random in self.weights:
            known = {row["labels"] for row in self.rows(random)} if self.file(random).exists() else set()
            if missing := [text for text in self.labels if text not in known]:
                probe_run(folder, missing, self.seed, random=random)
        print(f"done {self.name}", file=sys.stderr, flush=True)

    def file(self, random: bool) -> Path:
        """Return the path of the file with the scores of a probe: of random weights if `random` is True."""
        return self.out / self.name / "probe" / f"{'random' if random else 'pretrained'}-s{self.seed}.json"

    def rows(self, random: bool) -> list[dict[str, Any]]:
        """Read the scores that a probe wrote: of random weights if `random` is True."""
        about: dict[str, Any] = json.loads(self.file(random).read_text())
        return [*about["rows"]]


def table(jobs: list[Job]) -> list[dict[str, Any]]:
    """Make one row for each recipe, way of probing and number of labels, with the scores of all seeds."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for job in jobs:
        for random in job.weights:
            for found in job.rows(random):
                name = "random weights" if random else job.label
                row = rows.setdefault((name, found["method"], found["labels"]), {})
                for score in ("accuracy", "balanced_accuracy", "mAP", "mAP_micro", "F1"):
                    if score in found["test"]:
                        row.setdefault(score, []).append(found["test"][score])
    return [dict(zip(("pretext", "method", "labels"), key, strict=True)) | row for key, row in rows.items()]


def main() -> None:
    """Pretrain and probe what is not done yet, and print a table of scores."""
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
    jobs = [
        Job(
            recipe.split(",")[0],
            (*recipe.split(",")[1:], *options.set),
            seed,
            tuple(options.labels),
            options.blocks,
            number == 0,
            options.out,
        )
        for seed in options.seeds
        for number, recipe in enumerate(options.recipes)
    ]
    carry_out(jobs, options.jobs)
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
