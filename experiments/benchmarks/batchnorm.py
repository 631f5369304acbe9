"""Measure new BatchNorm statistics of averaged networks: each network its own batches, and all networks the same.

    python experiments/benchmarks/batchnorm.py STORE --repeats 7 --json batchnorm.json
    python experiments/benchmarks/batchnorm.py STORE synthetic/fixmatch_teacher model.image_size=64

STORE is a store of `stssl synthesize` and `stssl convert bigearthnet-v1`. Both ways alternate in each repeat, and so
does the scoring of the validation part, to compare with. Seconds are CPU seconds of all threads of this process.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stssl.base.batch import Progress
from stssl.models.ema import running_statistics
from stssl.recipes.catalog import find_recipe
from stssl.recipes.recipe import load_training_recipe
from stssl.training.state import open_train_state
from stssl.training.teacher_student_task import TeacherStudentTask, calibrate


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("recipe", nargs="?", default="synthetic/fixmatch_teacher")
    parser.add_argument("overrides", nargs="*", help="Recipe keys to change, as KEY=VALUE.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    os.environ.setdefault("SYNTHETIC", str(options.store.resolve()))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        given = [f"launch.storage={folder}", "launch.workers=0", "evaluation.batchnorm_batches=20", *options.overrides]
        recipe = load_training_recipe(find_recipe(options.recipe), given, False)
        task = open_train_state(recipe, torch.device("cpu")).task
        assert isinstance(task, TeacherStudentTask)
        found = measure(task, options.repeats)
    patches = len(task.data.split.validation)
    print("| part | CPU seconds | to own batches |\n| --- | --- | --- |")
    for name, values in found.items():
        ratios = [value / own for value, own in zip(values, found["own batches"], strict=True)]
        print(f"| {name} | {shown(values)} | {shown(ratios)} |")
    batches = recipe.evaluation.batchnorm_batches
    print(f"\n{len(task.step.averages)} averages, {batches} batches, {patches} patches scored")
    if options.json:
        options.json.write_text(json.dumps(found))


def measure(task: TeacherStudentTask, repeats: int) -> dict[str, list[float]]:
    """Measure each way in each repeat, and check that both give the same statistics."""
    step, progress = task.step, Progress(task.recipe.schedule.steps - 1, task.recipe.schedule.steps)
    averages = dict(step.averages.items())

    def estimate(names: list[str]) -> None:
        for name in averages.keys() - set(names):
            del step.averages[name]
        calibrate(step, task.recipe, task.data, task.views.pixels, progress)
        step.averages.update(averages)

    def each_alone() -> None:
        for name in averages:
            estimate([name])

    ways: dict[str, Callable[[], object]] = {
        "own batches": each_alone,
        "shared batches": lambda: estimate(list(averages)),
        "scoring the student": lambda: task._scored("student", "validation"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        results = []
        for name, way in ways.items():
            before = time.process_time()
            way()
            if number:  # the first repeat warms up
                found[name].append(time.process_time() - before)
            results.append([value.clone() for average in averages.values() for value in running_statistics(average)])
        assert results[0] and all(map(torch.equal, results[0], results[1]))
    return found


def shown(values: list[float]) -> str:
    """Return the median and the range of values in words."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
