"""Write a run's metrics to `metrics.jsonl`, to Ray and, if the recipe says so, to TensorBoard and MLflow."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Protocol

from stssl.base.config import flatten
from stssl.base.errors import ConfigError, RunError
from stssl.base.whole_files import cannot_write
from stssl.recipes.recipe import RunRecipe
from stssl.training.ray_metrics import RayGauges, on_ray
from stssl.training.run_folder import RunFolder


class Sink(Protocol):
    """Define the interface of outputs that get a run's metrics besides `metrics.jsonl`: TensorBoard, MLflow and Ray."""

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write a row of metrics.

        Args:
            kind: `train` or `validation`.
            step: Number of steps taken.
            values: Finite values by the metric's name.
        """
        ...

    def close(self) -> None:
        """Write all metrics that are not written yet, at the end of the run."""
        ...


class TensorBoard:
    """Write event files for TensorBoard into the run's folder."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        """Open an event file in the run's `folder`, for a run that continues after `step` steps.

        TensorBoard then hides the events that the interrupted run wrote after this step.

        Raises:
            RunError: The event file cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder.path / "tensorboard"
        _keep_quiet()
        with self._written():
            self.board = SummaryWriter(str(self.path), purge_step=step + 1)

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write each value as one scalar `<kind>/<name>`.

        Args:
            kind: `train` or `validation`.
            step: Number of steps taken.
            values: Finite values by the metric's name.

        Raises:
            RunError: The event file cannot be written.
        """
        with self._written():
            for name, value in values.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
            self.board.flush()

    def close(self) -> None:
        """Write and close the event file.

        Raises:
            RunError: The event file cannot be written.
        """
        with self._written():
            self.board.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"logging.tensorboard: {cannot_write(self.path, error)}") from None


def _keep_quiet() -> None:
    """Hide tracebacks of TensorBoard's writing thread, because `flush` raises the same error in the calling thread."""
    before = threading.excepthook
    if getattr(before, "quiet", False):
        return

    def hook(about: threading.ExceptHookArgs) -> None:
        if type(about.thread).__name__ != "_AsyncWriterThread" or not issubclass(about.exc_type, OSError):
            before(about)

    hook.quiet = True  # type: ignore[attr-defined]  # later runs see this mark and do not wrap the hook again
    threading.excepthook = hook


class MlFlow:
    """Write metrics to MLflow, on a tracking server or in a folder. A resumed run continues its MLflow run."""

    def __init__(self, folder: RunFolder, recipe: RunRecipe, uri: str) -> None:
        """Find this run in MLflow by the recipe's hash and the run's folder, or create it in MLflow.

        Args:
            folder: Folder of the run.
            recipe: Recipe of the run; its keys become MLflow parameters.
            uri: URI of the tracking server or folder.

        Raises:
            ConfigError: MLflow is not installed.
        """
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ConfigError("logging.mlflow needs MLflow: pip install 'stssl[mlflow]'") from None
        self.client = MlflowClient(tracking_uri=uri)
        known = self.client.get_experiment_by_name("stssl")
        experiment = known.experiment_id if known else self.client.create_experiment("stssl")
        mark = f"tags.recipe = '{recipe.hash()}' and tags.folder = '{folder.place}'"
        found = self.client.search_runs([experiment], mark, max_results=1)
        if found:
            self.run: str = found[0].info.run_id
            return
        tags = {"recipe": recipe.hash(), "folder": folder.place}
        self.run = self.client.create_run(experiment, tags=tags, run_name=recipe.name).info.run_id
        for key, value in flatten(recipe.tree()):
            # Cut the text: older servers refuse values of more than 500 characters.
            self.client.log_param(self.run, key, str(value)[:500])

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log each value as one metric `<kind>.<name>`.

        Args:
            kind: `train` or `validation`.
            step: Number of steps taken.
            values: Finite values by the metric's name.
        """
        for name, value in values.items():
            self.client.log_metric(self.run, f"{kind}.{name}", value, step=step)

    def close(self) -> None:
        """Mark the MLflow run as finished."""
        self.client.set_terminated(self.run)


class Journal:
    """Write metrics to the run's file, TensorBoard, MLflow and Ray. Only rank 0 (the first training process) writes.

    Attributes:
        writes: True if this journal writes; False on other ranks, and before the run starts or resumes.
    """

    def __init__(self, folder: RunFolder, recipe: RunRecipe, *, writes: bool, step: int) -> None:
        """Open all outputs. Delete metrics of steps after `step`, because a resumed run takes these steps again.

        Args:
            folder: Folder of the run.
            recipe: Recipe of the run. Its section `logging` chooses TensorBoard and MLflow.
            writes: True to write; False makes a journal that does nothing.
            step: Number of steps that the run has taken so far.

        Raises:
            ConfigError: The recipe asks for MLflow, but MLflow is not installed.
            RunError: A file cannot be read or written.
        """
        self.folder, self.writes = folder, writes
        self.sinks: list[Sink] = []
        if not writes:
            return
        folder.drop_rows_after(step)
        if recipe.logging.tensorboard:
            self.sinks.append(TensorBoard(folder, step))
        if recipe.logging.mlflow:
            self.sinks.append(MlFlow(folder, recipe, recipe.logging.mlflow))
        if on_ray():
            self.sinks.append(RayGauges(recipe))

    def append(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write a row of metrics to the run's file, and its finite values to the other outputs.

        Args:
            kind: `train` or `validation`.
            step: Number of steps taken.
            values: Values by the metric's name. The run's file gets null for NaN and infinities.

        Raises:
            RunError: A file cannot be written.
        """
        if not self.writes:
            return
        self.folder.append({"step": step, "kind": kind, **values})
        for sink in self.sinks:
            sink.append(kind, step, {name: value for name, value in values.items() if isfinite(value)})

    def note(self, file: str, row: Mapping[str, object]) -> None:
        """Append `row`, values by key, to `file` in the run's folder, as one line of JSON. Only rank 0 writes it.

        Raises:
            RunError: The file cannot be written.
        """
        if self.writes:
            self.folder.append(row, file)

    def close(self) -> None:
        """Close all outputs at the end of the run."""
        for sink in self.sinks:
            sink.close()
