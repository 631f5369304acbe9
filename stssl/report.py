"""One self-contained HTML page about finished runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from stssl import figures
from stssl.batch import IGNORED
from stssl.errors import RunError, StsslError, first_line
from stssl.labels import LabelSpace
from stssl.page import PAGE
from stssl.page import text as _text
from stssl.recipe import Recipe
from stssl.train.folder import RunFolder, write_text
from stssl.train.surroundings import log


@dataclass(frozen=True)
class RunView:
    """What the page shows of one run."""

    name: str
    recipe: str
    record: dict[str, Any]
    rows: list[dict[str, Any]]
    parts: dict[str, dict[str, Any]]
    arrays: dict[str, Mapping[str, NDArray[Any]]]
    multilabel: bool


def read_run(path: str | Path) -> RunView:
    """Collect a run's files.

    Raises:
        RunError: It is no run, was never evaluated, or a file of it is damaged.
        ConfigError: Its recipe is another version's.
    """
    folder = RunFolder.existing(path)
    folder.recipe_as(Recipe)
    try:
        return _collected(folder)
    except (OSError, EOFError, ValueError, KeyError, StopIteration, BadZipFile) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RunError(f"{path} has a damaged file ({reason}). Evaluate it again: `stssl evaluate {path}`.") from None


def _collected(folder: RunFolder) -> RunView:
    parts: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Mapping[str, NDArray[Any]]] = {}
    for part in ("validation", "test", "train"):
        file = folder.path / "evaluation" / f"{part}.json"
        if file.exists():
            parts[part] = json.loads(file.read_text())
            arrays[part] = dict(np.load(file.with_suffix(".npz")))
    if not parts:
        path = folder.path
        raise RunError(f"{path} was not evaluated yet. Run `stssl evaluate {path} --split test` first.")
    first = next(iter(parts.values()))["networks"]["student"]["scores"]
    recipe, record = folder.path / "recipe.yaml", folder.path / "record.json"
    return RunView(
        name=folder.path.name,
        recipe=recipe.read_text(),
        record=json.loads(record.read_text()) if record.exists() else {},
        rows=list(folder.rows()),
        parts=parts,
        arrays=arrays,
        multilabel="mAP" in first,
    )


def write_report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page and return its absolute path; folders that cannot be shown are left out, saying so.

    Raises:
        RunError: Nothing is left: no folder is a training run's that was evaluated; or the page cannot be written.
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
        log().warning("left out: %s", reason)
    names = ", ".join(run.name for run in runs)
    body = [f"<h1>{_text(names if len(runs) < 4 else f'{len(runs)} runs')}</h1>", _facts(runs)]
    body += ["<h2>Scores</h2>", *(_scores(runs, part) for part in ("test", "validation", "train"))]
    body += ["<h2>Training</h2>", *_training(runs)]
    for run in runs:
        body += [f"<h2>{_text(run.name)}</h2>", *_details(run)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, PAGE.format(title=_text(names), body="\n".join(body)))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}. Give --out another file.") from None
    return target


def names_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each run's folder: its last part, with as many of those before it as tell all of them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _facts(runs: Sequence[RunView]) -> str:
    facts = []
    for run in runs:
        record = run.record
        if record:
            sizes = ", ".join(f"{count:,} {part}" for part, count in record["parts"].items())
            versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            facts.append(
                f"<p class='note'><b>{_text(run.name)}</b>: {record['labeled']:,} labeled of {sizes} patches; "
                f"seed {record['seed']}, {record['ranks']} rank(s){_resumed(record['starts'])}; {_text(versions)}; "
                f"commit {_text(record['commit'] or 'unknown')}; data {_text(record['store']['fingerprint'][:12])}.</p>"
            )
    return "\n".join(facts)


def _resumed(starts: list[dict[str, Any]]) -> str:
    steps = ", ".join(f"{start['step']:,}" for start in starts[1:])
    return f", started again after step {steps}" if steps else ""


def _scores(runs: Sequence[RunView], part: str) -> str:
    """One table a part: networks of all runs as rows, scores as columns, the best of each column bold."""
    rows, steps = dict[str, dict[str, Any]](), dict[str, str]()
    for run in runs:
        scored = run.parts.get(part, {"networks": {}})
        for network, result in scored["networks"].items():
            rows[f"{run.name} · {network}"] = result["scores"]
            steps[f"{run.name} · {network}"] = f"{scored['checkpoint']}, {scored['step']:,}"
    if not rows:
        return ""
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    lower = {"loss", "calibration_error"}
    best = {}
    for name in names:
        values = [scores[name] for scores in rows.values() if scores.get(name) is not None]
        best[name] = (min if name in lower else max)(values, default=None)
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names)
    lines = []
    for label, scores in rows.items():
        cells = "".join(_cell(scores.get(name), best[name]) for name in names)
        lines.append(f"<tr><td>{_text(label)}</td><td>{_text(steps[label])}</td>{cells}</tr>")
    count = max(run.parts[part]["patches"] for run in runs if part in run.parts)
    return (
        f"<h3>{part} ({count:,} patches)</h3><div class='wide'><table>"
        f"<thead><tr><th>network</th><th>checkpoint, step</th>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    return f"<td{' class=best' if value == best else ''}>{value:.4f}</td>"


def _training(runs: Sequence[RunView]) -> list[str]:
    rows = {run.name: run.rows for run in runs}
    return [
        figures.curves(rows, "validation", ("mAP", "accuracy", "F1", "loss")),
        figures.curves(rows, "train", ("student_supervised", "student_unlabeled", "distillation")),
        figures.curves(rows, "train", ("pseudo_rate", "pseudo_precision", "pseudo_recall")),
        figures.curves(rows, "train", ("learning_rate", "images_per_s", "data_wait")),
    ]


def _details(run: RunView) -> list[str]:
    part = "test" if "test" in run.parts else next(iter(run.parts))
    networks = {name: result["per_class"] for name, result in run.parts[part]["networks"].items()}
    arrays = run.arrays[part]
    space = LabelSpace(tuple(next(iter(networks.values()))), run.multilabel)
    predictions = {name: _outcome(arrays[f"logits_{name}"], arrays["targets"], space) for name in networks}
    place = arrays["metadata"]
    maps = figures.error_maps(place[:, 0], place[:, 1], {name: outcome[2] for name, outcome in predictions.items()})
    return [
        f"<h3>Classes, {part}</h3>",
        figures.class_bars(networks),
        *((f"<h3>Errors by place, {part}</h3>", maps) if maps else ()),
        f"<h3>Calibration, {part}</h3>",
        figures.reliability({name: outcome[:2] for name, outcome in predictions.items()}),
        f"<details><summary>Recipe</summary><pre>{_text(run.recipe)}</pre></details>",
    ]


def _outcome(
    logits: NDArray[Any], targets: NDArray[Any], space: LabelSpace
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Probability of each group's last way or best way, whether it came true, and each patch's share of errors.

    That share is NaN for a patch without a known label.
    """
    ways = space.grouped(torch.from_numpy(logits)).softmax(-1).numpy()
    known = targets != IGNORED
    count = known.sum(1)
    wrong = np.where(count > 0, ((ways.argmax(-1) != targets) & known).sum(1) / np.maximum(count, 1), np.nan)
    chosen = np.ones_like(targets) if space.ways == 2 else ways.argmax(-1)
    probability = np.take_along_axis(ways, chosen[..., None].astype(np.int64), -1)[..., 0]
    return probability[known], (targets == chosen)[known].astype(float), wrong
