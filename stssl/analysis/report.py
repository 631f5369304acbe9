"""Write an HTML page, a single file, with the scores of evaluated runs, figures, and images of patches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from stssl.analysis import figures
from stssl.analysis.borders import CREDIT
from stssl.analysis.drawing import AnyFloats, legend, panels
from stssl.analysis.histories import thinned_history
from stssl.analysis.matrices import confusion
from stssl.analysis.outcomes import compare_with_labels
from stssl.analysis.page import joined, note, page
from stssl.analysis.patch_images import show_patches
from stssl.analysis.run_groups import MOST_SHOWN, RunDigest, RunGroup, group_key, grouped_runs
from stssl.analysis.run_views import RunView, names_apart, read_run
from stssl.analysis.score_tables import class_table, record_table, score_tables
from stssl.base.batch import MetadataColumn
from stssl.base.errors import RunError, StsslError
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.paths import folder_given, is_url
from stssl.base.whole_files import write_whole

PAGE_BYTES = 3_500_000
"""Size in letters after which the page describes no further run in detail: pages of many runs must open fast."""


@dataclass(frozen=True)
class Panel:
    """Say which metric a figure with training curves shows.

    Attributes:
        title: Title of the figure.
        kind: Kind of the rows in a run's metrics that have the metric: `train` or `validation`.
        metric: Name of the metric in these rows.
        unit: Key of the metric's unit in `figures.UNITS`.
        teacher: Name of the teacher's metric, which is drawn as a thin line; None if the teacher has none.
    """

    title: str
    kind: str
    metric: str
    unit: str
    teacher: str | None = None


PANELS = {
    "Student and teacher on validation": (
        Panel("mAP", "validation", "mAP", "mAP", "teacher_mAP"),
        Panel("accuracy", "validation", "accuracy", "accuracy", "teacher_accuracy"),
        Panel("F1", "validation", "F1", "F1", "teacher_F1"),
        Panel("loss", "validation", "loss", "loss", "teacher_loss"),
    ),
    "Losses of student and teacher": (
        Panel("supervised loss", "train", "student_supervised", "supervised", "teacher_supervised"),
        Panel("unlabeled loss", "train", "student_unlabeled", "unlabeled", "teacher_unlabeled"),
        Panel("distillation", "train", "distillation", "distillation"),
    ),
    "Pseudo-labels": (
        Panel("selected decisions", "train", "pseudo_rate", "pseudo_rate"),
        Panel("precision", "train", "pseudo_precision", "pseudo_precision"),
        Panel("recall", "train", "pseudo_recall", "pseudo_recall"),
    ),
    "Speed": (
        Panel("learning rate", "train", "learning_rate", "learning_rate"),
        Panel("images per second", "train", "images_per_s", "images_per_s"),
        Panel("time spent on waiting for data", "train", "data_wait", "data_wait"),
    ),
}
"""Panels of curves by heading."""


def write_report(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Write an HTML page about some evaluated runs (`stssl report`), and return the page's absolute path.

    Runs that cannot be read are left out, with a warning. Runs are read one after the other, to save memory.

    Args:
        paths: Folders of the runs.
        out: HTML file to write.

    Raises:
        RunError: No folder has an evaluated training run, or the page cannot be written.
    """
    target = Path(out).absolute()
    if target.is_dir():
        raise RunError(f"{out} is a folder. Give --out a file, such as {Path(out) / 'report.html'}.")
    places = list(dict.fromkeys(folder_given(path, "RUN") for path in paths))
    folders = [Path(place).absolute() if not is_url(place) else Path(place) for place in places]
    digests, reasons, seen, size = list[RunDigest](), list[str](), set[str](), 0
    for path, name in zip(places, names_apart(folders), strict=True):
        try:
            view = replace(read_run(path), name=name)
        except StsslError as error:
            reasons.append(str(error))
            continue
        key = group_key(view)
        # Show details of only one run of each recipe: runs of one recipe look alike, and the page must stay small.
        shown = key not in seen and len(seen) < MOST_SHOWN and size < PAGE_BYTES
        details = _details(view) if shown else []
        seen.add(key)
        size += sum(map(len, details))
        digests.append(_digest(view, path, key, details))
    if not digests:
        raise RunError("\n".join(reasons))
    for reason in reasons:
        LOG.warning("left out: %s", reason)
    names = ", ".join(run.name for run in digests)
    title = names if len(digests) < 4 else f"{len(digests)} runs"
    write_whole(target, page(title, _body(title, digests)))
    return target


def _body(title: str, runs: Sequence[RunDigest]) -> list[Markup]:
    groups = grouped_runs(runs)
    body = [Markup("<h1>{}</h1>").format(title), Markup("<h2>Scores</h2>"), *score_tables(groups)]
    if table := class_table(groups):
        body += [Markup("<h2>Classes of the students</h2>"), *table]
    if curves := _training(groups):
        body += [Markup("<h2>Training</h2>"), *curves]
    detailed = [run for run in runs if run.details]
    for run in detailed:
        body += [Markup("<h2>{}</h2>").format(run.name), *run.details]
    if len(detailed) < len(groups):
        body.append(note(f"Figures of {len(groups) - len(detailed)} further recipes are left out; give fewer runs."))
    return [*body, Markup("<h2>What produced the runs</h2>"), record_table(runs), *_recipes(groups)]


def _digest(view: RunView, path: str | Path, key: str, details: list[Markup]) -> RunDigest:
    """Return the small part of a run's files that the page shows, so that the large arrays can be freed from memory.

    Args:
        view: Contents of the run's files.
        path: Folder of the run.
        key: Text that is equal for runs that differ only in their seeds.
        details: Parts of the page that describe this run alone.
    """
    wanted = [(panel.kind, metric) for group in PANELS.values() for panel in group for metric in _metrics(panel)]
    return RunDigest(
        name=view.name,
        path=path,
        key=key,
        seed=(view.recipe.seed, view.recipe.labels.seed),
        recipe_text=view.recipe_text,
        record=view.record,
        parts=view.parts,
        multilabel=view.multilabel,
        histories={one: thinned_history(view.rows, *one) for one in wanted},
        details=details,
    )


def _metrics(panel: Panel) -> list[str]:
    return [panel.metric, *([panel.teacher] if panel.teacher else [])]


def _training(groups: Sequence[RunGroup]) -> list[Markup]:
    """Return parts of the page (HTML) with training curves of the first `MOST_SHOWN` recipes; [] without any curve.

    A recipe, whose runs are one of `groups`, has the same color and line style in all figures.
    """
    shown = groups[:MOST_SHOWN]
    labels = figures.brief([group.label for group in shown])
    found = list[Markup]()
    for heading, chosen in PANELS.items():
        drawn = []
        for panel in chosen:
            lines = {n: group.curve(panel.kind, panel.metric) for n, group in zip(labels, shown, strict=True)}
            thin = (
                {n: group.curve(panel.kind, panel.teacher) for n, group in zip(labels, shown, strict=True)}
                if panel.teacher
                else {}
            )
            drawn.append(figures.curves(panel.title, figures.UNITS[panel.unit], lines, thin))
        if any(drawn):
            found += [Markup("<h3>{}</h3>").format(heading), panels(drawn)]
    if not found:
        return []
    teachers = any(group.curve("train", "teacher_supervised") for group in shown)
    words = "Thick lines are students, thin lines teachers." if teachers else ""
    if any(len(group.runs) > 1 for group in shown):
        words += " A line is the mean over seeds, its band goes from the lowest to the highest seed."
    if len(groups) > len(shown):
        words += f" Curves are of the first {len(shown)} of {len(groups)} recipes."
    return [legend(labels), *([note(words.strip())] if words else []), *found]


def _details(run: RunView) -> list[Markup]:
    """Return parts of the page (HTML) on one run: scores of classes, mistakes, images of patches, maps, calibration.

    They show the run's test patches or, if these were not scored, the patches of another part of the data.
    """
    part = "test" if "test" in run.parts else next(iter(run.parts))
    networks = {name: result.per_class for name, result in run.parts[part].networks.items()}
    arrays = run.arrays[part]
    space = LabelSpace(tuple(next(iter(networks.values()))), run.multilabel)
    logits = {name: arrays[f"logits_{name}"] for name in networks}
    targets, place = arrays["targets"], arrays["metadata"]
    outcomes = {
        name: compare_with_labels(logits[name], targets, space) for name in networks if np.isfinite(logits[name]).all()
    }
    names = legend(list(networks), marker=True) if len(networks) > 1 else Markup()
    bars = figures.class_bars(networks)
    parts = _titled(
        f"Classes, {part}", [names, Markup("<div class='wide bars'>{}</div>").format(bars) if bars else bars]
    )
    if "student" in outcomes:
        parts += _titled(
            f"{'Labels predicted together' if run.multilabel else 'Confused classes'}, {part}",
            [confusion(outcomes["student"].predicted, targets, space)],
        )
        parts += _titled(f"Patches, {part}", show_patches(run, part, outcomes["student"], space))
    if not outcomes:
        return [*parts, note("Predictions are not finite: the run diverged. So there are no maps and no calibration.")]
    lat, lon = place[:, MetadataColumn.LAT], place[:, MetadataColumn.LON]
    maps = _maps(lat, lon, {name: found.wrong for name, found in outcomes.items()})
    parts += _titled(f"Errors by place, {part}", maps)
    chart = figures.reliability({name: (found.probability, found.right) for name, found in outcomes.items()})
    return parts + _titled(f"Calibration, {part}", [names, chart])


def _maps(lat: AnyFloats, lon: AnyFloats, errors: dict[str, AnyFloats]) -> list[Markup]:
    maps = figures.error_maps(lat, lon, errors)
    return [panels(maps), note(CREDIT)] if any(maps) else []


def _titled(title: str, parts: Iterable[Markup]) -> list[Markup]:
    """Return parts of the page (HTML) below a heading with the text `title`; an empty list if all parts are empty."""
    found = [part for part in parts if part]
    return [Markup("<h3>{}</h3>").format(title), *found] if found and found[-1] else []


def _recipes(groups: Sequence[RunGroup]) -> list[Markup]:
    block = Markup("<details><summary>Recipe of {}</summary><pre>{}</pre></details>")
    return [joined("\n", (block.format(group.label, group.runs[0].recipe_text) for group in groups))]
