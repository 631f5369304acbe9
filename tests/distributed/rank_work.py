"""Define the work of each process in tests with several ranks. The processes import it from this module."""

import contextlib
from pathlib import Path
from typing import Any

import small
import torch
from processes import on_ranks
from torch.nn.parallel import DistributedDataParallel

from stssl.base.batch import Batch, Progress
from stssl.base.labels import LabelSpace
from stssl.steps import gathering
from stssl.steps.teacher_student import LossConfig, TeacherStudentStep
from stssl.steps.votes import VotesConfig

ROWS = {"labeled": 16, "unlabeled": 64}
STEPS = 2
MORE: dict[str, tuple[str, LabelSpace, dict[str, Any]]] = {
    "micro": ("freematch", small.MULTILABEL, {"parts": 2}),
    "start": ("fixmatch", small.MULTILABEL, {"supervised_start": 1}),
    "votes": ("freematch", small.MULTILABEL, {"votes": VotesConfig(count=4)}),
}


def spawn(world: int, folder: Path) -> list[dict[str, Any]]:
    """Run the function `work` in `world` processes, and return what each of them found, sorted by rank."""
    on_ranks(world, work, folder, world)
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


def work(rank: int, folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    found = {case: replay(*small.CASES[number], rank, world) for number, case in enumerate(small.IDS)}
    found |= {case: replay(*options[:2], rank, world, **options[2]) for case, options in MORE.items()}
    # Use `setattr`: mypy takes an imported name for a private one of its module.
    setattr(gathering, "gather_rows", lambda rows, counts: rows)  # noqa: B010
    for case in ("micro", "votes"):
        found[f"{case}, no gather"] = replay(*MORE[case][:2], rank, world, **MORE[case][2])
    torch.save(found, folder / f"{world}-{rank}.pt")


def make(name: str, space: LabelSpace, **options: Any) -> TeacherStudentStep:
    return small.make_step(name, space, strong_labeled=True, loss=LossConfig(distance="cosine"), **options)


def global_batch(space: LabelSpace, number: int) -> Batch:
    """Make a batch with unknown labels, missing metadata, and a number of rows that three ranks cannot share evenly."""
    return small.make_batch(space, **ROWS, seed=number, ignored=True)


def replay(name: str, space: LabelSpace, rank: int, world: int, parts: int = 1, **options: Any) -> dict[str, Any]:
    """Train two steps on one rank's rows. Return the losses and gradients of the steps, and the state at the end."""
    step = make(name, space, **options)
    model = DistributedDataParallel(step, broadcast_buffers=False) if world > 1 else step
    losses, gradients = [], []
    for number in range(STEPS):
        step.zero_grad()
        batch = small.rows_of_batch(global_batch(space, number), rank, world)
        losses.append(backward(model, step, batch, Progress(number, STEPS), parts))
        gradients.append(small.gradients(step))
        with torch.no_grad():
            for parameter in step.networks.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
        step.after_optimizer()
    return {"losses": losses, "gradients": gradients, "state": step.state_dict()}


def backward(
    model: DistributedDataParallel | TeacherStudentStep,
    step: TeacherStudentStep,
    batch: Batch,
    progress: Progress,
    parts: int,
) -> dict[str, torch.Tensor]:
    if parts == 1:
        output = model(batch, progress)
        output.loss.backward()
        own: dict[str, torch.Tensor] = output.logs
        return own
    logs: dict[str, torch.Tensor] = {}
    plans = step.plan(batch, progress, parts)
    for part, (block, plan) in enumerate(zip(batch.split(parts), plans, strict=True)):
        if part < parts - 1:
            with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
                output = model(block, progress, plan)
                output.loss.backward()
        else:
            output = model(block, progress, plan)
            output.loss.backward()
        logs = {key: logs.get(key, 0) + value for key, value in output.logs.items()}
    return logs
