"""Collect and write the metrics of training steps."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stssl.base.distributed import sum_over_ranks, world_size
from stssl.training.runtime import memory
from stssl.training.state import TrainState


class Meter:
    """Means of what steps log, with throughput and time spent waiting for data; reads the device only to write."""

    def __init__(self, train_state: TrainState) -> None:
        """Start counting."""
        self.train_state = train_state
        self.restart()

    def restart(self) -> None:
        """Forget, and count time from now."""
        self.sums: dict[str, Tensor] = {}
        self.before: dict[str, Tensor | int] = {}
        self.steps, self.rows, self.waited, self.since = 0, 0, 0.0, time.perf_counter()

    def waiting(self, stream: Iterator[Any]) -> Iterator[Any]:
        """The same batches, the time until each comes counted."""
        while True:
            start = time.perf_counter()
            raw = next(stream, None)
            self.waited += time.perf_counter() - start
            if raw is None:
                return
            yield raw

    def add(self, logs: dict[str, Tensor], bad: Tensor) -> None:
        """Count one step; what a step that was left out says enters no mean."""
        self.steps += 1
        self.rows += self.train_state.task.loader.rows_at(self.train_state.progress.step)
        counted = self.sums.get("counted", 0)
        for name, value in (logs | {"counted": torch.ones((), device=bad.device)}).items():
            kept = torch.where(bad, 0.0, value)
            self.before.setdefault(name, counted)  # some losses begin amid the run
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept

    def write(self) -> None:
        """Append a row to the run's metrics: means over steps, summed or averaged over ranks as logged.

        Raises:
            RunError: Too many steps were left out because their gradients were not finite.
        """
        self.train_state.tell_of_bad_steps()
        counted = self.sums.pop("counted", None)
        names = sorted(self.sums)
        if counted is None or counted == 0:
            return
        steps = [torch.as_tensor(counted - self.before[name]).clamp_min(1) for name in names]
        table = torch.stack([self.sums[name].float() / own for name, own in zip(names, steps, strict=True)])
        means = dict(zip(names, (sum_over_ranks(table) / world_size()).tolist(), strict=True))
        for name, among in (("pseudo_precision", "pseudo_claimed"), ("pseudo_recall", "pseudo_actual")):
            if means.get(among):
                means[name] = means["pseudo_right"] / means[among]
        elapsed = time.perf_counter() - self.since
        row = means | {"images_per_s": self.rows / elapsed, "seconds_per_step": elapsed / self.steps}
        row["data_wait"] = self.waited / elapsed
        row["learning_rate"] = self.train_state.optimizer.param_groups[0]["lr"]
        row |= memory(self.train_state.task.device)
        self.train_state.journal.append("train", self.train_state.progress.step, row)
        self.restart()
