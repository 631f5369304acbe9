"""Write the HTML page of a study of metadata under shift: claims, scores, differences, gains by distance, and maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stssl.analysis.borders import CREDIT
from stssl.analysis.drawing import COLORS, MUTED, figure_of, legend, panels, svg
from stssl.analysis.figures import UNITS, PlaceColors, place_map
from stssl.analysis.page import joined, note, page
from stssl.analysis.tables import Cell, CellValue, table
from stssl.base.whole_files import write_whole
from stssl.recipes.recipe import Recipe
from stssl.shifts.claims import QUESTIONS, points, points_unit
from stssl.shifts.distances import DistanceGain, gain_by_place
from stssl.shifts.effects import NETWORKS, SEEING, FinishedStudy, ShiftEffect, ShiftScore
from stssl.shifts.files import ShiftFindings

MODELS = {
    "student": "sees images alone; learned from the teacher's pseudo-labels. This network ships.",
    "teacher": "sees images and metadata, and made these pseudo-labels",
    "direct": "one network that sees images and metadata, in training and at test",
    "control": "the student of the same recipe without any metadata in training",
    "control teacher": "its teacher: the same networks, but place and date are always absent, and no neighbors vote",
}
"""Meaning of each network."""
TICKS_KM = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
COLUMN_MEANINGS = {
    "metadata at test": "what the network is told about place and date: true, absent, of another patch, moved"
}


def write_shift_report(
    study: FinishedStudy, found: ShiftFindings, recipe: Recipe, runs: Sequence[Path], folder: Path
) -> Path:
    """Write the page `report.html` into the study's folder, and return its path.

    Args:
        study: The study, with finished runs.
        found: Results of the study.
        recipe: Recipe of the study.
        runs: Folder of each run.
        folder: Folder of the study.

    Raises:
        RunError: The page cannot be written.
    """
    title = f"Metadata under shift: {recipe.name}"
    splits = [split.name for split in study.setting.splits]
    body: list[Markup | str] = [Markup("<h1>{}</h1>").format(title), _claims(found.claims), _head(study)]
    body += [Markup("<h2>Scores on test patches</h2>"), *_matrix(found.scores, splits, study.score)]
    body += [Markup("<h2>Differences</h2>"), *_differences(found.effects, study.score)]
    if found.gains:
        body += [Markup("<h2>Gain over the student by distance</h2>"), *_distances(found.gains, splits, study.score)]
    maps = [_map(study, number) for number in range(len(splits))]
    if any(maps):
        body += [Markup("<h2>Where metadata at test helps</h2>"), panels(maps), note(f"{_MAP_NOTE} {CREDIT}")]
    body += [Markup("<h2>What was compared</h2>"), *_what(study), _recipe(recipe), _runs(runs, folder)]
    target = folder / "report.html"
    write_whole(target, page(title, body))
    return target


def _claims(claims: Mapping[str, str]) -> Markup:
    line = Markup("<p><strong>{}</strong> {}</p>")
    return joined("\n", (line.format(QUESTIONS[claim], sentence) for claim, sentence in claims.items()))


def _head(study: FinishedStudy) -> Markup:
    words = (
        f"{len(study.seeds)} seeds. Intervals draw seeds and blocks of {study.options.degrees:g} degrees with "
        "replacement. A difference counts as shown if its interval excludes zero, and p, corrected for all comparisons "
        "of these three sentences (Holm), is below 0.05. All seeds of a split have the same test patches."
        if len(study.seeds) > 1
        else "One seed was trained, so there are no intervals: another seed may give other differences. Give --seeds 5."
    )
    return note(" ".join([words, *study.setting.notes]))


def _matrix(scores: Sequence[ShiftScore], splits: Sequence[str], name: str) -> list[Markup]:
    """Make the page's table of mean scores on test patches over seeds, with explanations below it.

    It has a row for each network and change of metadata, and a column for each split.

    Args:
        scores: All scores of the study.
        splits: Names of the splits.
        name: Name of the score to show.
    """
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in scores:
        if one.part == "test" and one.score == name and one.value is not None:
            cells.setdefault((one.model, one.metadata), {}).setdefault(one.split, []).append(one.value)
    order = sorted(cells, key=lambda key: list(NETWORKS).index(key[0]))
    rows = list[list[CellValue]]()
    for model, metadata in order:
        found = cells[model, metadata]
        rows.append([model, metadata, *(_cell(found.get(split, [])) for split in splits)])
    unit = f"{name} ({UNITS.get(name, '0 to 1')}), mean ± standard deviation over seeds."
    lines = joined("", (Markup("<li><b>{}</b> {}</li>").format(model, words) for model, words in MODELS.items()))
    return [
        table(["network", "metadata at test", *splits], rows, COLUMN_MEANINGS),
        note(unit),
        Markup("<ul>{}</ul>").format(lines),
    ]


def _cell(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("–")
    middle = mean(values)
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return Cell(f"{middle:.4f}{spread}", middle, shade=0.5 * min(1.0, max(0.0, middle)))


def _differences(effects: Sequence[ShiftEffect], score: str) -> list[Markup]:
    rows = list[list[CellValue]]()
    for one in effects:
        words = Markup("<b>{}</b>").format(points(one)) if one.shown else points(one)
        rows.append(
            [one.split, one.part, one.one, one.other, Cell(words, 100 * one.difference), one.blocks, one.p, one.holm]
        )
    head = ["split", "patches", "network (metadata)", "minus", "difference in points (95 %)", "blocks", "p", "p (Holm)"]
    words = (
        f"Unit: {points_unit(score)}. The first three kinds of rows are those of the sentences above. Bold differences "
        "count as shown. The others have no correction for their number: read them as hints."
    )
    return [table(head, rows), note(words)]


def _distances(gains: Sequence[DistanceGain], splits: Sequence[str], score: str) -> list[Markup]:
    high = max(abs(value) for one in gains for value in _ends(one.effect))
    drawn = [_distance_panel(model, gains, splits, score, 1.05 * high) for model in SEEING]
    words = (
        "Each point is the test patches in one range of distance to the nearest training patch of the same split "
        "(0, 1, 3, 10, 30, 100, 300, 1,000 km), at their median distance. Lines above zero: metadata helps. Bars are "
        "95 % intervals over seeds and blocks; ranges with too few blocks have none."
    )
    return [legend(list(splits), marker=True), panels(drawn), note(words)]


def _ends(effect: ShiftEffect) -> list[float]:
    ends = [effect.difference, effect.low, effect.high]
    return [100 * value for value in ends if value is not None and np.isfinite(value)]


def _distance_panel(
    model: str, gains: Sequence[DistanceGain], splits: Sequence[str], score: str, high: float
) -> Markup:
    figure, (axis,) = figure_of(5.6, 3.6)
    axis.axhline(0, color=MUTED, linewidth=1)
    names = dict[str, list[str]]()
    for number, split in enumerate(splits):
        own = [one for one in gains if one.model == model and one.effect.split == split]
        if not own:
            continue
        # A logarithmic axis has no zero: draw smaller medians, such as 0 km for patches at training places, at 0.1 km.
        x = np.array([max(0.1, one.middle_km) for one in own]) * 1.04**number
        y = np.array([100 * one.effect.difference for one in own])
        (line,) = axis.plot(x, y, marker="o", markersize=4, color=COLORS[number % len(COLORS)])
        line.set_gid(f"split{number}")
        names[f"split{number}"] = [
            f"{split}: " + ", ".join(f"{one.middle_km:.3g} km {points(one.effect)}" for one in own)
        ]
        for at, one in zip(x, own, strict=True):
            if one.effect.low is not None and one.effect.high is not None:
                ends = 100 * one.effect.low, 100 * one.effect.high
                axis.plot([at, at], ends, color=COLORS[number % len(COLORS)], linewidth=1)
    axis.set_xscale("log")
    # Give the labels of the ticks as text: Matplotlib's own labels are formulas, which this page shows as raw text.
    farthest = max(one.middle_km for one in gains)
    ticks = [km for km in TICKS_KM if km <= 3 * farthest]
    axis.set_xticks(ticks, [f"{km:g}" for km in ticks])
    axis.minorticks_off()
    axis.set_ylim(-high, high)
    axis.set_title(f"{model} with true metadata, minus student")
    axis.set_xlabel("distance to the nearest training patch in km")
    axis.set_ylabel(points_unit(score))
    return svg(figure, names)


_MAP_NOTE = (
    "Share of wrong labels of the student minus that of direct, averaged over seeds: blue where metadata at test "
    "helps, red where it harms."
)


def _map(study: FinishedStudy, number: int) -> Markup:
    split = study.setting.splits[number]
    found = gain_by_place(study, split)
    gain = found["gain"]
    known = gain[np.isfinite(gain)]
    if not len(known):
        return Markup()
    colors = PlaceColors("RdBu", -_limit(known), _limit(known), "share of labels", "+.3f")
    return place_map(f"{split.name}: mean gain {known.mean():+.3f}", found["lat"], found["lon"], gain, colors)


def _limit(gain: NDArray[np.float64]) -> float:
    return max(0.02, float(np.quantile(np.abs(gain), 0.95)))


def _what(study: FinishedStudy) -> list[Markup]:
    rows = list[list[CellValue]]()
    for split in study.setting.splits:
        parts = split.parts
        inside = "among training places" if split.inside else "apart from training places or times"
        rows.append([split.name, inside, len(parts.train), len(parts.validation), len(parts.test), str(split.rule)])
    head = ["split", "test patches", "train", "validation", "test", "data.split"]
    return [table(head, rows)]


def _recipe(recipe: Recipe) -> Markup:
    block = Markup("<details><summary>Recipe {}, hash {}</summary><pre>{}</pre></details>")
    return block.format(recipe.name, recipe.hash(), recipe.yaml())


def _runs(runs: Sequence[Path], folder: Path) -> Markup:
    names = (run.relative_to(folder) if run.is_relative_to(folder) else run for run in runs)
    block = Markup("<details><summary>{} runs</summary><pre>{}</pre></details>")
    return block.format(len(runs), "\n".join(str(name) for name in names))
