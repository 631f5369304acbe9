"""Compare recipes by their evaluated runs, paired over seeds and over test blocks: difference, interval, p-value.

Two runs with the same seed saw the same labels, and were scored on the same patches. So the difference of their scores
varies much less than each score. The interval comes from a bootstrap, which draws seeds and blocks (squares of latitude
and longitude) with replacement. For the p-value, the two recipes' predictions are swapped in random blocks: p tells how
often chance alone gives such a large difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.analysis.run_views import RunView, read_run
from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.config import Tree
from stssl.base.errors import ConfigError, RunError
from stssl.base.labels import LabelSpace
from stssl.recipes.recipe import Recipe
from stssl.scoring.block_scores import require_side
from stssl.scoring.groups import LEAST_BLOCKS
from stssl.scoring.metrics import headline
from stssl.scoring.paired_scores import PredictionPair, compare_predictions, holm_corrected, place_blocks
from stssl.training.run_folder import RunFolder

Seeds = tuple[int, int]
"""Seed of a run, and seed of its drawn labels."""


@dataclass(frozen=True)
class ComparisonOptions:
    """Say by which network, score and patches `stssl compare` compares recipes, and how it computes intervals.

    Attributes:
        part: Part of the data whose evaluation is compared, such as `test`.
        network: Network whose scores are compared: `student` or `teacher`.
        score: Name of the score to compare; None takes the one that chooses checkpoints.
        draws: Number of bootstrap draws for the intervals, and of random swaps for the p-values.
        degrees: Side of a block (a square of latitude and longitude) in degrees.
        seed: Seed of the draws and swaps.
    """

    part: str = "test"
    network: str = "student"
    score: str | None = None
    draws: int = 1000
    degrees: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """Hold the difference between the scores of two recipes, with its interval and p-value.

    Attributes:
        recipe: First recipe, by the name of its first run.
        against: Other recipe, by the name of its first run.
        score: Name of the score.
        runs: Number of pairs of runs with the same seeds.
        blocks: Number of blocks (squares of latitude and longitude) in which the evaluated patches lie.
        value: Mean score of the first recipe's runs.
        other: Mean score of the other recipe's runs.
        difference: `value` minus `other`.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of this interval.
        p: Probability that chance alone gives a difference at least as large, two-sided.
        holm: `p` after Holm's correction for the number of compared recipes.
    """

    recipe: str
    against: str
    score: str
    runs: int
    blocks: int
    value: float
    other: float
    difference: float
    low: float
    high: float
    p: float
    holm: float

    @property
    def significant(self) -> bool:
        """Return True if the recipes differ beyond chance: the interval excludes zero, and `holm` is below 0.05."""
        return self.holm < 0.05 and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class _Scored:
    """Hold what a comparison needs of an evaluated run: name, recipe, seeds, contents of files, classes, and arrays.

    `recipe` is a text that is equal for runs that differ only in their seeds. `arrays` has labels and logits by name.
    """

    name: str
    recipe: str
    seeds: Seeds
    view: RunView
    space: LabelSpace
    arrays: Mapping[str, NDArray[Any]]


def compare_runs(
    runs: Sequence[str | Path], against: Sequence[str | Path], options: ComparisonOptions | None = None
) -> list[Difference]:
    """Compare each recipe that `runs` were trained with to the recipe that the runs of `against` were trained with.

    Runs that differ in nothing but `seed`, `labels.seed` and where they ran are runs of one recipe.

    Args:
        runs: Folders of evaluated runs, of one or several recipes.
        against: Folders of evaluated runs of one recipe, with the same seeds.
        options: What to compare, and how to compute intervals.

    Returns:
        For each recipe of `runs`, the difference of its mean score from that of the recipe of `against`.

    Raises:
        ConfigError: The seeds differ, `against` has several recipes, the score is unknown, or there are too few blocks.
        RunError: A run was not evaluated, or the runs have different stores, splits or classes.
    """
    options = options or ComparisonOptions()
    if options.draws < 100:
        raise ConfigError(f"--draws: give 100 or more, not {options.draws}")
    require_side(options.degrees)
    if not runs or not against:
        raise ConfigError("give at least one run before --against, and one after it")
    groups, others = (_by_recipe([_read(path, options) for path in paths]) for paths in (runs, against))
    if len(others) > 1:
        names = ", ".join(group[0].name for group in others.values())
        raise ConfigError(f"--against: {names} are of different recipes: give runs of one recipe that differ in seeds")
    base = next(iter(others.values()))
    first = base[0]
    for one in [one for group in (*groups.values(), base) for one in group]:
        _require_same(first, one, options.part)
    blocks = _blocks(first, options)
    found = [_compare(_paired(group, base), blocks, options) for group in groups.values()]
    return _corrected(found)


def compare_groups(
    groups: Sequence[Sequence[str | Path]], against: Sequence[str | Path], options: ComparisonOptions
) -> list[Difference]:
    """Compare several recipes with one other recipe, in pairs of runs with the same seeds.

    To save memory, load the runs of only two recipes at a time.

    Args:
        groups: Folders of evaluated runs, one list for each recipe.
        against: Folders of evaluated runs of the other recipe.
        options: What to compare, and how to compute intervals.

    Returns:
        For each recipe of `groups`, the difference of its mean score from that of the recipe of `against`.

    Raises:
        ConfigError: Two recipes cannot be compared, for example because the seeds of their runs differ.
        RunError: Two recipes were not scored on the same patches.
    """
    return _corrected([compare_runs(paths, against, options)[0] for paths in groups])


def _read(path: str | Path, options: ComparisonOptions) -> _Scored:
    view, folder = read_run(path), RunFolder.existing(path)
    if options.part not in view.parts:
        raise RunError(f"{path} has no scores of {options.part}: run `stssl evaluate {path} --split {options.part}`")
    networks = view.parts[options.part].networks
    if options.network not in networks:
        raise ConfigError(f"--network: {path} has no {options.network}. It has: {', '.join(networks)}.")
    recipe = folder.recipe_as(Recipe)
    tree: Tree = recipe.identity()
    tree.pop("seed", None)
    labels = {name: value for name, value in recipe.labels.model_dump().items() if name != "seed"}
    space = LabelSpace(tuple(networks[options.network].per_class), view.multilabel)
    key = repr({**tree, "labels": labels})
    return _Scored(view.name, key, (recipe.seed, recipe.labels.seed), view, space, view.arrays[options.part])


def _by_recipe(runs: Sequence[_Scored]) -> dict[str, list[_Scored]]:
    """Return the runs of each recipe, by the recipe's text. The runs of one recipe must differ in their seeds.

    Raises:
        ConfigError: Two runs of one recipe have the same seeds.
    """
    found: dict[str, list[_Scored]] = {}
    for run in runs:
        own = found.setdefault(run.recipe, [])
        twin = next((other for other in own if other.seeds == run.seeds), None)
        if twin:
            raise ConfigError(f"{twin.name} and {run.name} are of one recipe and one seed: leave out one of them")
        own.append(run)
    return found


def _require_same(first: _Scored, other: _Scored, part: str) -> None:
    """Check that two runs can be compared: store, classes, scored patches and labels of these patches are the same.

    `part` is the scored part of the data, such as `test`, for the message.

    Raises:
        RunError: One of these differs. The message says which.
    """
    stores = [one.view.record.store.fingerprint if one.view.record else None for one in (first, other)]
    both = f"{first.name} and {other.name}"
    if stores[0] != stores[1]:
        raise RunError(f"{both} are of different stores, so their scores cannot be compared")
    if first.space != other.space:
        raise RunError(f"{both} have different classes, so their scores cannot be compared")
    if not np.array_equal(first.arrays["rows"], other.arrays["rows"]):
        raise RunError(f"{both} have different {part} patches (data.split), so their scores cannot be compared")
    if not np.array_equal(first.arrays["targets"], other.arrays["targets"]):
        raise RunError(f"{both} have different labels of the {part} patches, so their scores cannot be compared")


def _paired(runs: Sequence[_Scored], base: Sequence[_Scored]) -> list[tuple[_Scored, _Scored]]:
    """Pair each run of a recipe with the run of another recipe (`base`) that has the same seeds; return the pairs.

    Raises:
        ConfigError: The recipes have runs of different seeds.
    """
    own, others = ({run.seeds: run for run in group} for group in (runs, base))
    if own.keys() != others.keys():
        words = [", ".join(str(seed) for seed, _ in sorted(group)) for group in (own, others)]
        raise ConfigError(
            f"{runs[0].name} and {base[0].name} have different seeds ({words[0]} and {words[1]}; labels.seed counts "
            "too): runs are compared in pairs of one seed"
        )
    return [(own[seeds], others[seeds]) for seeds in sorted(own)]


def _blocks(run: _Scored, options: ComparisonOptions) -> Ints:
    """Return for each evaluated patch of `run` the number [patches] of its block, a square of latitude and longitude.

    A patch without a place is a block of its own. `options` have the side of a block in degrees.

    Raises:
        ConfigError: The labeled patches lie in too few blocks for an interval.
    """
    blocks = place_blocks(run.arrays["metadata"][:, :2], options.degrees)
    labeled = (run.arrays["targets"] != IGNORED).any(1)
    count = len(np.unique(blocks[labeled]))
    if count < LEAST_BLOCKS:
        raise ConfigError(
            f"the {options.part} patches lie in {count} blocks of {options.degrees:g} degrees, and an interval needs "
            f"{LEAST_BLOCKS}: give smaller blocks (--degrees)"
        )
    return blocks


def _compare(pairs: Sequence[tuple[_Scored, _Scored]], blocks: Ints, options: ComparisonOptions) -> Difference:
    """Return the difference between two recipes' mean scores, with interval and p-value, without Holm's correction.

    Args:
        pairs: Runs of both recipes, in pairs with the same seeds.
        blocks: [patches] number of the block in which each evaluated patch lies.
        options: What to compare, and how to compute intervals.
    """
    one, other = pairs[0]
    name, key = options.score or headline(one.space), f"logits_{options.network}"
    targets = torch.from_numpy(one.arrays["targets"])
    sets = [
        PredictionPair(
            torch.from_numpy(own.arrays[key]),
            torch.from_numpy(base.arrays[key]),
            targets,
            blocks,
            (own.name, base.name),
        )
        for own, base in pairs
    ]
    found = compare_predictions(sets, one.space, name, draws=options.draws, seed=options.seed)
    about = (one.name, other.name, name, len(pairs), len(np.unique(blocks)))
    return Difference(*about, found.value, found.other, found.difference, found.low, found.high, found.p, found.p)


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences in the order of `found`, each with `holm` set: its p-value, corrected for their number."""
    corrected = holm_corrected([one.p for one in found])
    return [replace(one, holm=p) for one, p in zip(found, corrected, strict=True)]
