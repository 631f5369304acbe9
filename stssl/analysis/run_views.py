"""Read the files of one run that a report shows: its recipe, record, metrics, scores and arrays."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from stssl.base.batch import IGNORED
from stssl.base.errors import RunError, first_line
from stssl.base.logs import LOG
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import is_there
from stssl.recipes.recipe import Recipe
from stssl.scoring.evaluation import array_digest
from stssl.training.run_files import RecordFile, ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder

MOST_ARRAY_BYTES = 8 << 30
"""Largest unpacked size in bytes of a file of logits that is read. A million patches with a thousand classes fit."""


@dataclass(frozen=True)
class RunView:
    """Hold the contents of an evaluated run's files, as reports and comparisons need them.

    Attributes:
        name: Name of the run on the page.
        recipe: Recipe of the run.
        recipe_text: Text of the recipe's file.
        record: Contents of `record.json`, which says what produced the run; None if the file does not exist.
        rows: Rows that the run wrote during training, each with a step and metrics.
        parts: Scores by part of the data, such as `test`.
        arrays: Labels (`targets`), logits, metadata and store rows of the scored patches, by part of the data.
        multilabel: True if a patch may have several classes.
    """

    name: str
    recipe: Recipe
    recipe_text: str
    record: RecordFile | None
    rows: list[dict[str, Any]]
    parts: dict[str, ScoresFile]
    arrays: dict[str, Mapping[str, NDArray[Any]]]
    multilabel: bool


def read_run(path: str | Path) -> RunView:
    """Return the contents of a run's files: recipe, record, metrics, and scores and logits of each evaluated part.

    Raises:
        RunError: The folder has no training run, the run was never evaluated, or a file is damaged. The message names
            the file.
        ConfigError: The recipe has keys or values that this version does not know.
    """
    folder = RunFolder.existing(path)
    recipe = folder.recipe_as(Recipe)
    parts: dict[str, ScoresFile] = {}
    arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
    for part in ("validation", "test", "train"):
        file = folder.path / "evaluation" / f"{part}.json"
        if is_there(file):
            advice = f"Evaluate it again: `stssl evaluate {folder.place} --split {part}`."
            parts[part] = read_run_file(ScoresFile, file, advice)[0]
            arrays[part] = read_arrays(file.with_suffix(".npz"), parts[part], advice)
    if not parts:
        path = folder.place
        raise RunError(f"{path} was not evaluated yet. Run `stssl evaluate {path} --split test` first.")
    rows, damaged = folder.read_rows()
    if damaged:
        LOG.warning("%s: %d damaged lines are left out", folder.path / "metrics.jsonl", damaged)
    return RunView(
        name=folder.path.name,
        recipe=recipe,
        recipe_text=folder.recipe_text(),
        record=folder.read_record()[0],
        rows=rows,
        parts=parts,
        arrays=arrays,
        multilabel=next(iter(parts.values())).networks["student"].multilabel,
    )


def read_arrays(path: Path, scored: ScoresFile, advice: str) -> dict[str, NDArray[Any]]:
    """Read the arrays that an evaluation wrote beside its scores, and check that both fit together.

    Args:
        path: File with the arrays (`.npz`).
        scored: Scores of the same evaluation.
        advice: Sentence that says what the user can do. It ends the message of an error.

    Returns:
        Labels (`targets`), metadata, logits of each network and other arrays, by name.

    Raises:
        RunError: The file is missing or damaged, or belongs to another evaluation.
    """
    data = read_bounded(path, MOST_ARRAY_BYTES, RunError, advice)
    if scored.arrays is not None and array_digest(data) != scored.arrays:
        raise RunError(f"{path} is damaged, or of another evaluation than the scores beside it. {advice}")
    try:
        with ZipFile(BytesIO(data)) as packed:
            # Check the size before unpacking: a small damaged file may unpack to more than fits into memory.
            if sum(entry.file_size for entry in packed.infolist()) > MOST_ARRAY_BYTES:
                raise ValueError("it is too large")
        # Allow no pickle: the file may come from somebody else, and loading a pickle can run any code.
        found = dict(np.load(BytesIO(data), allow_pickle=False))
        _require_shapes(found, scored)
    except (ValueError, KeyError, EOFError, OSError, MemoryError, RuntimeError, BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {first_line(error)}). {advice}") from None
    return found


def _require_shapes(arrays: Mapping[str, NDArray[Any]], scored: ScoresFile) -> None:
    """Check that the arrays of an evaluation, by name, have the shapes, types and values that fit its scores.

    `scored` are these scores, as read from the JSON file.

    Raises:
        KeyError: An array is missing.
        ValueError: The shape, the type or the values of an array do not fit the scores.
    """
    targets, places = arrays["targets"], arrays["metadata"]
    for network, result in scored.networks.items():
        logits, classes = arrays[f"logits_{network}"], len(result.per_class)
        groups = classes if result.multilabel else 1
        if logits.shape != (len(targets), classes) or targets.shape != (len(targets), groups):
            raise ValueError(f"logits {logits.shape} and targets {targets.shape} do not go with {classes} classes")
        if logits.dtype.kind != "f" or targets.dtype.kind != "i":
            raise ValueError(f"logits are {logits.dtype} and targets {targets.dtype}")
        if ((targets != IGNORED) & ((targets < 0) | (targets >= max(2, classes)))).any():
            raise ValueError("targets are beyond the classes")
    if places.ndim != 2 or len(places) != len(targets) or places.shape[1] < 2 or places.dtype.kind != "f":
        raise ValueError(f"metadata {places.shape} does not go with {len(targets)} patches")


def names_apart(folders: Sequence[Path]) -> list[str]:
    """Return a short name for each run folder: the last parts of its path, so many that all names differ."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
