"""Write a run's metrics: to `metrics.jsonl`, and to TensorBoard and MLflow if the recipe says so."""

import contextlib
import threading
from collections.abc import Iterator
from math import isfinite
from typing import Any, Protocol

from stssl.base.config import flatten
from stssl.base.errors import ConfigError, RunError
from stssl.base.whole_files import cannot_write
from stssl.recipes.recipe import RunRecipe
from stssl.training.run_folder import RunFolder


class Sink(Protocol):
    """Takes rows of metrics, besides the run's own file."""

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Take a row of metrics.

        Args:
            kind: `train` or `validation`.
            step: Steps taken.
            values: Metric names and values.
        """
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        """Go on after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder.path / "tensorboard"
        _keep_quiet()
        with self._written():
            self.board: Any = SummaryWriter(str(self.path), purge_step=step + 1)

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One scalar each."""
        with self._written():
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
            self.board.flush()

    def close(self) -> None:
        """Close the event file."""
        with self._written():
            self.board.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"logging.tensorboard: {cannot_write(self.path, error)}") from None


def _keep_quiet() -> None:
    """Keep TensorBoard's writing thread from printing a traceback of the error that `flush` raises anyway."""
    before = threading.excepthook
    if getattr(before, "quiet", False):
        return

    def hook(about: threading.ExceptHookArgs) -> None:
        if type(about.thread).__name__ != "_AsyncWriterThread" or not issubclass(about.exc_type, OSError):
            before(about)

    hook.quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook


class MlFlow:
    """A run of the same name on a tracking server or in a folder; a resumed run goes on with it."""

    def __init__(self, folder: RunFolder, recipe: RunRecipe, uri: str) -> None:
        """Find the run by the recipe's hash, or make it.

        Raises:
            ConfigError: MLflow is not installed.
        """
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ConfigError("logging.mlflow needs MLflow: pip install 'stssl[mlflow]'") from None
        self.client: Any = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name("stssl")
        experiment = known.experiment_id if known else self.client.create_experiment("stssl")
        mark = f"tags.recipe = '{recipe.hash()}' and tags.folder = '{folder.path}'"
        found = self.client.search_runs([experiment], mark, max_results=1)
        if found:
            self.run: str = found[0].info.run_id
            return
        tags = {"recipe": recipe.hash(), "folder": str(folder.path)}
        self.run = self.client.create_run(experiment, tags=tags, run_name=recipe.name).info.run_id
        for key, value in flatten(recipe.tree()):
            self.client.log_param(self.run, key, str(value)[:500])

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One metric each."""
        for name, value in values.items():
            self.client.log_metric(self.run, f"{kind}.{name}", value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run)


class Journal:
    """Writes rows of metrics; only rank 0's does anything."""

    def __init__(self, folder: RunFolder, recipe: RunRecipe, *, writes: bool, step: int) -> None:
        """Go on after `step`; rows that an interrupted run wrote beyond it are dropped."""
        self.folder, self.writes = folder, writes
        self.sinks: list[Sink] = []
        if not writes:
            return
        folder.forget_after(step)
        if recipe.logging.tensorboard:
            self.sinks.append(TensorBoard(folder, step))
        if recipe.logging.mlflow:
            self.sinks.append(MlFlow(folder, recipe, recipe.logging.mlflow))

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add a row of metrics.

        Args:
            kind: `train` or `validation`.
            step: Steps taken.
            values: Metric names and values.
        """
        if not self.writes:
            return
        self.folder.append({"step": step, "kind": kind, **values})
        for sink in self.sinks:
            sink.append(kind, step, {name: value for name, value in values.items() if isfinite(value)})

    def note(self, file: str, row: dict[str, Any]) -> None:
        """Add a row to another file of the run."""
        if self.writes:
            self.folder.append(row, file)

    def close(self) -> None:
        """The run is over."""
        for sink in self.sinks:
            sink.close()
