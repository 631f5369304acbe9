"""Measure the CPU seconds that a local run spends before its first step: imports, check, networks, folder.

    python experiments/benchmarks/start.py STORE --repeats 5
    python experiments/benchmarks/start.py STORE --against ../older-checkout model.backbone=vit_small_patch16_224

Each measurement is a new process that runs `stssl train synthetic/fixmatch_teacher launch.workers=0` and ends where the
first step would begin. STORE is a store of `stssl synthesize` and `stssl convert bigearthnet-v1`. With `--against`, the
processes of both checkouts take turns, so that a busy machine slows down both. Seconds are those of user and system.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURED = """
import json, os, resource, sys
import torch

def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

marks = [("torch", spent())]
from stssl.commands.cli import main
from stssl.api import progress
from stssl.training import launch, loop

marks.append(("other imports", spent()))

def marked(module, name, words):
    before = getattr(module, name)
    def call(*args, **named):
        found = before(*args, **named)
        marks.append((words, spent()))
        return found
    setattr(module, name, call)

def first_step(*args):
    marks.append(("until the first step", spent()))
    compiler = "torch._dynamo" in sys.modules
    print(json.dumps({"marks": marks, "compiler": compiler}), flush=True)
    os._exit(0)

marked(progress, "check_run", "check of the run, with timm")
marked(launch, "open_train_state", "networks, data, optimizer")
loop.train_step = first_step
main()
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("overrides", nargs="*", help="Recipe keys to change, as KEY=VALUE.")
    parser.add_argument("--against", type=Path, help="Another checkout to compare with.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args()
    here = Path(__file__).parents[2]
    checkouts = {"this checkout": here} | ({"the other": options.against.resolve()} if options.against else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(options.repeats):
        for name, checkout in checkouts.items():
            found[name].append(measured(checkout, options.store.resolve(), options.overrides))
    print(f"| CPU seconds | {' | '.join(found)} |\n| --- |{' --- |' * len(found)}")
    for part in next(iter(found.values()))[0]:
        print(f"| {part} | {' | '.join(shown([row[part] for row in rows]) for rows in found.values())} |")
    if options.json:
        options.json.write_text(json.dumps(found))
    if options.against:
        pairs = zip(*found.values(), strict=True)
        ratios = [own["all"] / other["all"] for own, other in pairs]
        print(f"\nall, this checkout to the other, in pairs: {shown(ratios)}")


def measured(checkout: Path, store: Path, overrides: list[str]) -> dict[str, float]:
    """Start a run in a new process, and return its CPU seconds by part, and 1 if it imported torch's compiler."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "SYNTHETIC": str(store), "OMP_NUM_THREADS": "1"}
    recipe = checkout / "experiments" / "synthetic" / "fixmatch_teacher.yaml"
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", str(recipe), "launch.workers=0", f"launch.storage={folder}", *overrides]
        command = [sys.executable, "-c", MEASURED, *words]
        done = subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    before, parts = 0.0, {}
    for name, spent in told["marks"]:
        parts[name], before = spent - before, spent
    return {**parts, "all": before, "with torch's compiler": float(told["compiler"])}


def shown(values: list[float]) -> str:
    """Return the median and the range of values in words."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
