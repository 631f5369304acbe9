"""What a run writes down while it trains."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from stssl.batch import RawBatch
from stssl.distributed import sum_over_ranks, world_size
from stssl.errors import RunError
from stssl.train.session import Session


class Meter:
    """Means of what steps log, with throughput and time spent waiting for data; reads the device only to write."""

    def __init__(self, session: Session) -> None:
        """Start counting."""
        self.session = session
        self.restart()

    def restart(self) -> None:
        """Forget, and count time from now."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.waited, self.since = 0, 0.0, time.perf_counter()

    def waiting(self, stream: Iterator[RawBatch]) -> Iterator[RawBatch]:
        """The same batches, the time until each comes counted."""
        while True:
            start = time.perf_counter()
            raw = next(stream, None)
            self.waited += time.perf_counter() - start
            if raw is None:
                return
            yield raw

    def add(self, logs: dict[str, Tensor]) -> None:
        """Count one step."""
        self.steps += 1
        for name, value in logs.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def write(self) -> None:
        """Append a row to the run's metrics: means over steps, summed or averaged over ranks as logged.

        Raises:
            RunError: The loss is not finite.
        """
        names = sorted(self.sums)
        table = torch.stack([self.sums[name].float() for name in names])
        means = dict(zip(names, (sum_over_ranks(table) / self.steps / world_size()).tolist(), strict=True))
        if means.get("pseudo_claimed"):
            means["pseudo_precision"] = means["pseudo_right"] / means["pseudo_claimed"]
            means["pseudo_recall"] = means["pseudo_right"] / max(means["pseudo_actual"], 1e-12)
        elapsed = time.perf_counter() - self.since
        images = self.steps * sum(source.sampler.batch for source in self.session.loader.sources.values())
        recipe, step = self.session.recipe, self.session.position.step
        row = means | {"images_per_s": images / elapsed, "seconds_per_step": elapsed / self.steps}
        row["data_wait"] = self.waited / elapsed
        row["learning_rate"] = self.session.optimizer.param_groups[0]["lr"]
        self.session.journal.append("train", step, row)
        self.restart()
        if not torch.isfinite(torch.tensor(means["loss"])):
            losses = ", ".join(f"{name} {value:g}" for name, value in means.items() if "loss" in name)
            raise RunError(
                f"the loss is not finite within the {recipe.logging.every} steps before step {step} ({losses}). "
                "Lower optimizer.lr, or set optimizer.clip=1.0."
            )
