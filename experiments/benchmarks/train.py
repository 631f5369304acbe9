"""Measure the whole training loop: images/s, seconds of its parts, wait for data, memory, utilization, checkpoints.

    python experiments/benchmarks/train.py --steps 20 --threads 2 --repeats 3 --json train.json
    python experiments/benchmarks/train.py --labeled 64 --precision bf16 --device cuda --peak 989
    python experiments/benchmarks/train.py --ranks 1 2 --threads 1

The script writes a synthetic store and trains ST-FixMatch on it, with the loader, augmentation, step, optimizer and
average of a real run, but without Ray. `--peak` is the highest speed of the device in TFLOP/s. Utilization is the share
of this speed that matrix products and convolutions of a step reach. `--ranks` measures several processes (ranks) on
this machine. In weak scaling, the batch of each rank stays the same. In strong scaling, the global batch stays the
same.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.synthetic import synthesize_archive
from stssl.base.config import validate
from stssl.base.distributed import rank
from stssl.recipes.recipe import Recipe
from stssl.training.loop import train_step
from stssl.training.state import TrainState, open_train_state

PARTS = ("wait for data", "views", "forward", "backward", "rest of the step")


def recipe(options: argparse.Namespace, store: Path, labeled: int) -> Recipe:
    """Make a training recipe for the algorithm ST-FixMatch.

    Args:
        options: Options of the command line: backbone, image size and others.
        store: Path of the store.
        labeled: Number of labeled patches in a global batch.
    """
    vit = options.backbone.startswith("vit")
    tree: dict[str, Any] = {
        "name": "train",
        "data": {"store": str(store), "labels": "labels_19", "cache": options.cache},
        "labels": {"fraction": 0.5, "allow_missing_classes": True},
        "model": {
            "backbone": options.backbone,
            "image_size": options.size,
            "metadata": "teacher",
            "injection": {"name": "token" if vit else "late"},
        },
        "algorithm": {"name": "fixmatch"},
        "batch": {"labeled": labeled, "unlabeled_ratio": options.ratio, "micro": options.micro},
        "schedule": {"steps": 10**6, "evaluate_every": 10**6},
        "compute": {"precision": options.precision, "threads": options.threads, "compile": options.compile},
        "launch": {"workers": 0, "storage": str(store.parent / f"runs-{rank()}")},
        "logging": {"tensorboard": False},
    }
    return validate(Recipe, tree, "benchmark")


class Clock:
    """Measure the seconds of each part of a training step.

    The clock waits for the device after each part. So the parts together take longer than a step without the clock.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with 0 seconds for all parts. `device` is the device that the clock waits for."""
        self.device, self.spent = device, dict.fromkeys(PARTS, 0.0)

    def now(self) -> float:
        """Wait until the device has finished its work, and return the time in seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def by_part(train_state: TrainState, batches: Any, steps: int) -> dict[str, float]:
    """Take some training steps, and return the mean seconds of each part of a step, by name of the part.

    Args:
        train_state: Networks, optimizer and task.
        batches: Iterator of loaded batches.
        steps: Number of steps.
    """
    clock = Clock(train_state.task.device)
    for _ in range(steps):
        start = clock.now()
        raw = next(batches)
        got = clock.now()
        batch = train_state.task.batch(raw)
        seen = clock.now()
        train_state.optimizer.zero_grad(set_to_none=True)
        forward = backward = 0.0
        with train_state.autocast():
            micro_batches = train_state.task.micro_batches(batch, train_state.next_step)
        for micro_batch in micro_batches:
            before = clock.now()
            with train_state.autocast():
                output = train_state.model(*micro_batch)
            middle = clock.now()
            output.loss.backward()
            forward, backward = forward + middle - before, backward + clock.now() - middle
        done = clock.now()
        train_state.optimizer.step()
        train_state.task.step.after_optimizer(torch.zeros((), dtype=torch.bool, device=train_state.task.device))
        rest = clock.now() - done + (done - seen - forward - backward)
        train_state.progress.step += 1
        for name, value in zip(PARTS, (got - start, seen - got, forward, backward, rest), strict=True):
            clock.spent[name] += value / steps
    return clock.spent


def flops(train_state: TrainState, raw: Any) -> float:
    """Take one training step, and count the FLOPs of its matrix products and convolutions in this process."""
    with FlopCounterMode(display=False) as counter:
        train_step(train_state, raw)
    train_state.progress.step += 1
    return float(counter.get_total_flops())


def checkpoint_seconds(train_state: TrainState) -> tuple[float, float]:
    """Save a checkpoint. Return how many seconds it stops training, and after how many seconds its file is written."""
    start = time.perf_counter()
    train_state.folder.checkpoints.save(train_state.checkpoint_state(), best=True)
    stopped = time.perf_counter() - start
    train_state.folder.checkpoints.wait()
    return stopped, time.perf_counter() - start


def measure(options: argparse.Namespace, store: Path, labeled: int) -> dict[str, Any]:
    """Measure training with a number of labeled patches in a batch, and return the medians as a row of the table.

    Args:
        options: Options of the command line.
        store: Path of the store.
        labeled: Number of labeled patches in a global batch.
    """
    train_state = open_train_state(recipe(options, store, labeled), torch.device(options.device))
    batches = train_state.task.loader.batches(0, 10**6)
    clock = Clock(train_state.task.device)
    for _ in range(options.warmup):
        train_step(train_state, next(batches))
        train_state.progress.step += 1
    needed = flops(train_state, next(batches))
    seconds, waits = [], []
    for _ in range(options.repeats):
        start, waited = clock.now(), 0.0
        for _ in range(options.steps):
            before = time.perf_counter()
            raw = next(batches)
            waited += time.perf_counter() - before
            train_step(train_state, raw)
            train_state.progress.step += 1
        seconds.append((clock.now() - start) / options.steps)
        waits.append(waited / options.steps)
    parts = by_part(train_state, batches, max(1, options.steps // 2))
    second = statistics.median(seconds)
    row = {
        "backbone": options.backbone,
        "size": options.size,
        "precision": options.precision,
        "labeled": labeled,
        "unlabeled": labeled * options.ratio,
        "s/step": second,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "images/s": labeled * (1 + options.ratio) / second,
        "data wait": statistics.median(waits) / second,
        "TFLOP/step": needed / 1e12,
        "memory GB": memory(train_state.task.device),
    }
    if options.peak:
        row["utilization"] = needed / second / (options.peak * 1e12)
    stopped, written = checkpoint_seconds(train_state)
    row |= {"checkpoint stop s": stopped, "checkpoint s": written}
    if isinstance(batches, Generator):  # without this, its thread continues to read and slows the next measurement
        batches.close()
    return row | {f"{name} s": value for name, value in parts.items()}


def memory(device: torch.device) -> float:
    """Return the largest amount of memory in GB that training has used on the device so far."""
    from stssl.training.runtime import peak_memory as peak

    return peak(device)["memory_gb"]


def write_store(folder: Path, patches: int) -> Path:
    """Write a synthetic archive and convert it to a store. If the store exists already, do nothing. Return its path."""
    store = folder / "store.zarr"
    if not store.exists():
        archive = synthesize_archive(folder / "archive", patches=patches, seed=0)
        convert_archive("bigearthnet-v1", archive, store, Options(workers=0, shard=128))
    return store


def one_rank(rank: int, world: int, options: argparse.Namespace, labeled: int, out: str) -> None:
    """Take part in a distributed measurement as one of several processes. The first process writes the result.

    Args:
        rank: Number of this process, counted from 0.
        world: Number of processes.
        options: Options of the command line.
        labeled: Number of labeled patches in a global batch.
        out: File for the result.
    """
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=world)
    row = measure(options, Path(out).parent / "store.zarr", labeled)
    if rank == 0:
        Path(out).write_text(json.dumps(row | {"ranks": world}))
    dist.destroy_process_group()


def scaling(options: argparse.Namespace, store: Path) -> list[dict[str, Any]]:
    """Measure how the speed of training grows with the number of processes on this machine.

    Weak scaling keeps the batch of each process, strong scaling keeps the global batch. The efficiency compares each
    number of processes with the first one.
    """
    rows = []
    for kind in ("weak", "strong"):
        first: dict[str, Any] | None = None
        for world in options.ranks:
            labeled = options.labeled * world if kind == "weak" else options.labeled
            out = str(store.parent / f"{kind}{world}.json")
            arguments = (world, options, labeled, out)
            spawn(one_rank, arguments, nprocs=world)  # type: ignore[no-untyped-call]  # torch leaves it so
            row = {"scaling": kind, **json.loads(Path(out).read_text())}
            first = first or row
            expected = first["images/s"] * world / first["ranks"]
            rows.append(row | {"efficiency": row["images/s"] / expected})
    return rows


def main() -> None:
    """Read the options, measure the training loop, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--labeled", type=int, default=4)
    parser.add_argument("--ratio", type=int, default=7)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cache", default="none", choices=["none", "host", "device"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=float, help="of the device, in TFLOP/s")
    parser.add_argument("--patches", type=int, default=600)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="*", default=[])
    parser.add_argument("--store", type=Path, help="folder that keeps the generated store")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.store or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        store = write_store(folder, options.patches)
        for precision in options.precision:
            chosen = argparse.Namespace(**vars(options) | {"precision": precision})
            rows += scaling(chosen, store) if options.ranks else [measure(chosen, store, options.labeled)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v := row.get(key, "-"), float | np.floating) else str(v) for key in columns]
        print("| " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
