"""A run as users see it: its recipe, metrics, scores, checkpoints and networks."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stssl.base.errors import RunError
from stssl.base.whole_files import is_there
from stssl.data.splits import PARTS
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.training.run_files import ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow
    from torch import nn

CHECKPOINTS = ("last", "previous", "best")
RunScores = dict[str, dict[str, float]]
"""RunScores by network and name: `scores["student"]["accuracy"]`."""


class Run:
    """A training or pretraining run that was started.

    Attributes:
        path: Folder of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Use a run's folder; `Run.open` takes a path."""
        self.path = folder.path
        self._folder = folder

    def __repr__(self) -> str:
        """Say what the run is and how far it is."""
        state = "finished" if self.finished else "not finished"
        return f"<stssl.Run {self.name}: {self.recipe.what}, {state}, in {self.path}>"

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open a run by its folder, such as `runs/eurosat-fixmatch_cpu-s0`.

        Raises:
            RunError: The folder is not a run's.
        """
        return cls(RunFolder.existing(folder))

    @cached_property
    def recipe(self) -> RunRecipe:
        """The recipe that the run was started with, every default written out."""
        return self._folder.recipe()

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.recipe.name

    @property
    def finished(self) -> bool:
        """True if the run has come to its end."""
        return self._folder.finished() is not None

    @property
    def best_score(self) -> float | None:
        """Best validation score; None until the run is finished, or if no score was finite."""
        end = self._folder.finished()
        return None if end is None else end["best"]

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Checkpoint files that exist, by name: `last`, `previous`, `best`."""
        found = {name: self._folder.checkpoints.path(name) for name in CHECKPOINTS}
        return {name: path for name, path in found.items() if path.exists()}

    def metrics(self) -> "pyarrow.Table":
        """Read the metrics that the run has written so far.

        Returns:
            One row for each line of `metrics.jsonl`, in order. The column `kind` is `train` or `validation`; values
            that a row lacks are null.

        Raises:
            RunError: The file cannot be read.
        """
        import pyarrow

        rows = self._folder.read_rows().rows
        names = dict.fromkeys(name for row in rows for name in row)
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})

    def scores(self, part: str = "test") -> RunScores:
        """Read the scores of a part that `stssl.evaluate` wrote.

        Args:
            part: `train`, `validation` or `test`.

        Raises:
            RunError: The part was not evaluated yet, or the file is damaged.
        """
        path = self.path / "evaluation" / f"{part}.json"
        if part not in PARTS or not is_there(path):
            done = [name for name in PARTS if is_there(self.path / "evaluation" / f"{name}.json")]
            raise RunError(
                f"{self.path} has no scores of '{part}' (evaluated so far: {', '.join(done) or 'nothing'}). "
                f"Run stssl.evaluate(run, part), or `stssl evaluate {self.path} --split PART`, with a part of "
                f"{', '.join(PARTS)}."
            )
        scored = read_run_file(ScoresFile, path, "Evaluate the part again.")[0]
        return {
            name: {score: float("nan") if value is None else value for score, value in network.scores.items()}
            for name, network in scored.networks.items()
        }

    def networks(
        self, checkpoint: str = "best", *, device: str = "cpu", store: str | None = None
    ) -> "dict[str, nn.Module]":
        """Load the run's networks with averaged weights, in evaluation mode.

        Args:
            checkpoint: `best` or `last`.
            device: `cpu`, `cuda` or `auto`.
            store: Where the run's store lies now, if not where it was.

        Returns:
            `student`, and `teacher` if the run has one. Called with scaled images [n, bands, H, W] and
            metadata [n, 4], they return a prediction with `logits` [n, classes].

        Raises:
            RunError: It is a pretraining run, there is no such checkpoint, or it is damaged.
        """
        from stssl.training.trained_run import load_run

        self._folder.recipe_as(Recipe)
        step = load_run(self._folder, checkpoint, device, store).step
        names = ("student", "teacher")[: len(step.networks)]
        return {name: step.averaged_network(name).eval() for name in names}
