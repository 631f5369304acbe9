"""Train the networks of a run, on one rank (process) or many, and measure the steps.

`train_to_end` is the loop. `train_step` takes one optimizer step. `validate_and_save` scores the networks and writes a
checkpoint; `save` only writes one. `Meter` collects the values that steps log. `Guard` collects the steps with
gradients that are not finite.
"""

import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from stssl.base.batch import Progress
from stssl.base.distributed import rank, sum_over_ranks, world_size
from stssl.base.errors import RunError, StoppedError
from stssl.training.notices import Notices, Outside
from stssl.training.optim import clip_gradients, set_learning_rates
from stssl.training.run_files import NONFINITE_FILE, RunEnd
from stssl.training.runtime import StopRequest, begin_graph_step, peak_memory
from stssl.training.state import TrainState

Logs = dict[str, Tensor]
"""Scalars to log of one step, by name. They carry no gradients, and are still on the device."""
Report = Callable[[dict[str, float | None]], None]
"""Type of a function that is called with the metrics of each validation."""


class StepResult(NamedTuple):
    """Describe the result of one training step: values to log, and a flag. All are tensors on the networks' device.

    Attributes:
        logs: Losses and other scalars of the step.
        norms: Gradient norm of each network before clipping, by the network's name.
        bad: Boolean scalar: True if gradients were not finite. In that case, the step changed no weight.
    """

    logs: Logs
    norms: Logs
    bad: Tensor


class BadStep(TypedDict):
    """Describe a step left out because gradients were not finite: its number, and this rank's losses by name."""

    step: int
    losses: dict[str, float]


def train_to_end(train_state: TrainState, report: Report, outside: Outside | None = None) -> RunEnd:
    """Train from the present step to the recipe's last step, or until the score stops improving (`patience`).

    Args:
        train_state: State of this rank (training process). All ranks call this function together.
        report: Called with each validation's metrics, on every rank.
        outside: Receiver of requests to save or to end the run from other processes; None receives only signals to this
            process.

    Returns:
        Number of steps taken, best score, and step of the best score.

    Raises:
        RunError: Gradients were not finite in more steps than the recipe allows.
        StoppedError: A signal to a rank asked the run to end before its last step. The checkpoint is already written.
    """
    schedule, progress = train_state.recipe.schedule, train_state.progress
    meter = Meter(train_state)
    # Take no step if the score had already stopped improving: the run may have been killed just before it wrote
    # `done.json`.
    validated = progress.step % schedule.evaluate_every == 0
    stop_at = progress.step if validated and progress.exhausted(schedule.patience) else schedule.steps
    notices = Notices(StopRequest(), outside or Outside(), train_state.recipe.launch.collective_timeout_s)
    with notices.listening():
        for raw in meter.timed(train_state.task.loader.batches(progress.step, stop_at)):
            meter.add(train_step(train_state, raw))
            progress.step += 1
            if progress.step % train_state.recipe.logging.every == 0:
                meter.write()
            notice = notices.after_step()
            if progress.step % schedule.evaluate_every == 0 or progress.step == schedule.steps:
                meter.write_bad_steps()
                report(validate_and_save(train_state))
                if progress.exhausted(schedule.patience):
                    break
                meter.restart()
            elif notice.save or schedule.saved_after(progress.step):
                meter.write_bad_steps()
                save(train_state)
            if notice.stop is not None and progress.step < schedule.steps:
                meter.write_bad_steps()
                save_and_stop(train_state, notices, notice.stop)
    notices.close()
    train_state.folder.checkpoints.wait()
    train_state.journal.close()
    return {"steps": progress.step, "best": progress.best, "best_step": progress.best_step}


def train_step(train_state: TrainState, raw: object) -> StepResult:
    """Take one optimizer step on this rank's patches of a global batch.

    Args:
        train_state: This rank's state. `progress.step` is the step to take; this function does not change it.
        raw: The patches, as the task's loader delivers them.

    Returns:
        Values to log, and whether the step was bad: if gradients are not finite, the networks stay as they were.
    """
    recipe, step = train_state.recipe, train_state.progress.step
    # Set the seed in each step: a resumed run must get the same dropout as a run that was never interrupted.
    torch.manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + rank())
    set_learning_rates(train_state.optimizer, step, recipe.schedule, recipe.optimizer.lr)
    train_state.optimizer.zero_grad(set_to_none=True)
    if recipe.compute.graphs:
        begin_graph_step()
    train_state.statistics.save()
    logs = backward(train_state, raw)
    norms = clip_gradients(train_state.task.step.networks.items(), recipe.optimizer.clip)
    bad = not_finite(norms)
    # Set this flag, because a fused optimizer reads it on the device and skips a bad step: the host need not wait.
    train_state.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # in torch, only GradScaler sets it
    train_state.optimizer.step()
    # Undo the forward pass's change of BatchNorm's running statistics: a bad step must not change the networks.
    train_state.statistics.restore(bad)
    train_state.task.step.after_optimizer(bad)
    return StepResult(logs, norms, bad)


def backward(train_state: TrainState, raw: object) -> Logs:
    """Compute the gradients of the loss for a batch, and store them in the networks' parameters.

    The batch goes through the networks in micro-batches if the recipe asks for them.

    Args:
        train_state: This rank's state.
        raw: This rank's patches of the batch, as the task's loader delivers them.

    Returns:
        Values to log: scalar tensors by name.
    """
    batch = train_state.task.batch(raw)
    with train_state.autocast():
        parts = train_state.task.micro_batches(batch, train_state.next_step)
    total: Logs = {}
    for number, part in enumerate(parts, 1):
        with train_state.synchronized(last=number == len(parts)):
            with train_state.autocast():
                output = train_state.model(*part)
            output.loss.backward()
        total = {name: total.get(name, 0) + value for name, value in output.logs.items()}
    return total


def not_finite(norms: dict[str, Tensor]) -> Tensor:
    """Return a boolean scalar tensor: True if a gradient norm in `norms` (by network) is NaN or infinite.

    It is the same on all ranks, because they have summed their gradients.
    """
    return ~torch.isfinite(torch.stack(list(norms.values()))).all()


def validate_and_save(train_state: TrainState) -> dict[str, float | None]:
    """Score the networks on the validation patches, and write a checkpoint.

    Write the checkpoint as `best`, too, if its score is the best so far. `train_state` is this rank's state, and
    records the best score. All ranks call this together.

    Returns:
        All scores by name, and four more values. `score` chooses the best checkpoint, and `best` is the best `score` so
        far. `step` is the number of steps taken, and `steps` the number of steps of the whole run.
    """
    progress, steps = train_state.progress, train_state.recipe.schedule.steps
    with train_state.autocast():
        scores, score = train_state.task.validate(Progress(progress.step - 1, steps))
    better = progress.better(score)
    train_state.journal.append("validation", progress.step, scores)
    save(train_state, best=better)
    return {"step": progress.step, **scores, "score": score, "best": progress.best, "steps": steps}


def save(train_state: TrainState, best: bool = False) -> None:
    """Let a thread write a checkpoint of the present step while training continues. All ranks call this together.

    Args:
        train_state: This rank's state.
        best: True to write it as `best`, too.
    """
    state = train_state.checkpoint_state()
    if rank() == 0:
        # Write metrics to disk before the checkpoint: a resumed run can drop later rows, but cannot restore lost ones.
        train_state.folder.sync()
        train_state.folder.checkpoints.save(state, best)


def save_and_stop(train_state: TrainState, notices: Notices, by: signal.Signals) -> None:
    """Write a checkpoint of the present step, wait until it is on disk, and end the run. All ranks call this together.

    Args:
        train_state: This rank's state.
        notices: Connection of the ranks, which wait for each other before they end.
        by: Signal that asked the run to end.

    Raises:
        StoppedError: Always. The message says after which step the run ended. The exit code is 128 plus the number of
            the signal.
    """
    notices.stop.leaving = True
    save(train_state)
    train_state.folder.checkpoints.wait()
    # Wait for all ranks: if one ended before rank 0 has written the checkpoint, Ray would end rank 0, too.
    notices.meet()
    raise StoppedError(
        f"asked to end ({by.name}) after step {train_state.progress.step}; the same command continues from there "
        f"({train_state.folder.place})",
        exit_code=128 + by,
    )


class Meter:
    """Average the logged values of many steps, and measure throughput and the time spent waiting for data.

    Values stay on the device until a row of metrics is written, because the host must wait at each transfer.
    """

    def __init__(self, train_state: TrainState) -> None:
        """Begin to collect and to measure with the next step."""
        self.train_state = train_state
        self.guard = Guard(train_state.recipe.compute.nonfinite_steps)
        self.restart()

    def restart(self) -> None:
        """Drop the collected values, and measure time from now on. Keep the list of steps whose gradients were bad."""
        self.sums: Logs = {}
        self.before: dict[str, Tensor | int] = {}
        self.steps, self.rows, self.waited, self.since = 0, 0, 0.0, time.perf_counter()

    def timed(self, stream: Iterator[object]) -> Iterator[object]:
        """Yield the batches of `stream` (the task's loader), and add up the time that the loop waits for them."""
        while True:
            start = time.perf_counter()
            raw = next(stream, None)
            self.waited += time.perf_counter() - start
            if raw is None:
                return
            yield raw

    def add(self, result: StepResult) -> None:
        """Add the values of a training step, `result`, to the running sums.

        A step that was left out because of bad gradients adds nothing. Call this before the step counts as taken.
        """
        self.guard.note(self.train_state.progress.step, result)
        values = result.logs | {f"gradient_norm_{name}": norm for name, norm in result.norms.items()}
        values["counted"] = torch.ones((), device=result.bad.device)
        self.steps += 1
        self.rows += self.train_state.task.loader.rows_at(self.train_state.progress.step)
        counted = self.sums.get("counted", 0)
        for name, value in values.items():
            kept = torch.where(result.bad, 0.0, value)
            # Remember how many steps came before the first one that logged this value. Its mean must not count them:
            # for example, losses on unlabeled patches begin only after a supervised start.
            self.before.setdefault(name, counted)
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept

    def write(self) -> None:
        """Write one row to the run's metrics: means over the collected steps and all ranks. Then drop these steps.

        Write no row if all collected steps were left out.

        Raises:
            RunError: Gradients were not finite in more steps than the recipe allows.
        """
        self.write_bad_steps()
        counted = self.sums.pop("counted", None)
        names = sorted(self.sums)
        if counted is None or counted == 0:
            return
        steps = [torch.as_tensor(counted - self.before[name]).clamp_min(1) for name in names]
        table = torch.stack([self.sums[name].float() / own for name, own in zip(names, steps, strict=True)])
        means = dict(zip(names, (sum_over_ranks(table) / world_size()).tolist(), strict=True))
        # Compute each ratio from the means: a mean of the steps' ratios would give steps with few pseudo-labels too
        # much weight.
        for name, among in (("pseudo_precision", "pseudo_claimed"), ("pseudo_recall", "pseudo_actual")):
            if means.get(among):
                means[name] = means["pseudo_right"] / means[among]
        elapsed = time.perf_counter() - self.since
        row = means | {"images_per_s": self.rows / elapsed, "seconds_per_step": elapsed / self.steps}
        row["data_wait"] = self.waited / elapsed
        row["learning_rate"] = self.train_state.optimizer.param_groups[0]["lr"]
        row |= peak_memory(self.train_state.task.device)
        self.train_state.journal.append("train", self.train_state.progress.step, row)
        self.restart()

    def write_bad_steps(self) -> None:
        """Write the steps that were left out since the last call, with their patches, to the file `nonfinite.jsonl`.

        Raises:
            RunError: Gradients were not finite in more steps than the recipe allows.
        """
        state, found = self.train_state, self.guard.bad_steps()
        state.progress.left_out += len(found)
        if state.journal.writes:
            for bad in found:
                rows = state.task.loader.global_rows(bad["step"])
                state.journal.note(NONFINITE_FILE, {**bad, "rows": rows})
        if found:
            where = f"{state.folder.place}/{NONFINITE_FILE}"
            self.guard.stop_if_too_many(state.progress.left_out, where, found[-1])


class Guard:
    """Collect the steps with gradients that are not finite, and end the run after too many of them."""

    def __init__(self, allowed: int) -> None:
        """Create a guard that ends the run if more than `allowed` steps are left out."""
        self.allowed = allowed
        self.noted: list[tuple[int, StepResult]] = []

    def note(self, step: int, result: StepResult) -> None:
        """Store the result of step `step`, for `bad_steps` to read later.

        The result stays on the device, because the host would have to wait for it.
        """
        self.noted.append((step, result))

    def bad_steps(self) -> list[BadStep]:
        """Return the number and the losses of each step, stored since the last call, whose gradients were not finite.

        Read the flags of all these steps from the device in one transfer.
        """
        flags = torch.stack([result.bad for _, result in self.noted]).tolist() if self.noted else []
        found: list[BadStep] = [
            {"step": step, "losses": {name: float(value) for name, value in result.logs.items()}}
            for (step, result), bad in zip(self.noted, flags, strict=True)
            if bad
        ]
        self.noted.clear()
        return found

    def stop_if_too_many(self, left_out: int, where: str, last: BadStep) -> None:
        """Raise an error, which ends the run, if the run left out more steps than allowed.

        Args:
            left_out: Number of steps left out since the run's first start.
            where: Path of the file that lists these steps, for the message.
            last: The newest of these steps.

        Raises:
            RunError: The run left out too many steps. The message names the last one, its losses, and what to set.
        """
        if left_out > self.allowed:
            shown = {name: value for name, value in last["losses"].items() if not name.startswith("pseudo")}
            losses = ", ".join(f"{name} {value:g}" for name, value in shown.items())
            raise RunError(
                f"gradients were not finite in {left_out} steps, at last in step {last['step']} ({losses}); "
                f"{where} has their patches. Lower optimizer.lr, set optimizer.clip=1.0, or use compute.precision=fp32."
            )
