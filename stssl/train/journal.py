"""Where a run's metrics go: `metrics.jsonl`, and TensorBoard where the recipe wants it."""

from typing import Any

from stssl.train.folder import RunFolder


class Journal:
    """Writes rows of metrics; only rank 0's does anything."""

    def __init__(self, folder: RunFolder, *, writes: bool, tensorboard: bool, step: int) -> None:
        """Go on after `step`; rows that an interrupted run wrote beyond it are dropped."""
        self.folder, self.writes = folder, writes
        self._board: Any = None
        if writes:
            folder.forget_after(step)
        if writes and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add a row; `kind` is `train` or `validation`."""
        if not self.writes:
            return
        self.folder.append({"step": step, "kind": kind, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()
