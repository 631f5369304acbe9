"""Write an HTML page, a single file, with scores and figures of finished runs."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from stssl.analysis import figures
from stssl.analysis.page import joined, number, page
from stssl.base.batch import IGNORED, MetadataColumn
from stssl.base.errors import RunError, StsslError, first_line
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import is_there, write_whole
from stssl.recipes.recipe import Recipe
from stssl.scoring.evaluation import array_digest
from stssl.scoring.metrics import LOWER_IS_BETTER
from stssl.training.run_files import RecordFile, ScoresFile, read_run_file
from stssl.training.run_folder import RunFolder

MOST_ARRAY_BYTES = 8 << 30
"""Largest unpacked size in bytes of a file of logits that is read. A million patches with a thousand classes fit."""


@dataclass(frozen=True)
class RunView:
    """Hold everything that the page shows about one run.

    Attributes:
        name: Name of the run on the page.
        recipe: Text of the run's recipe.
        record: Contents of `record.json`, which says what produced the run; None if the file does not exist.
        rows: Rows of the run's metrics.
        parts: Scores by part of the split.
        arrays: Targets, logits and metadata by part of the split.
        multilabel: True if a patch may have several classes.
    """

    name: str
    recipe: str
    record: RecordFile | None
    rows: list[dict[str, Any]]
    parts: dict[str, ScoresFile]
    arrays: dict[str, Mapping[str, NDArray[Any]]]
    multilabel: bool


def read_run(path: str | Path) -> RunView:
    """Read the recipe, record, metrics and scores of a run for the page.

    Raises:
        RunError: The folder has no training run, the run was never evaluated, or a file is damaged. The message names
            the file.
        ConfigError: The recipe has keys or values that this version does not know.
    """
    folder = RunFolder.existing(path)
    folder.recipe_as(Recipe)
    parts: dict[str, ScoresFile] = {}
    arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
    for part in ("validation", "test", "train"):
        file = folder.path / "evaluation" / f"{part}.json"
        if is_there(file):
            advice = f"Evaluate it again: `stssl evaluate {folder.path} --split {part}`."
            parts[part] = read_run_file(ScoresFile, file, advice)[0]
            arrays[part] = _arrays(file.with_suffix(".npz"), parts[part], advice)
    if not parts:
        path = folder.path
        raise RunError(f"{path} was not evaluated yet. Run `stssl evaluate {path} --split test` first.")
    rows, damaged = folder.read_rows()
    if damaged:
        LOG.warning("%s: %d damaged lines are left out", folder.path / "metrics.jsonl", damaged)
    return RunView(
        name=folder.path.name,
        recipe=folder.recipe_text(),
        record=folder.read_record()[0],
        rows=rows,
        parts=parts,
        arrays=arrays,
        multilabel=next(iter(parts.values())).networks["student"].multilabel,
    )


def _arrays(path: Path, scored: ScoresFile, advice: str) -> dict[str, NDArray[Any]]:
    """Read targets, metadata and logits of a part, and check that their shapes fit the part's scores.

    Args:
        path: File with the arrays.
        scored: Scores of the same evaluation.
        advice: Sentence that says what to do. It ends the message of an error.

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
        # Allow no pickle: a pickle in somebody else's run could run any code.
        found = dict(np.load(BytesIO(data), allow_pickle=False))
        _require_shapes(found, scored)
    except (ValueError, KeyError, EOFError, OSError, MemoryError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {first_line(error)}). {advice}") from None
    return found


def _require_shapes(arrays: Mapping[str, NDArray[Any]], scored: ScoresFile) -> None:
    """Check that the arrays of an evaluation have the shapes, types and values that its scores need.

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


def write_report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write an HTML page about some runs, and return its absolute path. Leave out unusable folders, with a warning.

    Raises:
        RunError: No folder has an evaluated training run, or the page cannot be written.
    """
    target = Path(out).absolute()
    if target.is_dir():
        raise RunError(f"{out} is a folder. Give --out a file, such as {Path(out) / 'report.html'}.")
    folders = list(dict.fromkeys(Path(path).absolute() for path in paths))
    runs, reasons = [], []
    for path, name in zip(folders, names_apart(folders), strict=True):
        try:
            runs.append(replace(read_run(path), name=name))
        except StsslError as error:
            reasons.append(str(error))
    if not runs:
        raise RunError("\n".join(reasons))
    for reason in reasons:
        LOG.warning("left out: %s", reason)
    names = ", ".join(run.name for run in runs)
    body = [Markup("<h1>{}</h1>").format(names if len(runs) < 4 else f"{len(runs)} runs"), _facts(runs)]
    body += [Markup("<h2>Scores</h2>"), *(_scores(runs, part) for part in ("test", "validation", "train"))]
    body += [Markup("<h2>Training</h2>"), *_training(runs)]
    for run in runs:
        body += [Markup("<h2>{}</h2>").format(run.name), *_details(run)]
    write_whole(target, page(names, body))
    return target


def names_apart(folders: Sequence[Path]) -> list[str]:
    """Make a short, different name for each run folder: as many last parts of its path as are needed."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


_FACTS = Markup(
    "<p class='note'><b>{name}</b>: {labeled} labeled of {sizes} patches; seed {seed}, {ranks} rank(s){resumed}; "
    "{versions}; commit {commit}; data {data}.</p>"
)


def _facts(runs: Sequence[RunView]) -> Markup:
    return joined("\n", (_fact(run.name, run.record) for run in runs if run.record is not None))


def _fact(name: str, record: RecordFile) -> Markup:
    steps = ", ".join(number(start.step) for start in record.starts[1:])
    return _FACTS.format(
        name=name,
        labeled=number(record.labeled),
        sizes=", ".join(f"{number(count)} {part}" for part, count in record.parts.items()),
        seed=record.seed,
        ranks=record.ranks,
        resumed=f", started again after step {steps}" if steps else "",
        versions=", ".join(f"{package} {version}" for package, version in record.versions.items()),
        commit=record.commit or "unknown",
        data=record.store.fingerprint[:12],
    )


_SCORES = Markup(
    "<h3>{part} ({count} patches)</h3><div class='wide'><table><thead><tr><th>network</th><th>checkpoint, step</th>"
    "{head}</tr></thead><tbody>{lines}</tbody></table></div>"
)


def _scores(runs: Sequence[RunView], part: str) -> Markup:
    """Make a table of scores: a row for each network of each run, a column for each score. The best are bold."""
    rows, steps = dict[str, Mapping[str, float | None]](), dict[str, str]()
    for run in runs:
        scored = run.parts.get(part)
        for network, result in scored.networks.items() if scored else ():
            rows[f"{run.name} · {network}"] = result.scores
            steps[f"{run.name} · {network}"] = f"{scored.checkpoint}, {scored.step:,}" if scored else ""
    if not rows:
        return Markup()
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    best: dict[str, float | None] = {}
    for name in names:
        values = [value for scores in rows.values() if (value := scores.get(name)) is not None]
        best[name] = (min if name in LOWER_IS_BETTER else max)(values, default=None)
    line = Markup("<tr><td>{}</td><td>{}</td>{}</tr>")
    return _SCORES.format(
        part=part,
        count=number(max(run.parts[part].patches for run in runs if part in run.parts)),
        head=joined("", (Markup("<th>{}</th>").format(name.replace("_", " ")) for name in names)),
        lines=joined(
            "",
            (
                line.format(label, steps[label], joined("", (_cell(scores.get(name), best[name]) for name in names)))
                for label, scores in rows.items()
            ),
        ),
    )


def _cell(value: float | None, best: float | None) -> Markup:
    if value is None:
        return Markup("<td>–</td>")
    cell = Markup("<td class=best>{}</td>") if value == best else Markup("<td>{}</td>")
    return cell.format(f"{value:.4f}" if abs(value) < 1e9 else f"{value:.4g}")


def _training(runs: Sequence[RunView]) -> list[Markup]:
    rows = {run.name: run.rows for run in runs}
    return [
        figures.curves(rows, "validation", ("mAP", "accuracy", "F1", "loss")),
        figures.curves(rows, "train", ("student_supervised", "student_unlabeled", "distillation")),
        figures.curves(rows, "train", ("pseudo_rate", "pseudo_precision", "pseudo_recall")),
        figures.curves(rows, "train", ("learning_rate", "images_per_s", "data_wait")),
    ]


def _details(run: RunView) -> list[Markup]:
    """Make the page's section about one run: scores of classes, map of errors and calibration."""
    part = "test" if "test" in run.parts else next(iter(run.parts))
    networks = {name: result.per_class for name, result in run.parts[part].networks.items()}
    arrays = run.arrays[part]
    space = LabelSpace(tuple(next(iter(networks.values()))), run.multilabel)
    logits = {name: arrays[f"logits_{name}"] for name in networks}
    finite = [name for name in networks if np.isfinite(logits[name]).all()]
    predictions = {name: _outcome(logits[name], arrays["targets"], space) for name in finite}
    place = arrays["metadata"]
    wrong = {name: found.wrong for name, found in predictions.items()}
    maps = figures.error_maps(place[:, MetadataColumn.LAT], place[:, MetadataColumn.LON], wrong) if wrong else Markup()
    title = Markup("<h3>{}, {}</h3>")
    return [
        title.format("Classes", part),
        figures.class_bars(networks),
        *((title.format("Errors by place", part), maps) if maps else ()),
        title.format("Calibration", part),
        figures.reliability({name: (found.probability, found.right) for name, found in predictions.items()}),
        Markup("<details><summary>Recipe</summary><pre>{}</pre></details>").format(run.recipe),
    ]


class _Outcome(NamedTuple):
    """Hold the comparison of a network's predictions with all known labels.

    Attributes:
        probability: [labels] predicted probability of "present" if a patch may have several classes, else of the class
            with the highest probability.
        right: [labels] 1 if the label is this choice ("present", or this class), else 0.
        wrong: [patches] share of wrong predictions of each patch; NaN for a patch without a known label.
    """

    probability: figures.AnyFloats
    right: figures.AnyFloats
    wrong: figures.AnyFloats


def _outcome(logits: figures.AnyFloats, targets: NDArray[np.signedinteger[Any]], space: LabelSpace) -> _Outcome:
    """Compare a network's logits [patches, classes] with the labels [patches, labels a patch] (choice ids)."""
    grouped = space.grouped(torch.from_numpy(logits).double())
    choices, best = grouped.softmax(-1).numpy(), grouped.argmax(-1).numpy()
    known = targets != IGNORED
    count = known.sum(1)
    wrong = np.where(count > 0, ((best != targets) & known).sum(1) / np.maximum(count, 1), np.nan)
    chosen = np.ones_like(targets) if space.choices == 2 else best
    probability = np.take_along_axis(choices, chosen[..., None].astype(np.int64), -1)[..., 0]
    return _Outcome(probability[known], (targets == chosen)[known].astype(float), wrong)
