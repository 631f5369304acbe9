"""Run recipes over seeds and splits, and print test scores with their standard deviation and paired gains.

    EUROSAT=eurosat.zarr python experiments/benchmarks/study.py --out runs/eurosat-study --seeds 0 1 2 --jobs 2 \
        --split official blocks --reference supervised_cpu \
        experiments/eurosat/{supervised_cpu,fixmatch_cpu,fixmatch_absent_cpu,fixmatch_teacher_cpu}.yaml

All recipes with the same seed and split use the same labeled patches. The split `blocks` differs between seeds.
Overrides may follow a recipe, joined by commas: `experiments/eurosat/supervised_cpu.yaml,schedule.steps=1000`. In
overrides, `{seed}` stands for the seed, as in `model.weights=run:runs/pretraining/cpu-s{seed}`. Finished runs are not
run again.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LONGEST = 256
SCORES = ("accuracy", "balanced_accuracy", "F1", "mAP", "mAP_micro", "calibration_error")


def plain(text: str) -> str:
    """Return a text that can be the name of a folder: replace all characters that may cause problems."""
    return re.sub("[^A-Za-z0-9_.=-]+", "_", text)


@dataclass(frozen=True)
class Job:
    """Hold one training run of a study: a recipe with its overrides, a seed and a split."""

    recipe: str
    overrides: tuple[str, ...]
    split: str
    seed: int
    out: Path
    common: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return the recipe's name and its overrides, which name a row of the printed table."""
        return " ".join([Path(self.recipe).stem, *self.overrides])

    @property
    def name(self) -> str:
        """Return the name of the run, which its folder has too. A name that is too long is cut and ends in a hash."""
        changes = "".join(f"-{plain(change)}" for change in (*self.overrides, *self.common))
        end = f"-{self.split}-s{self.seed}"
        name = f"{Path(self.recipe).stem}{changes}{end}"
        digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
        return name if len(name) < LONGEST else f"{name[:150]}-{digest}{end}"

    def result(self, part: str) -> dict[str, Any]:
        """Read the scores of the run's networks on `part`: the train, validation or test patches."""
        about: dict[str, Any] = json.loads((self.out / self.name / "evaluation" / f"{part}.json").read_text())
        return {**about["networks"]}

    @cached_property
    def tree(self) -> dict[str, Any]:
        """Read the recipe with all defaults, at the first use. Later changes of its file have no effect."""
        from stssl.recipes.recipe import load_training_recipe

        where = [f"name={self.name}", f"launch.storage={self.out}", "launch.workers=0", "compute.threads=1"]
        split = f"{{name: {self.split}, seed: {self.seed}}}" if self.split == "blocks" else self.split
        changes = [change.replace("{seed}", str(self.seed)) for change in (*self.overrides, *self.common)]
        what = [f"data.split={split}", f"seed={self.seed}", f"labels.seed={self.seed}", *changes]
        return load_training_recipe(Path(self.recipe), [*where, *what]).tree()

    def run(self) -> None:
        """Train this run and evaluate it. Leave out what was done before."""
        from stssl.base.config import validate
        from stssl.recipes.recipe import Recipe
        from stssl.training.launch import run
        from stssl.training.trained_run import evaluate_run

        folder = run(validate(Recipe, self.tree, self.name)).path
        for part in ("validation", "test"):
            if not (folder / "evaluation" / f"{part}.json").exists():
                evaluate_run(folder, part, "best", "auto")
        print(f"done {self.name}", file=sys.stderr, flush=True)


def carry_out(jobs: Sequence[Any], at_once: int) -> None:
    """Run jobs in several processes of one thread each.

    Read all recipes before the first run: a wrong recipe then ends the script at once, and later changes of files do no
    harm. Raise other errors after all jobs have ended.

    Args:
        jobs: Objects with a `name`, a recipe `tree` and a method `run`.
        at_once: Number of processes.
    """
    from stssl.base.errors import StsslError

    for job in jobs:
        try:
            _ = job.tree
        except StsslError as error:
            raise SystemExit(f"{job.name}: {error}") from None
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(at_once, get_context("spawn"), _leave_with, (os.getpid(),)) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        failed = {job.name: problem for future, job in running.items() if (problem := future.exception())}
    for name, problem in failed.items():
        raise SystemExit(f"{name}: {problem} ({len(failed)} of {len(jobs)} runs failed; the same command resumes)")


def _leave_with(parent: int) -> None:
    """End this process soon after its parent process has died. Without this, it would begin the next job.

    Args:
        parent: Id of the parent process.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def spread(values: list[float]) -> str:
    """Return the mean and the standard deviation of scores as a text in percent, such as `71.2 ± 0.8`."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table(jobs: list[Job], reference: str | None) -> list[dict[str, Any]]:
    """Make the rows of the table, one for each recipe, split and network: scores of all seeds, and the gain.

    Args:
        jobs: Finished runs.
        reference: Name of the recipe to compare with. The gain is the difference to its scores; None computes no gain.
    """
    rows = []
    for label, split in dict.fromkeys((job.label, job.split) for job in jobs):
        ours = [job for job in jobs if (job.label, job.split) == (label, split)]
        for network in ours[0].result("test"):
            row = {"recipe": label, "split": split, "network": network, "seeds": len(ours)}
            for part in ("test", "validation"):
                for score in SCORES:
                    values = [job.result(part)[network]["scores"].get(score) for job in ours]
                    if None not in values:
                        row[f"{part} {score}"] = values
            row["gain"] = gains(ours, network, [job for job in jobs if (job.label, job.split) == (reference, split)])
            rows.append(row)
    return rows


def gains(ours: list[Job], network: str, reference: list[Job]) -> list[float]:
    """Compute how much better one recipe is than a reference: the difference of the main test score for each seed.

    Args:
        ours: Runs of the recipe.
        network: Name of the network: `student` or `teacher`.
        reference: Runs of the reference recipe.
    """
    by_seed = {job.seed: job for job in reference}
    pairs = [
        (job.result("test")[network], by_seed[job.seed].result("test")["student"])
        for job in ours
        if job.seed in by_seed
    ]
    score = next((s for s in ("accuracy", "mAP") if pairs and s in pairs[0][0]["scores"]), "accuracy")
    return [mine["scores"][score] - theirs["scores"][score] for mine, theirs in pairs]


def main() -> None:
    """Train and evaluate the runs that are not finished yet, and print a table of test scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", nargs="+", default=["official"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of all recipes")
    parser.add_argument("--reference", help="row that gains are counted from")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(recipe.split(",")[0], tuple(recipe.split(",")[1:]), split, seed, options.out, tuple(options.set))
        for seed in options.seeds
        for split in options.split
        for recipe in options.recipes
    ]
    if options.reference and options.reference not in {job.label for job in jobs}:
        parser.error(f"--reference {options.reference}: the rows are {', '.join(dict.fromkeys(j.label for j in jobs))}")
    carry_out(jobs, options.jobs)
    rows = table(jobs, options.reference)
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("seeds", "gain")]
    print("| " + " | ".join([*columns, "gain over reference"]) + " |")
    print("|" + " --- |" * (len(columns) + 1))
    for row in rows:
        cells = [spread(v) if isinstance(v := row.get(key, "-"), list) else str(v) for key in columns]
        print("| " + " | ".join([*cells, spread(row["gain"]) if row["gain"] else "-"]) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
