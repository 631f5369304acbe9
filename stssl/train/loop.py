"""The loop that every run goes through, on one rank or many, with or without Ray."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from stssl.batch import Progress, RawBatch, View
from stssl.build import RunData, build_loader
from stssl.distributed import rank
from stssl.evaluate import Evaluation, evaluate
from stssl.metrics import headline
from stssl.models.ema import average_batchnorm
from stssl.recipe import Recipe
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.train.meter import Meter
from stssl.train.optim import clip_gradients, learning_rate
from stssl.train.session import Session
from stssl.views import Pixels, ViewMaker

Report = Callable[[dict[str, Any]], None]


def train(session: Session, report: Report) -> dict[str, Any]:
    """Train from where the session is to the end of its recipe, or until patience ends it.

    Args:
        session: One rank's parts; ranks call this together.
        report: Gets each validation's metrics, on every rank.

    Returns:
        How it ended: steps taken, best score and its step.

    Raises:
        RunError: The loss is not finite.
    """
    schedule, position = session.recipe.schedule, session.position
    meter = Meter(session)
    for raw in meter.waiting(session.loader.batches(position.step, schedule.steps)):
        meter.add(update(session, raw))
        position.step += 1
        if position.step % session.recipe.logging.every == 0:
            meter.write()
        if position.step % schedule.evaluate_every == 0 or position.step == schedule.steps:
            metrics = validate(session)
            report(metrics)
            if position.exhausted(schedule.patience):
                break
            meter.restart()
    session.folder.checkpoints.wait()
    return {"steps": position.step, "best": position.best, "best_step": position.best_step}


def update(session: Session, raw: RawBatch) -> dict[str, Tensor]:
    """One optimiser step on this rank's rows of a global batch; returns what to log, still on the device."""
    recipe, step = session.recipe, session.position.step
    progress = Progress(step, recipe.schedule.steps)
    torch.manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + rank())
    rate = learning_rate(step, recipe.schedule.steps, recipe.schedule.warmup, recipe.optimizer.lr)
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    session.optimizer.zero_grad(set_to_none=True)
    logs = backward(session, raw, progress)
    norms = clip_gradients(session.step.networks.items(), recipe.optimizer.clip)
    session.optimizer.step()
    session.step.after_optimizer()
    return logs | {f"gradient_norm_{name}": norm for name, norm in norms.items()}


def backward(session: Session, raw: RawBatch, progress: Progress) -> dict[str, Tensor]:
    """Gradients of the global batch's loss, in micro-batches where the recipe asks for them."""
    batch = session.views(raw)
    micro = session.recipe.batch.micro
    parts = 1 if micro is None else -(-len(batch.labels) // micro)
    if parts == 1:
        with session.autocast():
            output = session.model(batch, progress)
        output.loss.backward()
        return dict(output.logs)
    with session.autocast():
        plans = session.step.plan(batch, progress, parts)
    total: dict[str, Tensor] = {}
    for part, (small, plan) in enumerate(zip(batch.split(parts), plans, strict=True)):
        ddp = session.model if isinstance(session.model, DistributedDataParallel) else None
        with nullcontext() if ddp is None or part == parts - 1 else ddp.no_sync():
            with session.autocast():
                output = session.model(small, progress, plan)
            output.loss.backward()
        total = {name: total.get(name, 0) + value for name, value in output.logs.items()}
    return total


def validate(session: Session) -> dict[str, Any]:
    """Score the averaged student on validation, write a checkpoint, and remember the best."""
    position, recipe = session.position, session.recipe
    average_batchnorm(session.step)
    result = evaluate_student(session, "validation")
    name = headline(session.data.space)
    score = result.scores[name]
    better = position.best is None or score > position.best
    if better:
        position.best, position.best_step = score, position.step
    metrics = {"step": position.step, **result.scores, "score": score, "best": position.best}
    session.journal.append("validation", position.step, result.scores)
    if rank() == 0:
        session.folder.checkpoints.save(session.state(), best=better)
    return metrics | {"steps": recipe.schedule.steps}


def evaluate_student(session: Session, part: str) -> Evaluation:
    """Score the averaged student on one part of the split, its BatchNorm statistics estimated anew."""
    options, pixels = session.recipe.evaluation, session.views.pixels
    with session.autocast():
        calibrate(session.step, session.recipe, session.data, pixels)
        predictor = session.step.predictor("student")
        return evaluate(predictor, session.data, pixels, part, batch=options.batch, limit=options.limit)


def calibrate(step: TeacherStudentStep, recipe: Recipe, data: RunData, pixels: Pixels) -> None:
    """Estimate BatchNorm statistics for averaged weights from training batches, the same on every rank.

    Batches must be composed as in training (views and classes mixed), since that is what the weights are used to:
    neighbouring store rows would often share a class, and unaugmented ones alone cost points of accuracy.
    """
    views = step.views_needed - {View.UNLABELED_WEAK}
    loader, maker = build_loader(recipe, data, views), ViewMaker(pixels)

    def mixed() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(recipe.evaluation.batchnorm_batches):
            batch = maker(loader.load(number))
            metadata = torch.cat([batch.metadata[view.stream] for view in batch.images])
            yield torch.cat(list(batch.images.values())), metadata

    step.reestimate_batchnorm(mixed)
