"""The loop that every run goes through, on one rank or many, with or without Ray."""

import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stssl.base.batch import Progress
from stssl.base.distributed import rank, world_size
from stssl.base.errors import StoppedError
from stssl.training.meter import Meter
from stssl.training.optim import clip_gradients, learning_rate
from stssl.training.runtime import Stop
from stssl.training.state import Session

Report = Callable[[dict[str, Any]], None]


def train(session: Session, report: Report) -> dict[str, Any]:
    """Train from where the session is to the end of its recipe, or until patience ends it.

    Args:
        session: One rank's parts; ranks call this together.
        report: Gets each validation's metrics, on every rank.

    Returns:
        How it ended: steps taken, best score and its step.

    Raises:
        RunError: Too many steps were not finite.
        StoppedError: The process was asked to end; a checkpoint of this moment is on disk.
    """
    schedule, position = session.recipe.schedule, session.position
    meter = Meter(session)
    # A run may have been killed when its patience had ended and before that was written down.
    validated = position.step % schedule.evaluate_every == 0
    stop_at = position.step if validated and position.exhausted(schedule.patience) else schedule.steps
    with Stop().listening(world_size() == 1) as stop:
        for raw in meter.waiting(session.stage.loader.batches(position.step, stop_at)):
            meter.add(*update(session, raw))
            position.step += 1
            if position.step % session.recipe.logging.every == 0:
                meter.write()
            if position.step % schedule.evaluate_every == 0 or position.step == schedule.steps:
                report(validate(session))
                if position.exhausted(schedule.patience):
                    break
                meter.restart()
            if stop.asked and position.step < schedule.steps:
                leave(session, stop)
    session.folder.checkpoints.wait()
    session.journal.close()
    return {"steps": position.step, "best": position.best, "best_step": position.best_step}


def update(session: Session, raw: Any) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step on this rank's rows of a global batch.

    Returns:
        What to log, still on the device, and whether the step was left out because its gradients are not finite.
    """
    recipe, step = session.recipe, session.position.step
    torch.manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + rank())
    for group in session.optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.schedule, recipe.optimizer.lr)
    session.optimizer.zero_grad(set_to_none=True)
    session.statistics.save()
    logs = backward(session, raw)
    norms = clip_gradients(session.stage.step.networks.items(), recipe.optimizer.clip)
    bad = session.guard.note(step, norms, logs)
    session.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # fused optimisers skip such a step
    session.optimizer.step()
    session.statistics.restore(bad)
    session.stage.step.after_optimizer(bad)
    return logs | {f"gradient_norm_{name}": norm for name, norm in norms.items()}, bad


def backward(session: Session, raw: Any) -> dict[str, Tensor]:
    """Gradients of the global batch's loss, in micro-batches where the recipe asks for them."""
    batch = session.stage.batch(raw)
    with session.autocast():
        blocks = session.stage.blocks(batch, session.progress)
    total: dict[str, Tensor] = {}
    for number, block in enumerate(blocks, 1):
        with session.synchronized(last=number == len(blocks)):
            with session.autocast():
                output = session.model(*block)
            output.loss.backward()
        total = {name: total.get(name, 0) + value for name, value in output.logs.items()}
    return total


def validate(session: Session) -> dict[str, Any]:
    """Score on validation, write a checkpoint, and remember the best."""
    position = session.position
    session.tell_of_bad_steps()
    with session.autocast():
        scores, score = session.stage.validate(Progress(position.step - 1, session.recipe.schedule.steps))
    better = position.better(score)
    session.journal.append("validation", position.step, scores)
    if rank() == 0:
        session.folder.sync()
        session.folder.checkpoints.save(session.state(), best=better)
    told = {"step": position.step, **scores, "score": score, "best": position.best}
    return told | {"steps": session.recipe.schedule.steps}


def leave(session: Session, stop: Stop) -> None:
    """Write a checkpoint of this moment and end."""
    stop.leaving = True
    session.tell_of_bad_steps()
    session.folder.sync()
    session.folder.checkpoints.save(session.state(), best=False)
    session.folder.checkpoints.wait()
    by = stop.by or signal.SIGTERM
    raise StoppedError(
        f"asked to end ({by.name}) after step {session.position.step}; the same command goes on from there "
        f"({session.folder.path})",
        exit_code=128 + by,
    )
