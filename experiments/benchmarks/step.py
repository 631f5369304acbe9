"""Measure the seconds and FLOPs of each part of one training step, for any algorithm, and of a naive step.

    python experiments/benchmarks/step.py --algorithm fixmatch --naive --threads 2 --repeats 5 --json step.json
    python experiments/benchmarks/step.py --algorithm all --naive --labeled 2

The naive step works like the public implementation. Each network computes all views in one forward pass. All views have
gradients, also the teacher's weak view of unlabeled patches. The average of weights is computed from copies of the
state dict. Both steps make pseudo-labels by the same formulas. FLOPs are those of matrix products and convolutions
(torch.utils.flop_counter). Seconds are medians.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stssl.algorithms import ALGORITHMS, Algorithm, AlgorithmConfig, DataFacts
from stssl.algorithms.ring import Ring
from stssl.base.batch import Batch, Progress, Stream, View
from stssl.base.config import config_types, part_name
from stssl.base.errors import ConfigError
from stssl.base.labels import LabelSpace
from stssl.models import EncoderConfig, InjectionConfig, Network, NetworkRole, build_network
from stssl.recipes.optimizers import AdamWConfig
from stssl.steps.parts import Outputs
from stssl.steps.teacher_student import LossConfig, TeacherStudentStep
from stssl.training.optim import make_optimizer

PARTS = ("student forward", "teacher forward", "labels", "algorithm", "losses", "backward", "optimizer", "average")


class NaiveStep(TeacherStudentStep):
    """Compute a training step in the simplest way, for comparison: one forward pass of all views, with gradients."""

    def _forward_views(self, network: nn.Module, batch: Batch, views: list[View]) -> Outputs:
        live = self.algorithm.config.labeler == "live"
        if live and torch.is_grad_enabled() and network is self.networks[self.labeler]:
            weak = sorted(self.algorithm.views - set(views), key=lambda view: view.value)
            outputs = super()._forward_views(network, batch, views + weak)
            return Outputs(outputs.logits, {view: outputs.contexts[view] for view in views})
        return super()._forward_views(network, batch, views)

    @torch.no_grad()
    def after_optimizer(self, bad: torch.Tensor | None = None) -> None:
        """Update the moving average of the weights in the simplest way: copy all weights before and after."""
        for name, network in self._live():
            average = self.averaged_network(name)
            live = {key: value.clone() for key, value in network.state_dict().items()}
            held = {key: value.clone() for key, value in average.state_dict().items()}
            for key, _ in network.named_parameters():
                held[key] = held[key] * 0.999 + live[key] * 0.001
            average.load_state_dict(held)


def settle() -> None:
    """Wait until the GPU has finished its work. Without this, the clock would only measure the launch of kernels."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Meter:
    """Measure the seconds and FLOPs of each part of a training step, such as the forward pass of the student."""

    def __init__(self, counter: FlopCounterMode | None = None) -> None:
        """Begin with 0 seconds and 0 FLOPs. Without a FLOP counter, measure seconds only."""
        self.counter = counter
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.flops: defaultdict[str, float] = defaultdict(float)
        self.inner = [0.0, 0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the code inside the `with` block, and add its seconds and FLOPs to the part `name`.

        Parts may be nested. The seconds of an inner part do not count for the outer part.
        """
        before, self.inner = self.inner, [0.0, 0.0]
        settle()
        start, flops = time.perf_counter(), self._flops()
        yield
        settle()
        spent = [time.perf_counter() - start, self._flops() - flops]
        self.seconds[name] += spent[0] - self.inner[0]
        self.flops[name] += spent[1] - self.inner[1]
        self.inner = [before[0] + spent[0], before[1] + spent[1]]

    def wrap(self, name: Callable[[], str] | str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same as `function`, and adds its seconds and FLOPs to the part `name`."""

        def counted(*args: Any, **options: Any) -> Any:
            with self.part(name if isinstance(name, str) else name()):
                return function(*args, **options)

        return counted

    def _flops(self) -> float:
        return float(self.counter.get_total_flops()) if self.counter else 0.0


def part(union: Any, name: str, **options: Any) -> Any:
    """Build the configuration of an algorithm, encoder or other choice, given its `name` in recipes."""
    return next(kind for kind in config_types(union) if part_name(kind) == name)(**options)


def make_step(options: argparse.Namespace, name: str, naive: bool) -> TeacherStudentStep:
    """Build a training step (student, teacher, algorithm) in the state that it has after all warm-ups.

    Args:
        options: Options of the command line: backbone, size, classes and others.
        name: Name of the algorithm.
        naive: True for the naive step.
    """
    torch.manual_seed(0)
    space = LabelSpace(tuple(map(str, range(options.classes))), not options.single_label)
    prior = torch.full((space.groups, space.choices), 1 / space.choices)
    config = part(AlgorithmConfig, name)

    def network(role: NetworkRole) -> Network:
        return build_network(
            backbone=options.backbone,
            backbone_args={},
            image_size=options.size,
            in_channels=3,
            classes=options.classes,
            encoder=part(EncoderConfig, "raw"),
            injection=part(InjectionConfig, options.site),
            role=role,
            weights="none",
            distill=True,
        )

    return (NaiveStep if naive else TeacherStudentStep)(
        student=network("student"),
        teacher=network("teacher"),
        algorithm=ALGORITHMS[name](config, space, DataFacts(prior, 100_000)),
        space=space,
        loss=LossConfig(),
        ema_decay=0.999,
        strong_labeled=False,
        supervised_start=0,
    )


def make_batch(options: argparse.Namespace, space: LabelSpace, device: torch.device) -> Batch:
    """Make a batch of random images, with one image for each augmented view of each patch."""
    torch.manual_seed(1)
    rows = {Stream.LABELED: options.labeled, Stream.UNLABELED: options.labeled * options.ratio}
    images = {view: torch.randn(rows[view.stream], 3, options.size, options.size, device=device) for view in View}
    metadata = {stream: torch.rand(count, 4, device=device) * 40 for stream, count in rows.items()}
    labels = torch.randint(0, space.choices, (options.labeled, space.groups), device=device)
    return Batch(images, metadata, labels, torch.arange(rows[Stream.UNLABELED], device=device))


def fill(algorithm: Algorithm) -> None:
    """Fill the memory of past predictions that some algorithms keep. It is as large as after thousands of steps."""
    for module in algorithm.modules():
        if isinstance(module, Ring):
            module.push(torch.rand(module.values.T.shape, device=module.values.device))


def instrument(step: TeacherStudentStep, meter: Meter) -> None:
    """Replace the methods of a step by measured ones: the meter then gets the seconds and FLOPs of each part."""
    averages = ((name, step.averages.get_submodule(f"{name}.network")) for name in step.averages)
    for name, network in [*step.networks.items(), *averages]:
        forward = type(network).forward.__get__(network)
        setattr(network, "forward", meter.wrap(partial(_forward_part, name), forward))  # noqa: B010
    for name in ("observe", "terms"):
        method = getattr(type(step.algorithm), name).__get__(step.algorithm)
        setattr(step.algorithm, name, meter.wrap("algorithm", method))


def _forward_part(name: str) -> str:
    return f"{name} forward" if torch.is_grad_enabled() else "labels"


def take(step: TeacherStudentStep, optimizer: torch.optim.Optimizer, batch: Batch, meter: Meter) -> None:
    """Take one whole training step (forward, backward, optimizer, averages). The meter measures each part."""
    optimizer.zero_grad(set_to_none=True)
    with meter.part("losses"):
        output = step(batch, Progress(50_000, 64_000))
    with meter.part("backward"):
        output.loss.backward()
    with meter.part("optimizer"):
        optimizer.step()
    with meter.part("average"):
        step.after_optimizer()


Parts = dict[str, dict[str, float]]
"""The `seconds` and `flops` of each part of a step, by name of the part."""


class Subject:
    """Hold one kind of training step (ours or the naive one) and its measurements."""

    def __init__(self, options: argparse.Namespace, name: str, naive: bool) -> None:
        """Build the training step, and count its FLOPs. They are the same in each repeat.

        Args:
            options: Options of the command line.
            name: Name of the algorithm.
            naive: True for the naive step.
        """
        device = torch.device(options.device)
        self.step = make_step(options, name, naive).to(device).train()
        fill(self.step.algorithm)
        self.optimizer = make_optimizer(self.step.networks, AdamWConfig())
        self.batch = make_batch(options, self.step.space, device)
        self.flops = self.run(FlopCounterMode(display=False)).flops
        self.runs: list[Meter] = []

    def run(self, counter: FlopCounterMode | None = None) -> Meter:
        """Take one training step, and return its measured seconds and FLOPs."""
        meter = Meter(counter)
        instrument(self.step, meter)
        with counter or nullcontext():
            take(self.step, self.optimizer, self.batch, meter)
        return meter

    def parts(self) -> Parts:
        """Return the median seconds and the FLOPs of each part of the step, over all repeats."""
        return {
            name: {"seconds": statistics.median(run.seconds[name] for run in self.runs), "flops": self.flops[name]}
            for name in PARTS
            if name in self.runs[0].seconds
        }


def measure(options: argparse.Namespace, name: str) -> list[Parts]:
    """Measure the package's training step and, if the options ask for it, the naive one.

    Both take turns: other work on the machine then slows both.

    Args:
        options: Options of the command line.
        name: Name of the algorithm.
    """
    subjects = [Subject(options, name, naive) for naive in ((False, True) if options.naive else (False,))]
    for _ in range(options.repeats):
        for subject in subjects:
            subject.runs.append(subject.run())
    return [subject.parts() for subject in subjects]


def table(name: str, ours: Parts, naive: Parts | None) -> None:
    """Print a table: a row for each part of a step, and a column for each kind of step.

    Args:
        name: Name of the algorithm.
        ours: Measurements of the package's step.
        naive: Measurements of the naive step; None if it was not measured.
    """
    columns = [("seconds", 1.0, "s"), ("flops", 1e9, "GFLOP")]
    sides = [("", ours)] + ([("naive ", naive)] if naive else [])
    print(f"\n{name:<18}" + "".join(f"{side + unit:>14}" for side, _ in sides for _, _, unit in columns))
    for row in [*PARTS, "total"]:
        cells = [_cell(parts, row, key) / scale for _, parts in sides for key, scale, _ in columns]
        if any(cells):
            print(f"{row:<18}" + "".join(f"{cell:>14.4g}" for cell in cells))
    if naive:
        shares = [_cell(ours, "total", key) / _cell(naive, "total", key) for key, _, _ in columns]
        print(f"{'ours / naive':<18}{shares[0]:>14.3f}{shares[1]:>14.3f}")


def _cell(parts: Parts, row: str, key: str) -> float:
    if row == "total":
        return sum(values[key] for values in parts.values())
    return parts.get(row, {}).get(key, 0.0)


def main() -> None:
    """Read the options, measure the training steps of the chosen algorithms, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", nargs="+", default=["fixmatch"], help="names, or all")
    parser.add_argument("--naive", action="store_true", help="measure the naive step, too")
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--site", default="token")
    parser.add_argument("--classes", type=int, default=43)
    parser.add_argument("--single-label", action="store_true")
    parser.add_argument("--labeled", type=int, default=4)
    parser.add_argument("--ratio", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for name in ALGORITHMS if options.algorithm == ["all"] else options.algorithm:
        try:
            ours, *others = measure(options, name)
        except ConfigError as error:
            print(f"\n{name}: {error}")
            continue
        naive = others[0] if others else None
        table(name, ours, naive)
        found[name] = {"ours": ours, "naive": naive}
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "steps": found}, indent=1))


if __name__ == "__main__":
    main()
