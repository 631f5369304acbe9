"""Kill training, conversion, pretraining and a search at random moments, and check that results do not change.

    python experiments/benchmarks/soak.py --kills 60 --seed 0 --json soak.json

Each kind of command runs once without a kill. After that, it runs from the start again and again, until its share of
the kills is done. Each run is killed (SIGKILL) at up to three random moments, together with all processes that it
started, also those of Ray. Each time, the same command resumes it. At the end, these must be equal, byte for byte:

- train (in one process, and on two Ray workers) and pretrain: every value in the checkpoints `last` and `best`
  (weights, averages, optimizer, queue, progress), the exported student or encoder, and the metric rows without times;
- convert: every file of the store;
- sweep on Ray: parameters, state and scores of each trial, `best.yaml` without the hours in its comments, and the
  student of each trial. Its sampler is a grid, one trial at a time. Random samplers could not be compared: each start
  seeds them anew, by the trials so far.

A kill counts only if the command was still running. No process may be left after a command has ended.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.synthetic import synthesize_archive
from stssl.training.checkpoints import read_state

LIMIT = 900
LINGER = 30
TIMES = ("images_per_s", "seconds", "data_wait", "memory")
CLI = [sys.executable, "-m", "stssl.commands.cli"]
Digest = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """Describe a kind of command that the test kills, such as `train` or `convert`.

    Attributes:
        name: Name in the printed table.
        command: Function that returns the command line, given the folder to run in. The same command line resumes.
        results: Function that returns a hash of each result in the folder. All hashes must equal those without a kill.
        begun: Function that returns True if the command in the folder does its work already, after its start.
    """

    name: str
    command: Callable[[Path], list[str]]
    results: Callable[[Path], Digest]
    begun: Callable[[Path], bool]


@dataclass
class Count:
    """Hold what the test found for one kind of command: kills, different results, and processes that were left."""

    kind: str
    seconds: float
    kills: int = 0
    runs: int = 0
    moments: list[float] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Return True if all results are equal, no process is left, and no command failed."""
        return not (self.different or self.left or self.failed)


def adopt_orphans() -> None:
    """Ask Linux to make orphans children of this process: it can then find processes that lost their parent."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def below() -> list[psutil.Process]:
    """List all running processes that this process started, directly or through other processes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all processes that it started (SIGKILL), until none is left."""
    process.kill()
    end = time.monotonic() + LINGER
    while left := below():
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        if time.monotonic() > end:
            raise SystemExit(f"cannot be killed: {left}")
        time.sleep(0.02)
    process.wait()
    bury()


def bury() -> None:
    """Collect the exit status of adopted processes that ended: without this, they would stay as zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def left_behind() -> list[str]:
    """Find processes that still run some seconds after their command ended. Kill them, and return their names."""
    end = time.monotonic() + LINGER
    while (left := below()) and time.monotonic() < end:
        time.sleep(0.2)
    names = []
    for one in left:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(one.cmdline())[:120])
            one.kill()
            one.wait(LINGER)
    bury()
    return names


def start(kind: Kind, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a folder, and return its process. Its output goes to the file `log` in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(kind.command(folder), stdout=log, stderr=log, cwd=folder, start_new_session=True)


def undisturbed(kind: Kind, folder: Path) -> tuple[float, float]:
    """Run a command without a kill. Return the seconds until it begins its work, and the seconds until its end."""
    began, first = time.monotonic(), None
    process = start(kind, folder)
    while process.poll() is None:
        if time.monotonic() - began > LIMIT:
            kill_all(process)
            raise SystemExit(f"{kind.name} does not end:\n{(folder / 'log').read_text()[-3000:]}")
        if first is None and kind.begun(folder):
            first = time.monotonic() - began
        time.sleep(0.02)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{kind.name} failed undisturbed:\n{(folder / 'log').read_text()[-3000:]}")
    if left := left_behind():
        raise SystemExit(f"{kind.name} leaves processes: {left}")
    return seconds if first is None else first, seconds


def disturbed(kind: Kind, folder: Path, most: int, moments: Iterator[float], count: Count) -> bool:
    """Run a command, and kill and resume it several times. Return True if it ended without an error.

    Args:
        kind: Kind of command.
        folder: Folder to run in.
        most: Largest number of kills.
        moments: Seconds from each start to the kill.
        count: Gets the numbers of kills and failures.
    """
    kills = 0
    while True:
        process = start(kind, folder)
        moment = next(moments)
        try:
            code = process.wait(moment if kills < most else LIMIT)
        except subprocess.TimeoutExpired:
            kill_all(process)
            if kills == most:
                count.failed.append("does not end")
                return False
            kills, count.kills = kills + 1, count.kills + 1
            count.moments.append(round(moment, 2))
            continue
        count.left += left_behind()
        if code:
            count.failed.append(f"exit code {code}: {(folder / 'log').read_text()[-1500:]}")
        return code == 0


def drawn(dice: random.Random, first: float, last: float) -> Iterator[float]:
    """Choose random moments for kills, in seconds after a start. One in five falls into the start of the command.

    Args:
        dice: Source of random numbers.
        first: Seconds until the command begins its work.
        last: Seconds until the command ends.
    """
    while True:
        yield dice.uniform(0, first) if dice.random() < 0.2 else dice.uniform(first, last)


def soak(kind: Kind, scratch: Path, kills: int, dice: random.Random) -> Count:
    """Run one kind of command again and again, kill it `kills` times, and compare its results with undisturbed ones.

    Args:
        kind: Kind of command.
        scratch: Folder for the runs.
        kills: Number of kills.
        dice: Source of random numbers.
    """
    first, seconds = undisturbed(kind, scratch / "whole")
    truth = kind.results(scratch / "whole")
    count, moments = Count(kind.name, round(seconds, 1)), drawn(dice, first, seconds)
    while count.kills < kills and count.good:
        folder = scratch / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        count.runs += 1
        if disturbed(kind, folder, min(3, kills - count.kills), moments, count):
            found = kind.results(folder)
            count.different += sorted(key for key in truth.keys() | found.keys() if truth.get(key) != found.get(key))
    return count


def hashes(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield a dotted name and a hash for every tensor and number in the nested dicts and lists of a checkpoint."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from hashes(part, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from hashes(part, f"{name}.{i}")
    elif isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield name, f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    else:
        yield name, repr(value)


def of_files(folder: Path, pattern: str = "**/*") -> Digest:
    """Hash each file below a folder. Return the hashes by the paths inside the folder."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def of_run(run: Path, *others: str) -> Digest:
    """Hash the results of a training run: weights, checkpoints and metrics, without times.

    Args:
        run: Folder of the run.
        *others: Not used.
    """
    found = of_files(run, "checkpoints/*.safetensors")
    for name in ("last", "best"):
        found |= dict(hashes(read_state(run / "checkpoints" / f"{name}.pt"), name))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        kept = {key: value for key, value in row.items() if not any(word in key for word in TIMES)}
        found[f"metrics.{row['kind']}.{row['step']}"] = json.dumps(kept, sort_keys=True)
    found["rows"] = str(len(rows))
    return found | {"done": str((run / "done.json").exists())}


def of_sweep(folder: Path) -> Digest:
    """Hash the results of a hyperparameter search: trials with their scores, best recipe, and weights of each trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")
    found = {}
    for trial in study.trials:
        found[f"trial {trial.number}"] = f"{trial.state.name} {sorted(trial.params.items())} {trial.values}"
        run = folder / "trials" / f"trial-{trial.number:04d}"
        found |= {f"{run.name}/{key}": value for key, value in of_files(run, "checkpoints/*.safetensors").items()}
    best = (folder / "best.yaml").read_text().splitlines()
    return found | {"best.yaml": "\n".join(line for line in best if not line.startswith("#"))}


def write_recipes(folder: Path, store: Path) -> None:
    """Write recipes for training, pretraining and a sweep that take only seconds on a small store."""
    data = {"store": str(store), "labels": "labels_19", "split": "official"}
    backbone = {"backbone": "slim_resnet", "backbone_args": {"channels": [4, 8, 8, 8]}, "image_size": 16}
    common = {"name": "run", "data": data, "compute": {"threads": 1}, "logging": {"every": 5, "tensorboard": False}}
    train = common | {
        "labels": {"fraction": 0.5, "allow_missing_classes": True},
        "model": backbone | {"metadata": "teacher", "injection": {"name": "late"}},
        "algorithm": {"name": "fixmatch", "threshold": 0.3},
        "batch": {"labeled": 8, "unlabeled_ratio": 2},
        "schedule": {"steps": 120, "warmup": 2, "supervised_start": 20, "evaluate_every": 10},
        "evaluation": {"batch": 32, "batchnorm_batches": 1},
        "ema": {"decay": 0.9},
        "launch": {"workers": 0, "storage": "runs"},
    }
    pretrain = common | {
        "model": backbone,
        "pretext": {"queue": 64},
        "batch": {"size": 16},
        "schedule": {"steps": 120, "warmup": 2, "evaluate_every": 10},
        "evaluation": {"batch": 32, "batchnorm_batches": 1},
        "launch": {"workers": 0, "storage": "runs"},
    }
    sweep = {
        "name": "sweep",
        "recipe": "train.yaml",
        # `best.yaml` names the storage. If it were the folder of each run, the files of two runs would differ.
        "change": {"launch.workers": 1, "launch.storage": str(folder / "runs"), "schedule.steps": 40},
        "trials": 3,
        "concurrent": 1,
        "seed": 0,
        "storage": "sweeps",
        "scheduler": {"name": "none"},
        "sampler": {"name": "grid"},
        "points": [],
        "search": {"optimizer.lr": [0.001, 0.003, 0.01]},
    }
    for name, tree in (("train", train), ("pretrain", pretrain), ("sweep", sweep)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def kinds(inputs: Path, archive: Path) -> list[Kind]:
    """List the kinds of commands to kill: training, pretraining, conversion and sweep."""

    def run(command: str, *overrides: str) -> Callable[[Path], list[str]]:
        # Give the storage as an absolute path: other tests cover relative paths.
        return lambda folder: [*CLI, command, f"{inputs}/{command}.yaml", f"launch.storage={folder}/runs", *overrides]

    def trained(folder: Path) -> bool:
        return (folder / "runs" / "run" / "recipe.yaml").exists()

    def of(folder: Path) -> Digest:
        return of_run(folder / "runs" / "run")

    def converted(folder: Path) -> list[str]:
        return [*CLI, "convert", "bigearthnet-v1", str(archive), f"{folder}/s.zarr", "--workers", "2", "--shard", "16"]

    def searched(folder: Path) -> list[str]:
        return [*CLI, "sweep", f"{inputs}/sweep.yaml", f"storage={folder}/sweeps"]

    return [
        Kind("train, one process", run("train"), of, trained),
        Kind("train, two Ray workers", run("train", "launch.workers=2"), of, trained),
        Kind("pretrain", run("pretrain"), of, trained),
        Kind(
            "convert",
            converted,
            lambda folder: of_files(folder / "s.zarr"),
            lambda folder: (folder / "s.zarr").exists(),
        ),
        Kind(
            "sweep on Ray",
            searched,
            lambda folder: of_sweep(folder / "sweeps" / "sweep"),
            lambda folder: (folder / "sweeps" / "sweep" / "study.db").exists(),
        ),
    ]


def main() -> None:
    """Kill commands of each kind at random moments, compare their results, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[], help="only those whose name has one of these words")
    parser.add_argument("--patches", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    adopt_orphans()
    counts = []
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        scratch = Path(name)
        archive = synthesize_archive(scratch / "archive", options.patches, seed=1)
        convert_archive("bigearthnet-v1", archive, scratch / "store.zarr", Options(workers=0, shard=64))
        write_recipes(scratch, scratch / "store.zarr")
        chosen = [
            kind
            for kind in kinds(scratch, archive)
            if not options.kinds or any(word in kind.name for word in options.kinds)
        ]
        for number, kind in enumerate(chosen):
            share = options.kills // len(chosen) + (number < options.kills % len(chosen))
            dice = random.Random(f"{options.seed}/{kind.name}")
            counts.append(soak(kind, scratch / str(number), share, dice))
            shutil.rmtree(scratch / str(number), ignore_errors=True)
            print(json.dumps(vars(counts[-1])), flush=True)
    print(f"\n{'kind':24} {'seconds':>8} {'kills':>6} {'runs':>5}  result")
    for count in counts:
        words = "identical" if count.good else f"{count.different[:3]} {count.left[:3]} {count.failed[:1]}"
        print(f"{count.kind:24} {count.seconds:8.1f} {count.kills:6} {count.runs:5}  {words}")
    print(f"{sum(count.kills for count in counts)} kills")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(
            json.dumps({"settings": settings, "kinds": [vars(count) for count in counts]}, indent=1)
        )
    if not all(count.good for count in counts):
        raise SystemExit("not all identical")


if __name__ == "__main__":
    main()
