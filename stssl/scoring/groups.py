"""Score a network on groups of patches, such as countries or seasons, with intervals from blocks of places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.base.arrays import AnyArray, Ints
from stssl.base.batch import IGNORED
from stssl.base.errors import ConfigError, DataError, shown
from stssl.base.logs import LOG
from stssl.recipes.run_data import RunData
from stssl.scoring.block_scores import BlockScores, draw_blocks, percentiles, require_side
from stssl.scoring.evaluation import Evaluation
from stssl.scoring.group_columns import squares_of, values_of
from stssl.scoring.metrics import LOWER_IS_BETTER, headline, score

WHOLE, POOLED = "all", "others"
LEAST_BLOCKS = 10
"""Smallest number of blocks for an interval: with fewer blocks, draws of them say little about other places."""
Resampled = Literal["blocks", "patches"]


@dataclass(frozen=True)
class GroupOptions:
    """Say how an evaluation divides its patches into groups (such as countries), and how it computes intervals.

    Attributes:
        by: Columns whose values are the groups: columns of the store, `block` or `month`.
        bootstrap: Number of bootstrap draws for the intervals of scores; 0 computes no intervals.
        least: Groups with fewer labeled patches than this are pooled into one group, `others`.
        degrees: Side of a block (a square of latitude and longitude) in degrees.
        resample: `blocks` draws whole blocks, as nearby patches are not independent. `patches` draws single patches.
        seed: Seed of the bootstrap draws.
    """

    by: tuple[str, ...] = ()
    bootstrap: int = 0
    least: int = 30
    degrees: float = 1.0
    resample: Resampled = "blocks"
    seed: int = 0


@dataclass(frozen=True)
class GroupRow:
    """Hold one score (such as accuracy) of one network on one group of patches (such as a country).

    Attributes:
        network: `student` or `teacher`.
        column: Column whose values are the groups, such as `country`. `all` stands for all patches together.
        group: Value of the column. `others` is the pool of small groups. `unknown` has the patches without a value.
        patches: Number of scored patches of the group, those with a known label.
        blocks: Number of blocks of places in which these patches lie; number of patches if the bootstrap draws patches.
        score: Name of the score.
        value: The score; NaN if it is not defined.
        low: Lower end of the score's 95 % interval; None without an interval.
        high: Upper end of this interval; None without an interval.
    """

    network: str
    column: str
    group: str
    patches: int
    blocks: int
    score: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class WorstGroup:
    """Name the worst and the best group of a column, such as two countries, and the gap between their scores.

    Attributes:
        network: `student` or `teacher`.
        column: Column whose values are the groups, such as `country`.
        score: Name of the score that compares the groups: the one that chooses checkpoints.
        worst: The group with the lowest score.
        value: Score of the worst group.
        best: The group with the highest score.
        gap: Score of the best group minus score of the worst one.
        low: Lower end of the gap's 95 % interval, for these two groups; None if one of them has no interval.
        high: Upper end of this interval.
    """

    network: str
    column: str
    score: str
    worst: str
    value: float
    best: str
    gap: float
    low: float | None = None
    high: float | None = None


@dataclass
class GroupScores:
    """Hold the scores of all networks of a run on all groups of its evaluated patches, such as countries.

    Attributes:
        rows: One entry for each network, column, group and score.
        worst: One entry for each network and column with at least two scored groups.
        notes: Sentences on groups that were pooled or left out, and on intervals that were not computed.
    """

    rows: list[GroupRow] = field(default_factory=list)
    worst: list[WorstGroup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return lines of text for the user: the worst group of each network and column, then the notes."""
        found = []
        for one in self.worst:
            ends = "" if one.low is None else f" ({one.low:.4f} to {one.high:.4f})"
            found.append(
                f"{one.network}, worst {one.column}: {one.worst} with {one.score} {one.value:.4f}, "
                f"{one.gap:.4f}{ends} below {one.best}"
            )
        return [*found, *self.notes]


@dataclass(frozen=True)
class Units:
    """Hold the units that a bootstrap draws with replacement: blocks of patches, or single patches.

    Attributes:
        names: Names of the units.
        of_patch: [n] number of the unit to which each patch belongs.
        draws: [draws, units] how often each bootstrap draw takes each unit; None if no intervals are computed.
    """

    names: NDArray[np.str_]
    of_patch: Ints
    draws: AnyArray | None


def check_options(data: RunData, part: str, options: GroupOptions) -> None:
    """Check before an evaluation that its groups can be made and their intervals can be computed.

    Args:
        data: Open data: the store, the split and the metadata.
        part: Part of the data to evaluate, such as `test`.
        options: How to make the groups and intervals.

    Raises:
        ConfigError: An option is out of range, the store lacks a column, a column cannot make groups, or the patches
            of the part lie in too few blocks for an interval.
        DataError: The part has no patches.
    """
    rows = data.split.part(part)
    if not len(rows):
        raise DataError(f"the split has no {part} patches, so there are no groups to score. Use another data.split.")
    if options.bootstrap < 0 or 0 < options.bootstrap < 100:
        raise ConfigError(
            f"--bootstrap: give 100 draws or more (1000 is usual), or 0 for none; not {options.bootstrap}"
        )
    require_side(options.degrees)
    if options.least < 1:
        raise ConfigError("--least: give 1 or more")
    if options.resample not in ("blocks", "patches"):
        raise ConfigError(f"--resample '{shown(str(options.resample))}': give blocks or patches")
    for column in options.by:
        values_of(data, rows, column, options.degrees)
    if options.bootstrap:
        blocks = len(np.unique(units_of(data, rows, options, draw=False).of_patch))
        if blocks < LEAST_BLOCKS:
            raise ConfigError(
                f"--bootstrap: the {len(rows):,} {part} patches lie in {blocks} blocks of {options.degrees:g} degrees, "
                f"and an interval needs {LEAST_BLOCKS}. Give smaller blocks (--degrees), or --resample patches, whose "
                "intervals are too short if near patches are alike."
            )


def units_of(data: RunData, rows: Ints, options: GroupOptions, draw: bool = True) -> Units:
    """Divide patches into the units that a bootstrap draws: blocks of nearby patches, or single patches.

    A patch without a place is a block of its own.

    Args:
        data: Open data: the store and the metadata.
        rows: [n] row numbers of the patches in the store.
        options: Kind of unit, side of a block, number of draws.
        draw: False makes no bootstrap draws.

    Returns:
        The units, with bootstrap draws of them if `options` ask for intervals.

    Raises:
        ConfigError: Blocks are wanted, but no patch has a place.
    """
    if options.resample == "patches":
        names, of_patch = rows.astype(np.str_), np.arange(len(rows))
    else:
        cells = squares_of(data, rows, options.degrees)
        lost = cells == ""
        if lost.all():
            raise ConfigError(
                f"{data.store.path} has no coordinates, so there are no blocks of places. Give --resample patches: its "
                "intervals are too short if near patches are alike."
            )
        if lost.any() and draw:
            LOG.warning("%d of %d patches have no place: each is a block of its own", lost.sum(), len(lost))
        cells[lost] = np.char.add("row ", rows[lost].astype(np.str_))
        names, of_patch = np.unique(cells, return_inverse=True)
    wanted = options.bootstrap if draw else 0
    return Units(names, of_patch.reshape(-1), draw_blocks(len(names), wanted, options.seed) if wanted else None)


def score_groups(results: Mapping[str, Evaluation], data: RunData, options: GroupOptions) -> GroupScores:
    """Score all networks of a run on all evaluated patches together, and on each group of them (such as a country).

    All groups use the same bootstrap draws, so that the gap between two groups has an interval too.

    Args:
        results: Evaluation of each network on the same patches, by the name of the network.
        data: Open data: the store, the metadata and the labels.
        options: How to make the groups and intervals.

    Returns:
        The scores, the worst group of each column, and notes for the user.
    """
    rows = next(iter(results.values())).rows
    targets = data.targets[torch.from_numpy(rows)]
    labeled = (targets != IGNORED).any(1).numpy()
    units, found = units_of(data, rows, options), GroupScores()
    found.notes.append(_words_on_units(units, options))
    groups: list[tuple[str, str, NDArray[np.bool_]]] = [(WHOLE, WHOLE, np.ones(len(rows), bool))]
    pools: dict[str, str] = {}
    for column in options.by:
        values = values_of(data, rows, column, options.degrees)
        values, pools[column] = _pooled(values, labeled, column, options, found.notes)
        groups += [(column, str(name), values == name) for name in np.unique(values)]
    for network, result in results.items():
        drawn: dict[tuple[str, str], NDArray[np.float64]] = {}
        for column, name, chosen in groups:
            own = np.flatnonzero(chosen & labeled)
            if not len(own):
                found.notes.append(f"{column} {name}: none of its {chosen.sum():,} patches has a label: no scores")
                continue
            part = _Group(network, column, name, result, targets, own)
            drawn[column, name] = _score_group(part, data, units, found)
        found.worst += _worst(network, found.rows, drawn, headline(data.space), pools)
    found.notes[:] = dict.fromkeys(found.notes)
    return found


def _words_on_units(units: Units, options: GroupOptions) -> str:
    if units.draws is None:
        return "no intervals were asked for (--bootstrap 1000)"
    if options.resample == "patches":
        return f"intervals: 95 %, {len(units.draws):,} draws of single patches: too short if near patches are alike"
    return (
        f"intervals: 95 %, {len(units.draws):,} draws of {len(units.names):,} blocks of {options.degrees:g} degrees "
        "with test patches"
    )


def _pool_name(values: NDArray[np.str_]) -> str:
    """Return a name for the pool of small groups that none of the groups `values` has: `others`, if it is free."""
    name = POOLED
    while name in values:
        name = f"{name} (pooled)"
    return name


def _pooled(
    values: NDArray[np.str_], labeled: NDArray[np.bool_], column: str, options: GroupOptions, notes: list[str]
) -> tuple[NDArray[np.str_], str]:
    """Replace the names of groups that have fewer than `options.least` labeled patches by the name of the pool.

    Append a sentence to `notes` that lists these groups.

    Args:
        values: [n] name of the group to which each patch belongs.
        labeled: [n] True if the patch has a known label.
        column: Column whose values are the groups, for the note.
        options: Smallest number of labeled patches of a group.
        notes: Notes for the user.

    Returns:
        [n] names of groups, and the name of the pool.
    """
    names, number = np.unique(values, return_inverse=True)
    pool = _pool_name(values)
    counts = np.bincount(number.reshape(-1)[labeled], minlength=len(names))
    small = counts < options.least
    if not small.any():
        return values, pool
    shown_names = ", ".join(
        f"{name} ({count})" for name, count in zip(names[small][:8], counts[small][:8], strict=True)
    )
    more = f" and {small.sum() - 8} more" if small.sum() > 8 else ""
    notes.append(
        f"{column}: groups with fewer than {options.least} labeled patches are pooled as {pool}: {shown_names}{more}"
    )
    return np.where(np.isin(values, names[small]), pool, values), pool


@dataclass(frozen=True)
class _Group:
    """Name a network and a group of patches to score, with the network's predictions and all labels.

    `own` has the positions of the group's labeled patches among all patches of `result`.
    """

    network: str
    column: str
    name: str
    result: Evaluation
    targets: torch.Tensor
    own: Ints


def _score_group(group: _Group, data: RunData, units: Units, found: GroupScores) -> NDArray[np.float64]:
    """Append all scores of a network on one group, with their bootstrap intervals, to the rows of `found`.

    `units` has the draws. If the group can have no intervals, append a note with the reason to the notes of `found`.

    Returns:
        [draws] score that chooses checkpoints, for each bootstrap draw; empty if the group has no intervals.
    """
    chosen = torch.from_numpy(group.own)
    logits, targets = group.result.logits[chosen].double(), group.targets[chosen]
    scores = score(logits, targets, data.space).scores
    blocks = len(np.unique(units.of_patch[group.own]))
    drawn: dict[str, NDArray[np.float64]] = {}
    if units.draws is not None and blocks < LEAST_BLOCKS:
        found.notes.append(
            f"{group.column} {group.name}: only {blocks} blocks, no interval ({LEAST_BLOCKS} are needed)"
        )
    elif units.draws is not None and not bool(torch.isfinite(logits).all()):
        found.notes.append(
            f"{group.column} {group.name}: predictions of the {group.network} are not finite: no interval"
        )
    elif units.draws is not None:
        drawn = BlockScores(logits, targets, data.space, units.of_patch[group.own]).scores(units.draws)
    for name, value in scores.items():
        interval = percentiles(drawn[name]) if name in drawn and np.isfinite(value) else (None, None)
        about = (group.network, group.column, group.name, len(group.own), blocks)
        found.rows.append(GroupRow(*about, name, value, *interval))
    return drawn.get(headline(data.space), np.zeros(0))


def _worst(
    network: str,
    rows: Sequence[GroupRow],
    drawn: Mapping[tuple[str, str], NDArray[np.float64]],
    name: str,
    pools: Mapping[str, str],
) -> list[WorstGroup]:
    """Find a network's worst and best group of each column, with the 95 % interval of the gap between them.

    Args:
        network: `student` or `teacher`.
        rows: Scores of all networks on all groups.
        drawn: [draws] score `name` in each bootstrap draw, by column and group; empty if a group has no interval.
        name: Name of the score that compares the groups.
        pools: Name of the pool of small groups, by column.

    Returns:
        One entry for each column with at least two groups whose score is finite. The pool of small groups is none of
            them.
    """
    sign = -1 if name in LOWER_IS_BETTER else 1
    found = []
    for column in dict.fromkeys(row.column for row in rows if row.column != WHOLE):
        own = [row for row in rows if (row.network, row.column, row.score) == (network, column, name)]
        own = [row for row in own if np.isfinite(row.value) and row.group != pools[column]]
        if len(own) < 2:
            continue
        ranked = sorted(own, key=lambda row: sign * row.value)
        worst, best = ranked[0], ranked[-1]
        low, best_draws = drawn[column, worst.group], drawn[column, best.group]
        both = len(low) and len(best_draws)
        ends = percentiles(best_draws - low) if both else (None, None)
        gap = best.value - worst.value
        found.append(WorstGroup(network, column, name, worst.group, worst.value, best.group, gap, *ends))
    return found
