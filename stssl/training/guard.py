"""Steps whose gradients are not finite: left out, written down, and too many of them an end to the run."""

from typing import Any

import torch
from torch import Tensor

from stssl.base.errors import RunError

FILE = "nonfinite.jsonl"


class Guard:
    """Watches gradient norms without waiting for the device; tells what happened when a row of metrics is due."""

    def __init__(self, allowed: int) -> None:
        """Let `allowed` steps be left out before the run ends."""
        self.allowed = allowed
        self.seen: list[tuple[int, Tensor, dict[str, Tensor]]] = []

    def note(self, step: int, norms: dict[str, Tensor], logs: dict[str, Tensor]) -> Tensor:
        """Return a scalar on the device: 1 if this step's gradients are not finite; all ranks agree on it.

        Args:
            step: Number of the step.
            norms: Gradient norm of each network.
            logs: Losses of the step.
        """
        bad = ~torch.isfinite(torch.stack(list(norms.values()))).all()
        self.seen.append((step, bad, logs))
        return bad

    def findings(self) -> list[dict[str, Any]]:
        """Since the last call, the bad steps: number, and the losses of this rank."""
        flags = torch.stack([bad for _, bad, _ in self.seen]).tolist() if self.seen else []
        found = [
            {"step": step, "losses": {name: float(value) for name, value in logs.items()}}
            for (step, _, logs), bad in zip(self.seen, flags, strict=True)
            if bad
        ]
        self.seen.clear()
        return found

    def stop_if_too_many(self, left_out: int, where: str, last: dict[str, Any]) -> None:
        """End the run once more of its steps were left out than allowed.

        Args:
            left_out: Steps left out so far.
            where: File that lists them.
            last: The newest of them.

        Raises:
            RunError: Says the step, its losses, and what to try.
        """
        if left_out > self.allowed:
            shown = {name: value for name, value in last["losses"].items() if not name.startswith("pseudo")}
            losses = ", ".join(f"{name} {value:g}" for name, value in shown.items())
            raise RunError(
                f"gradients were not finite in {left_out} steps, at last in step {last['step']} ({losses}); "
                f"{where} has their patches. Lower optimizer.lr, set optimizer.clip=1.0, or use compute.precision=fp32."
            )
