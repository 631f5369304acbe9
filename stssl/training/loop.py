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
from stssl.training.state import TrainState

Report = Callable[[dict[str, Any]], None]


def train(train_state: TrainState, report: Report) -> dict[str, Any]:
    """Train from where the session is to the end of its recipe, or until patience ends it.

    Args:
        train_state: One rank's parts; ranks call this together.
        report: Gets each validation's metrics, on every rank.

    Returns:
        How it ended: steps taken, best score and its step.

    Raises:
        RunError: Too many steps were not finite.
        StoppedError: The process was asked to end; a checkpoint of this moment is on disk.
    """
    schedule, progress = train_state.recipe.schedule, train_state.progress
    meter = Meter(train_state)
    # A run may have been killed when its patience had ended and before that was written down.
    validated = progress.step % schedule.evaluate_every == 0
    stop_at = progress.step if validated and progress.exhausted(schedule.patience) else schedule.steps
    with Stop().listening(world_size() == 1) as stop:
        for raw in meter.waiting(train_state.task.loader.batches(progress.step, stop_at)):
            meter.add(*train_step(train_state, raw))
            progress.step += 1
            if progress.step % train_state.recipe.logging.every == 0:
                meter.write()
            if progress.step % schedule.evaluate_every == 0 or progress.step == schedule.steps:
                report(validate_and_save(train_state))
                if progress.exhausted(schedule.patience):
                    break
                meter.restart()
            if stop.asked and progress.step < schedule.steps:
                leave(train_state, stop)
    train_state.folder.checkpoints.wait()
    train_state.journal.close()
    return {"steps": progress.step, "best": progress.best, "best_step": progress.best_step}


def train_step(train_state: TrainState, raw: Any) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step on this rank's rows of a global batch.

    Returns:
        What to log, still on the device, and whether the step was left out because its gradients are not finite.
    """
    recipe, step = train_state.recipe, train_state.progress.step
    torch.manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + rank())
    for group in train_state.optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.schedule, recipe.optimizer.lr)
    train_state.optimizer.zero_grad(set_to_none=True)
    train_state.statistics.save()
    logs = backward(train_state, raw)
    norms = clip_gradients(train_state.task.step.networks.items(), recipe.optimizer.clip)
    bad = train_state.guard.note(step, norms, logs)
    train_state.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # fused optimizers skip such a step
    train_state.optimizer.step()
    train_state.statistics.restore(bad)
    train_state.task.step.after_optimizer(bad)
    return logs | {f"gradient_norm_{name}": norm for name, norm in norms.items()}, bad


def backward(train_state: TrainState, raw: Any) -> dict[str, Tensor]:
    """Gradients of the global batch's loss, in micro-batches where the recipe asks for them."""
    batch = train_state.task.batch(raw)
    with train_state.autocast():
        micro_batches = train_state.task.micro_batches(batch, train_state.next_step)
    total: dict[str, Tensor] = {}
    for number, micro_batch in enumerate(micro_batches, 1):
        with train_state.synchronized(last=number == len(micro_batches)):
            with train_state.autocast():
                output = train_state.model(*micro_batch)
            output.loss.backward()
        total = {name: total.get(name, 0) + value for name, value in output.logs.items()}
    return total


def validate_and_save(train_state: TrainState) -> dict[str, Any]:
    """Score on validation, write a checkpoint, and remember the best."""
    progress = train_state.progress
    train_state.tell_of_bad_steps()
    with train_state.autocast():
        scores, score = train_state.task.validate(Progress(progress.step - 1, train_state.recipe.schedule.steps))
    better = progress.better(score)
    train_state.journal.append("validation", progress.step, scores)
    if rank() == 0:
        train_state.folder.sync()
        train_state.folder.checkpoints.save(train_state.checkpoint_state(), best=better)
    told = {"step": progress.step, **scores, "score": score, "best": progress.best}
    return told | {"steps": train_state.recipe.schedule.steps}


def leave(train_state: TrainState, stop: Stop) -> None:
    """Write a checkpoint of this moment and end."""
    stop.leaving = True
    train_state.tell_of_bad_steps()
    train_state.folder.sync()
    train_state.folder.checkpoints.save(train_state.checkpoint_state(), best=False)
    train_state.folder.checkpoints.wait()
    by = stop.by or signal.SIGTERM
    raise StoppedError(
        f"asked to end ({by.name}) after step {train_state.progress.step}; the same command goes on from there "
        f"({train_state.folder.path})",
        exit_code=128 + by,
    )
