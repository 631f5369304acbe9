"""Make steps, networks and batches that take milliseconds, for tests of training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stssl.algorithms import ALGORITHMS, Algorithm, AlgorithmConfig, DataFacts
from stssl.base.batch import IGNORED, Batch, Progress, Stream, View
from stssl.base.config import config_types, part_name
from stssl.base.labels import LabelSpace
from stssl.models import EncoderConfig, InjectionConfig, Network, NetworkRole, build_network
from stssl.steps.teacher_student import LabelerMode, LossConfig, TeacherStudentStep
from stssl.steps.votes import Votes, VotesConfig

MULTILABEL = LabelSpace(("a", "b", "c", "d", "e"), True)
SINGLELABEL = LabelSpace(("a", "b", "c", "d"), False)
VIT = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
SHALLOW = VIT | {"depth": 1}
SIZE = 8

FAST: dict[str, dict[str, Any]] = {
    "fixmatch": {"threshold": 0.6, "absent_below": 0.4, "present_above": 0.6},
    "defixmatch": {"threshold": 0.6, "absent_below": 0.4, "present_above": 0.6},
    "flexmatch": {"threshold": 0.85},
    "freematch": {"ema_decay": 0.5, "fairness_weight": 0.5, "supervised_steps": 0},
    "softmatch": {"ema_decay": 0.5, "target": "predicted"},
    "udal": {"ema_decay": 0.5, "threshold": 0.6, "absent_below": 0.4, "present_above": 0.6},
    "cap": {"rows": 100, "positive_share": 0.8, "negative_share": 0.7, "labeler": "live"},
    "cdmad": {"threshold": 0.6, "absent_below": 0.4, "present_above": 0.6, "debias_after": 1},
    "mean_teacher": {"ramp_up": 2},
    "adamatch": {"ema_decay": 0.5, "threshold": 0.9},
}
"""Options with which each algorithm selects pseudo-labels and changes its state within one or two steps."""

MEMORY = ("flexmatch", "freematch", "softmatch", "udal", "cap", "adamatch")
"""Algorithms with losses that depend on the data of earlier steps."""

CASES = [
    (name, space)
    for name in ALGORITHMS
    for space in (MULTILABEL, SINGLELABEL)
    if space.multilabel or not ALGORITHMS[name].multilabel_only
]
IDS = [f"{name}-{'multi' if space.multilabel else 'single'}" for name, space in CASES]


def part(union: Any, name: str, **options: Any) -> Any:
    """Build the configuration with the name `name` from a union of configuration classes."""
    return next(kind for kind in config_types(union) if part_name(kind) == name)(**options)


def make_algorithm(
    name: str, space: LabelSpace, prior: Tensor | None = None, count: int = 64, **options: Any
) -> Algorithm:
    if prior is None:
        prior = torch.linspace(1, 2, space.groups * space.choices).view(space.groups, space.choices)
        prior = prior / prior.sum(-1, keepdim=True)
    config = part(AlgorithmConfig, name, **{**FAST.get(name, {}), **options})
    return ALGORITHMS[name](config, space, DataFacts(prior, count))


def make_network(space: LabelSpace, role: NetworkRole, **changes: Any) -> Network:
    encoder = changes.pop("encoder", part(EncoderConfig, "raw"))
    injection = changes.pop("injection", part(InjectionConfig, "token"))
    settings: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "image_size": SIZE}
    settings |= {"in_channels": 3}
    settings |= {"classes": len(space.classes), "weights": "none", "distill": True} | changes
    return build_network(encoder=encoder, injection=injection, role=role, **settings)


def make_step(
    name: str,
    space: LabelSpace,
    *,
    teacher: bool = True,
    algorithm: Algorithm | None = None,
    loss: LossConfig | None = None,
    strong_labeled: bool = False,
    supervised_start: int = 0,
    seed: int = 0,
    network: dict[str, Any] | None = None,
    votes: VotesConfig | None = None,
    labeler_mode: LabelerMode = "evaluation",
    **options: Any,
) -> TeacherStudentStep:
    torch.manual_seed(seed)
    roles: tuple[NetworkRole, ...] = ("student", "teacher") if teacher else ("plain",)
    networks = [make_network(space, role, **({"backbone_args": SHALLOW} | (network or {}))) for role in roles]
    step = TeacherStudentStep(
        student=networks[0],
        teacher=networks[1] if teacher else None,
        algorithm=algorithm or make_algorithm(name, space, **options),
        space=space,
        loss=loss or LossConfig(distillation=0.3),
        ema_decay=0.5,
        strong_labeled=strong_labeled,
        supervised_start=supervised_start,
        votes=make_votes(space, votes),
        labeler_mode=labeler_mode,
    )
    for parameter in step.networks.parameters():
        # Enlarge the random weights: predictions must differ in confidence, or masks would be empty or full.
        parameter.data.add_((0.5 if parameter.ndim > 1 else 0.1) * torch.randn_like(parameter))
    for live, average in zip(step.networks.parameters(), step.averages.parameters(), strict=True):
        average.data.copy_(live)
    return step


def make_votes(space: LabelSpace, config: VotesConfig | None) -> Votes | None:
    """Make votes among 64 patches within about 30 km: a few are labeled, some have no place."""
    if config is None:
        return None
    generator = torch.Generator().manual_seed(5)
    metadata = torch.tensor([50.0, 8.0, 100.0, 12.0]) + 0.3 * torch.rand(64, 4, generator=generator)
    metadata[::9, :2] = torch.nan
    targets = torch.randint(0, space.choices, (64, space.groups), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.8] = IGNORED
    return Votes(config, metadata, targets, space.choices)


def make_batch(
    space: LabelSpace, labeled: int = 4, unlabeled: int = 8, seed: int = 0, *, ignored: bool = False, size: int = SIZE
) -> Batch:
    """Make a batch of random images of all views. Some metadata is missing; with `ignored`, some labels are unknown."""
    generator = torch.Generator().manual_seed(seed)

    def image(n: int) -> Tensor:
        return torch.randn(n, 3, size, size, generator=generator)

    def metadata(n: int) -> Tensor:
        table = torch.rand(n, 4, generator=generator) * torch.tensor([90.0, 180.0, 365.0, 24.0])
        table[::3, :2] = torch.nan
        table[::2, 2:] = torch.nan
        return table

    def choices(n: int) -> Tensor:
        return torch.randint(0, space.choices, (n, space.groups), generator=generator)

    labels = choices(labeled)
    if ignored:
        labels = torch.where(torch.rand(labels.shape, generator=generator) < 0.4, IGNORED, labels)
    rows = {view: labeled if view.stream is Stream.LABELED else unlabeled for view in View}
    return Batch(
        {view: image(n) for view, n in rows.items()},
        {Stream.LABELED: metadata(labeled), Stream.UNLABELED: metadata(unlabeled)},
        labels,
        torch.randint(0, 64, (unlabeled,), generator=generator),
        choices(unlabeled),
    )


def rows_of_batch(batch: Batch, number: int, of: int) -> Batch:
    """Return the part of a batch that belongs to rank `number` of `of` ranks."""
    return list(batch.split(of))[number]


def gradients(step: TeacherStudentStep) -> dict[str, Tensor]:
    return {
        name: torch.zeros(0) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in step.networks.named_parameters()
    }


def train(
    step: TeacherStudentStep,
    batches: Iterator[Batch] | list[Batch],
    start: int = 0,
    total: int = 10,
    rate: float = 0.05,
) -> list[float]:
    """Take a step of plain gradient descent on each batch, and return the losses."""
    losses = []
    for number, batch in enumerate(batches, start):
        step.zero_grad()
        output = step(batch, Progress(number, total))
        output.loss.backward()
        with torch.no_grad():
            for parameter in step.networks.parameters():
                assert parameter.grad is not None
                parameter.sub_(rate * parameter.grad)
        step.after_optimizer()
        losses.append(float(output.loss.detach()))
    return losses
