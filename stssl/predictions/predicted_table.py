"""Predict the classes of patches, and write them as a table: `stssl predict MODEL PATCHES --out TABLE.parquet`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl import __version__
from stssl.base.arrays import Floats
from stssl.base.batch import IGNORED
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace
from stssl.base.whole_files import require_writable
from stssl.data.loader import prefetch
from stssl.mapping.kept_blocks import sole_prediction
from stssl.predictions.common_columns import CommonColumns, output_path
from stssl.predictions.geoparquet import write_places_table
from stssl.predictions.inputs import open_patches
from stssl.predictions.known_labels import KnownLabels
from stssl.predictions.patches import PatchBatch, PatchSource
from stssl.predictions.preparation import PatchInputs, metadata_for
from stssl.predictions.requests import REQUEST_KEY, made_already, made_note, request_hash
from stssl.predictions.usable import broken_notes, require_usable, with_broken
from stssl.scoring.evaluation import without_nan
from stssl.scoring.metrics import score
from stssl.students.loading import different_models, read_student
from stssl.students.student import Student
from stssl.training.trained_run import device_of

TABLE_SUFFIXES = (".parquet", ".pq")
LEAST_CHOSEN = 0.5
"""Probability from which on a class is chosen, if a patch may have any number of classes."""
LEAST_SHARE = 1e-15
"""Least mean probability of several models. A smaller one counts as this."""
OnPatch = Callable[[int, int], None]
"""Function that gets the number of predicted patches and of all patches."""


@dataclass(frozen=True)
class PatchOptions:
    """Hold the options by which `predict_patches` and `embed_patches` read patches and run the model.

    Attributes:
        bands: Names of the images' bands; empty to read them from the images.
        labels: Name of the label set to score against; None chooses the one that shares most classes with the model.
        resample: True to accept patches of another size than the model's training patches, and to resize them.
        stride: Distance of a scene's windows in pixels; None for windows side by side.
        batch: Number of patches that a model sees at a time.
        device: `auto`, `cpu` or `cuda`.
    """

    bands: tuple[str, ...] = ()
    labels: str | None = None
    resample: bool = False
    stride: int | None = None
    batch: int = 64
    device: str = "auto"


DEFAULTS = PatchOptions()


@dataclass(frozen=True)
class PredictedTable:
    """Say what `predict_patches` wrote: in which file, for how many patches, and with which scores.

    Attributes:
        path: File of the table.
        patches: Number of patches, each of which has one row.
        failed: Number of patches without a result. Their rows in the table say why.
        scored: Number of patches with a known label.
        scores: Scores by name; empty if no patch has a label.
        notes: Remarks for the user, one line each.
    """

    path: Path
    patches: int
    failed: int
    scored: int
    scores: dict[str, float]
    notes: tuple[str, ...]


def predict_patches(
    models: Sequence[str | Path],
    inputs: Sequence[str | Path],
    out: str | Path,
    options: PatchOptions = DEFAULTS,
    progress: OnPatch | None = None,
) -> PredictedTable:
    """Predict the classes of patches, and write a table: Parquet, as GeoParquet if patches have places.

    If an earlier call with the same models, patches and options has finished the table, leave it as it is.

    Args:
        models: Runs, or files of students (trained networks). The probabilities of several are averaged.
        inputs: A store, a table of images, a folder or pattern of images, or a scene.
        out: Table to write (`.parquet`).
        options: Bands, sizes, labels to score against, batch and device.
        progress: Called with the number of predicted patches and the number of all patches.

    Returns:
        Path of the table, numbers of patches, scores and remarks.

    Raises:
        ConfigError: A model cannot be used, models do not fit together, an option does not fit, or the output is
            another file.
        DataError: The patches cannot be used, or none of them has a result.
        RunError: The table cannot be written.
    """
    path = output_path(out, inputs, TABLE_SUFFIXES, "predictions of patches are a table (a map of a scene is .tif)")
    device = device_of(options.device)
    hashes = different_models(models)
    students = [read_student(place).to(device) for place in models]
    _require_equal(students)
    first = students[0]
    wanted = list(dict.fromkeys(band for student in students for band in student.bands))
    source = open_patches(inputs, first.description, options.bands, wanted=wanted, stride=options.stride)
    plans = [PatchInputs(student, source, resample=options.resample) for student in students]
    space = LabelSpace(first.classes, first.description.multilabel)
    labels = KnownLabels.find(source, space, options.labels)
    asked = (options.bands, options.labels, options.resample, options.stride)
    request = request_hash(hashes, source, ("predict", *asked))
    with sole_prediction(path):
        made = made_already(path, request)
        if made is not None:
            return _made_table(path, made)
        require_writable(path)
        job = _Prediction(source, students, plans, space, labels)
        results = job.run(options.batch, progress)
        require_usable(source, job.usable(), job.columns.errors)
        scores = job.scores(results.logits) if labels is not None else {}
        notes = (*source.notes, *(labels.notes if labels else ()), *broken_notes(job.columns.errors))
        about = job.about(hashes, scores) | {REQUEST_KEY: request}
        write_places_table(path, job.table(results.probabilities), job.columns.centers, job.columns.rings, about)
    return PredictedTable(path, source.size, job.failed, job.scored, scores, notes)


def _made_table(path: Path, about: JsonObject) -> PredictedTable:
    """Return what an earlier call of `predict_patches` wrote: numbers and scores, from the metadata of its table.

    Args:
        path: File of the table.
        about: Metadata that the earlier call wrote into the file.
    """
    counts, scores = about["counts"], about["scores"]
    assert isinstance(counts, dict) and isinstance(scores, dict)  # for mypy: a fitting request shows that we wrote them
    patches, failed, scored = (int(str(counts[name])) for name in ("patches", "failed", "scored"))
    kept = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    return PredictedTable(path, patches, failed, scored, kept, (made_note(path),))


def batches_of(source: PatchSource, batch: int) -> Iterator[PatchBatch]:
    """Yield all patches of a source, batch by batch. While the caller uses a batch, a thread reads the next two.

    Args:
        source: Source of the patches.
        batch: Number of patches in a batch. The last batch may have fewer.
    """
    rows = [np.arange(start, min(start + batch, source.size)) for start in range(0, source.size, batch)]
    yield from prefetch((partial(source.read, chunk) for chunk in rows), 2)


def _require_equal(students: Sequence[Student]) -> None:
    """Check that the models of an ensemble have the same classes and task, so that their probabilities can be averaged.

    Args:
        students: The models: trained networks with descriptions of their classes.

    Raises:
        ConfigError: A model has other classes or another task than the first one.
    """
    first = students[0].description
    for number, student in enumerate(students[1:], 2):
        own = student.description
        if (student.classes, own.task) != (students[0].classes, first.task):
            raise ConfigError(f"model {number} has other classes than the first model: an ensemble shares its classes.")


@dataclass(frozen=True)
class _Results:
    """Hold logits and probabilities, each [n, classes], of n patches; NaN for patches without a result."""

    logits: Tensor
    probabilities: Floats


class _Prediction:
    """Predict the classes of a source's patches with one or several models, and arrange the results as a table."""

    def __init__(
        self,
        source: PatchSource,
        students: Sequence[Student],
        plans: Sequence[PatchInputs],
        space: LabelSpace,
        labels: KnownLabels | None,
    ) -> None:
        self.source, self.students, self.plans, self.space, self.labels = source, students, plans, space, labels
        self.columns = CommonColumns(source)
        self._usable: list[NDArray[np.bool_]] = []
        self.scored = 0

    def usable(self) -> NDArray[np.bool_]:
        """Return booleans [n] for the n patches: False if a patch could not be read or its results are not finite."""
        return np.concatenate(self._usable)

    @property
    def failed(self) -> int:
        """Return the number of predicted patches without a usable result."""
        return int((~self.usable()).sum())

    def about(self, models: Mapping[str, str], scores: Mapping[str, float]) -> JsonObject:
        """Return JSON values that describe the table, for its file: models, input, classes, scores and patch counts.

        Args:
            models: Hash of each model's weights, by name of the model.
            scores: Scores by name, which may be NaN.
        """
        return {
            "stssl": __version__,
            "models": {**models},
            "input": self.source.place,
            "task": self.students[0].description.task,
            "classes": [*self.space.classes],
            "labels": None if self.labels is None else self.labels.name,
            "scores": json.loads(json.dumps(without_nan(scores))),
            "counts": {"patches": self.source.size, "failed": self.failed, "scored": self.scored},
        }

    @torch.inference_mode()
    def run(self, batch: int, progress: OnPatch | None) -> _Results:
        """Predict all patches of the source, and return their logits and probabilities.

        Collect the columns of the table.

        Args:
            batch: Number of patches that a model sees at a time.
            progress: Called with the number of predicted patches and the number of all patches.
        """
        logits, done = [], 0
        for read in batches_of(self.source, batch):
            values, finite = self._logits(read)
            found = with_broken(read, finite)
            values[torch.from_numpy(~found.usable)] = torch.nan
            logits.append(values)
            self.columns.add(found)
            self._usable.append(found.usable)
            if self.labels is not None:
                self.labels.add(found)
            done += len(found.names)
            if progress:
                progress(done, self.source.size)
        joined = torch.cat(logits)
        return _Results(joined, self.space.probabilities(joined).numpy())

    def _logits(self, batch: PatchBatch) -> tuple[Tensor, NDArray[np.bool_]]:
        """Compute the logits of a batch of n patches. With several models, average the models' probabilities first.

        Returns:
            Logits [n, classes], on the CPU; and booleans [n], True for patches for which all models give finite
                numbers.
        """
        parts = []
        for student, plan in zip(self.students, self.plans, strict=True):
            metadata = metadata_for(student, batch, self.source)
            parts.append(student(plan.images(batch.pixels), metadata).float().cpu())
        finite = torch.stack([logits.isfinite().all(1) for logits in parts]).all(0).numpy()
        return parts[0] if len(parts) == 1 else self._mean(parts), finite

    def _mean(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the logits [n, classes] of the mean of several models' probabilities. They are finite.

        Args:
            parts: [n, classes] logits of each model.
        """
        mean = torch.stack([self.space.probabilities(logits.double()) for logits in parts]).mean(0)
        # Limit the probabilities: one of exactly 0 or 1 has no finite logit.
        return (torch.logit(mean, LEAST_SHARE) if self.space.multilabel else mean.clamp_min(LEAST_SHARE).log()).float()

    def scores(self, logits: Tensor) -> dict[str, float]:
        """Score the logits of those patches that have a known label and a usable result.

        Set the attribute `scored` to the number of these patches.

        Args:
            logits: [n, classes] logits of all patches.

        Returns:
            Scores by name; empty if no patch can be scored.
        """
        assert self.labels is not None
        targets = self.labels.targets()
        targets[torch.from_numpy(~self.usable())] = IGNORED
        known = (targets != IGNORED).any(1)
        self.scored = int(known.sum())
        if not self.scored:
            return {}
        return dict(score(logits[known], targets[known], self.space).scores)

    def table(self, probabilities: Floats) -> pyarrow.Table:
        """Return the table, one row for each patch: names, places, dates, then results, then labels, splits and errors.

        The results are null for patches without a usable result.

        Args:
            probabilities: [n, classes] probabilities of all patches; NaN for those without a result.
        """
        usable = self.usable()
        several = self.space.multilabel
        confidence = np.maximum(probabilities, 1 - probabilities).mean(1) if several else probabilities.max(1)
        results: dict[str, pyarrow.Array] = {
            "chosen": self._chosen(probabilities, usable),
            "confidence": pyarrow.array(confidence.astype(np.float32), mask=~usable),
        }
        for name, values in zip(self.space.classes, probabilities.T, strict=True):
            results[f"probability_{name}"] = pyarrow.array(values.astype(np.float32), mask=~usable)
        labels = {} if self.labels is None else {"label": self.labels.column()}
        return pyarrow.table({**self.columns.first(), **results, **labels, **self.columns.last()})

    def _chosen(self, probabilities: Floats, usable: NDArray[np.bool_]) -> pyarrow.Array:
        names = self.space.classes
        if self.space.multilabel:
            lists = [
                [names[place] for place in np.flatnonzero(row >= LEAST_CHOSEN)] if there else None
                for row, there in zip(probabilities, usable, strict=True)
            ]
            return pyarrow.array(lists, pyarrow.list_(pyarrow.string()))
        best = np.where(usable, np.nan_to_num(probabilities).argmax(1), 0)
        return pyarrow.array([names[place] for place in best], pyarrow.string(), mask=~usable)
