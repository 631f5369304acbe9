"""Define `Run`, which gives users the recipe, metrics, scores, checkpoints and networks of a training."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stssl.base.arrays import Ints
from stssl.base.errors import RunError
from stssl.base.whole_files import is_there
from stssl.data.splits import PARTS
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.training.run_files import ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor, nn

    from stssl.students.student import Student

CHECKPOINTS = ("last", "previous", "best")
RunScores = dict[str, dict[str, float]]
"""Scores by network and name, such as `scores["student"]["accuracy"]`."""


class Run:
    """Give access to the files and networks of a training or pretraining run that was started.

    Attributes:
        place: Path of the run's folder, or its URL in an object store.
        path: Folder with the run's files. For a URL, it is a local copy that is deleted when this process ends.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Make a run from its open folder. To open a run by its path, call `Run.open`.

        Args:
            folder: Object that reads the run's files.
        """
        self.place, self.path = folder.place, folder.path
        self._folder = folder

    def __repr__(self) -> str:
        """Return a text with the run's name and kind, its folder, and whether it is finished."""
        state = "finished" if self.finished else "not finished"
        return f"<stssl.Run {self.name}: {self.recipe.what}, {state}, in {self.place}>"

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Return the run in a folder, such as `runs/eurosat-fixmatch_cpu-s0`, or at a URL in an object store.

        Args:
            folder: Path or URL of the run's folder.

        Raises:
            DataError: The object store cannot be read.
            RunError: The folder has no run.
        """
        return cls(RunFolder.existing(folder))

    @cached_property
    def recipe(self) -> RunRecipe:
        """Return the recipe that the run was started with, including all defaults."""
        return self._folder.recipe()

    @property
    def name(self) -> str:
        """Return the name of the run, as in its recipe."""
        return self.recipe.name

    @property
    def finished(self) -> bool:
        """Return True if the training of this run has reached its end."""
        return self._folder.finished() is not None

    @property
    def best_score(self) -> float | None:
        """Return the best validation score, from 0 to 1; None if the run is not finished or has no score.

        It is the student's accuracy, or its mAP if patches have several labels. A pretraining run has none, since it
        does not use labels.
        """
        end = self._folder.finished()
        return None if end is None else end["best"]

    @property
    def checkpoints(self) -> dict[str, Path]:
        """Return the paths of the checkpoint files that exist, by name: `last`, `previous`, `best`.

        If the run lies in an object store, the files are downloaded first.
        """
        checkpoints = self._folder.checkpoints
        return {name: checkpoints.path(name) for name in CHECKPOINTS if checkpoints.has(name)}

    def metrics(self) -> "pyarrow.Table":
        """Read the metrics that the run has written so far.

        Returns:
            A table with one row for each line of `metrics.jsonl`, from first to last. Each row has `step` (number of
            steps taken, int64) and `kind` (`train` or `validation`). All other columns are numbers (double),
            null where a row lacks them. Rows of `train` are means over `logging.every` steps: losses, `images_per_s`,
            `seconds_per_step`, `memory_gb` (1e9 bytes) and more. Rows of `validation` have scores from 0 to 1. The page
            "Files of a run" lists all columns.

        Raises:
            RunError: The file cannot be read.
        """
        import pyarrow

        rows = self._folder.read_rows().rows
        names = dict.fromkeys(name for row in rows for name in row)
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})

    def scores(self, part: str = "test") -> RunScores:
        """Read the scores that `stssl.evaluate` wrote for a part of the split.

        Args:
            part: `train`, `validation` or `test`.

        Returns:
            Scores by network (`student`, `teacher`) and name, such as `scores["student"]["accuracy"]`. Scores are from
            0 to 1, except `loss`, in nats. NaN means that a score is not defined.

        Raises:
            RunError: The part was not evaluated yet, or the file is damaged.
        """
        path = self.path / "evaluation" / f"{part}.json"
        if part not in PARTS or not is_there(path):
            done = [name for name in PARTS if is_there(self.path / "evaluation" / f"{name}.json")]
            raise RunError(
                f"{self.place} has no scores of '{part}' (evaluated so far: {', '.join(done) or 'nothing'}). "
                f"Run stssl.evaluate(run, part), or `stssl evaluate {self.place} --split PART`, with a part of "
                f"{', '.join(PARTS)}."
            )
        scored = read_run_file(ScoresFile, path, "Evaluate the part again.")[0]
        return {
            name: {score: float("nan") if value is None else value for score, value in network.scores.items()}
            for name, network in scored.networks.items()
        }

    def groups(self, part: str = "test", metadata: str = "true") -> list[dict[str, object]]:
        """Read the scores of groups of patches (such as each country) that `stssl.evaluate(run, by=...)` wrote.

        Args:
            part: `train`, `validation` or `test`.
            metadata: Metadata that the networks got in the evaluation, such as `true` or `moved:500km`.

        Returns:
            One dict for each network, column, group and score. Its keys are `network`, `column` (`all` for the whole
            part), `group`, `patches`, `blocks`, `score`, `value`, and `low` and `high`, the ends of the 95 % interval
            of the value, or None without an interval.

        Raises:
            ConfigError: `metadata` is no known change.
            RunError: These groups were not scored yet, or the file is damaged.
        """
        from dataclasses import asdict

        from stssl.scoring.changed_metadata import parse_change
        from stssl.scoring.group_files import read_groups

        stem = f"{part}{parse_change(metadata).suffix}-groups"
        return [asdict(row) for row in read_groups(self.path / "evaluation" / stem)]

    def student(self) -> "Student":
        """Load and return the run's student: a network that takes stored pixel values, and needs no store.

        Raises:
            ConfigError: The run is not finished, is a pretraining run, or its file is damaged or of an old release.
        """
        from stssl.students.loading import read_student

        return read_student(self.place)

    def networks(
        self, checkpoint: str = "best", *, device: str = "cpu", store: str | None = None
    ) -> "dict[str, nn.Module]":
        """Load the run's networks in evaluation mode.

        Args:
            checkpoint: `best` or `last`.
            device: `cpu`, `cuda` or `auto`.
            store: Path of the run's store, if the store was moved after training. Networks of a pretraining run need no
                store.

        Returns:
            The networks by name. They take images [n, bands, H, W] and metadata [n, 4] of n patches, which `inputs`
            makes.

            A training run has `student`, and `teacher` if it trained one, both with averaged weights. The call
            `student(images)` or `teacher(images, metadata)` returns a prediction: `logits` [n, classes], and `context`
            [n, width], which distillation compares.

            A pretraining run has `encoder`, and `momentum`, its slow average, which made the keys. The call
            `encoder(images)` returns features [n, width], pooled over the image and not normalized. The width is that
            of the backbone, for example 192 for `vit_tiny_patch16_224`.

        Raises:
            ConfigError: The checkpoint or the device is unknown.
            RunError: The checkpoint is missing or damaged, or the store has changed since training.
        """
        from stssl.training.pretrained_run import load_pretrained
        from stssl.training.trained_run import device_of, load_run

        if not isinstance(self.recipe, Recipe):
            pretrained = load_pretrained(self._folder, device_of(device), checkpoint)
            return {"encoder": pretrained.encoder.backbone, "momentum": pretrained.momentum.backbone}
        step = load_run(self._folder, checkpoint, device, store).step
        names = ("student", "teacher")[: len(step.networks)]
        return {name: step.averaged_network(name).eval() for name in names}

    def inputs(
        self, rows: Sequence[int] | Ints, *, device: str = "cpu", store: str | None = None
    ) -> "tuple[Tensor, Tensor]":
        """Read patches of the run's store, and scale them as the run's networks expect them, without augmentation.

        Args:
            rows: n row numbers of the store, in any order.
            device: `cpu`, `cuda` or `auto`.
            store: Path of the run's store, if the store was moved after training.

        Returns:
            Images [n, bands, H, W] of the recipe's bands and image size, in about [-2, 2]. Metadata [n, 4] are latitude
            and longitude in degrees, day of the year (1 to 366), and hour of the day in UTC; NaN where a value is
            missing.

        Raises:
            ConfigError: No row is given, or the device is unknown.
            DataError: The store does not exist, has no such row, or is damaged.
            RunError: The store has changed since training.
        """
        from stssl.training.trained_run import device_of, read_inputs

        return read_inputs(self._folder, np.asarray(rows, np.int64), device_of(device), store)


def folder_of_run(run: Run | str | Path) -> str:
    """Return the path or URL of a run's folder as a text. `run` may be a `Run` object, or the path or URL itself."""
    return run.place if isinstance(run, Run) else str(run)
