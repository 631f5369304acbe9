"""Train a step of each recipe's network under malloc's checks, after controls that damage the heap.

`test_layout.py` runs this file in a separate process.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stssl.base.config import load_tree
from stssl.models.backbones import make_backbone
from stssl.models.layout import placed
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import RunRecipe, load_as
from stssl.sweeps.spec import load_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"channels": [4, 8, 8, 8]}
Case = tuple[str, dict[str, Any], int, int, bool]


def recipes() -> list[RunRecipe]:
    found: list[RunRecipe] = []
    for path in sorted(EXPERIMENTS.rglob("*.yaml")):
        if path.parent.name == "sweeps":
            found.append(load_sweep(path, ()).recipe)
        elif path.parent.name != "base":
            found.append(load_as(kind_of(load_tree(path)), path))
    return found


def cases() -> list[Case]:
    """List backbone, its arguments, bands, image size and bf16 of all recipes, and of small networks as in tests."""
    asked: list[Case] = [
        (r.model.backbone, r.model.backbone_args, len(r.data.bands), r.model.image_size, r.compute.precision == "bf16")
        for r in recipes()
    ]
    asked += [("slim_resnet", {}, 5, 24, False)]  # the network that `stssl quickstart` trains
    asked += [("slim_resnet", SMALL, bands, size, half) for bands, size, half in ((1, 48, False), (3, 64, True))]
    return [case for number, case in enumerate(asked) if case not in asked[:number]]


def step(case: Case, rows: int, memory: torch.memory_format | None = None) -> torch.memory_format:
    name, options, bands, size, half = case
    network = make_backbone(name, options, size=size, in_channels=bands, classes=3, hub=False)
    chosen = placed(network, CPU)
    if memory is not None:
        chosen = memory
        network.to(memory_format=memory)
    for _ in range(2 if name == "slim_resnet" else 1):
        image = torch.randn(rows, bands, size, size).contiguous(memory_format=chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            network(image).float().square().sum().backward()
    with torch.no_grad():
        network.eval()(image)
    return chosen


def ended(work: Callable[[], None]) -> int:
    """Run a function in a new process. Return the number of the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        signal.alarm(100)  # a damaged heap may also make the process hang
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def overrun() -> None:
    """Write one byte past the end of a tensor, to check that malloc finds it on every CPU."""
    tensor = torch.zeros(64, dtype=torch.uint8)
    ctypes.memset(tensor.data_ptr() + 64, 1, 1)
    del tensor


def few_channels() -> None:
    """Train steps of a network with few channels in channels_last, which makes oneDNN damage the heap."""
    for _ in range(3):
        step(("slim_resnet", SMALL, 3, 64, False), 12, torch.channels_last)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for control in (overrun, few_channels):
        sys.stdout.write(f"{control.__name__} {ended(control)}\n")
        sys.stdout.flush()
    for case in cases():
        chosen = step(case, 8 if case[0] == "slim_resnet" else 2)
        sys.stdout.write(" ".join(map(str, (*case, chosen))) + "\n")
