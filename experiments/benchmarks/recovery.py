"""Measure how long a run that loses a worker takes until it trains again.

    SYNTHETIC=synthetic.zarr python experiments/benchmarks/recovery.py experiments/synthetic/fixmatch_teacher.yaml \
        --repeats 3 model.image_size=32

The script trains on local Ray, and kills one worker (SIGKILL) after a checkpoint, `--repeats` times. `noticed` is the
time from the kill to the start of new worker processes, which depends on Ray. `again` is the time from this start to
the first step after the checkpoint: imports, store, networks and checkpoint. Further arguments are overrides of the
recipe.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

EVERY = 10
LIMIT = 600


def workers(root: int) -> dict[int, float]:
    """Find the training processes of Ray below a process. Return the start time of each (seconds since boot) by id."""
    parents, starts, names = {}, {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            names[int(stat.parent.name)] = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        starts[int(stat.parent.name)] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    found = {}
    for pid, name in names.items():
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and "RayTrainWorker" in name:
            found[pid] = starts[pid]
    return found


def rows(run: Path, kind: str) -> list[int]:
    """List the numbers of the steps for which a run has written metrics of a kind: `train` or `validation`."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row["step"] for row in map(json.loads, lines[:-1]) if row["kind"] == kind]


def resumed(run: Path) -> list[int]:
    """List from which step a run was started or resumed each time, from the first start to the last."""
    path = run / "record.json"
    return [start["step"] for start in json.loads(path.read_text())["starts"]] if path.exists() else []


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], object]) -> None:
    """Wait until a condition is true. Check it every 20 ms, and end the script if the run's process ends too early."""
    end = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the run ended too early or stands still: {process.poll()}")
        time.sleep(0.02)


def lose(process: subprocess.Popen[bytes], run: Path, number: int) -> dict[str, float]:
    """Wait for a further checkpoint, kill one worker of the run, and measure how long the run takes to train again.

    Args:
        process: Process that started the run.
        run: Folder of the run.
        number: How often the run was started so far.

    Returns:
        Seconds until new workers start, seconds until they train, and the step from which they resume.
    """
    begun = max(rows(run, "validation"), default=0)
    wait_for(process, lambda: max(rows(run, "validation"), default=0) >= begun + 2 * EVERY)
    before = workers(process.pid)
    killed = time.clock_gettime(time.CLOCK_BOOTTIME)
    os.kill(min(before), signal.SIGKILL)
    wait_for(process, lambda: len(resumed(run)) > number)
    step = resumed(run)[-1]
    spawned = max(start for pid, start in workers(process.pid).items() if pid not in before)
    wait_for(process, lambda: max(rows(run, "train"), default=0) > step)
    trains = time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"noticed s": spawned - killed, "again s": trains - spawned, "resumed after step": step}


def main() -> None:
    """Start a run, kill one of its workers several times, and print how long the run took to recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options, more = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        where = [
            f"launch.storage={scratch}",
            "name=lost",
            f"launch.workers={options.workers}",
            "launch.max_failures=-1",
        ]
        often = ["logging.every=1", "logging.tensorboard=false", f"schedule.evaluate_every={EVERY}"]
        command = [sys.executable, "-m", "stssl.commands.cli", "train", options.recipe, *where, *often]
        with (Path(scratch) / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "schedule.steps=100000", *options.overrides, *more], stdout=log, stderr=log
            )
        try:
            for number in range(1, options.repeats + 1):
                found.append(lose(process, Path(scratch) / "lost", number))
                print(json.dumps(found[-1]), flush=True)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT)
    for key in ("noticed s", "again s"):
        print(f"{key}: median {statistics.median(row[key] for row in found):.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
