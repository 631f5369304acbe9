"""Choose what a study of metadata under shift compares: models, changes of metadata, and splits that a store allows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.data.known_splits import LongitudeSplit
from stssl.data.loader import metadata_table
from stssl.data.splits import BlockSplit, LeaveOutSplit, RandomSplit, Split, SplitConfig, make_split
from stssl.recipes.recipe import Recipe
from stssl.scoring.changed_metadata import MetadataChange, parse_change, require_known
from stssl.scoring.groups import LEAST_BLOCKS
from stssl.scoring.paired_scores import place_blocks
from stssl.store.lists import as_text
from stssl.store.store import Store

USUAL_SPLITS = ("random", "blocks", "country", "season")
"""Splits of a study that names none."""
USUAL_CHANGES = ("true", "absent", "shuffled", "moved:500km", "moved:90d")
"""Metadata at test of a study that names none."""
COMPARISONS = 3
"""Number of comparisons in each split that claims rest on."""
TEST_SHARE = 0.2
"""A country or season is left out whose share of the patches is nearest to this one."""


@dataclass(frozen=True)
class ShiftOptions:
    """Say what a study compares, and how.

    Attributes:
        seeds: Number of seeds. They count from the recipe's seed.
        splits: Splits by word: `random`, `blocks`, `longitude`, a column such as `country` or `season` (one value is
            left out), a column with its value (`country:Serbia`), or a split of the store. None takes the usual ones
            that the store allows.
        metadata: Metadata that networks get at test, as `stssl evaluate --metadata` takes it. None takes the usual ones
            that the store allows.
        degrees: Side of a block in degrees, for the intervals.
        draws: Number of draws for the intervals, and of swaps for the p-values.
    """

    seeds: int = 5
    splits: tuple[str, ...] | None = None
    metadata: tuple[str, ...] | None = None
    degrees: float = 1.0
    draws: int = 1000


@dataclass(frozen=True)
class ShiftSplit:
    """Describe one split of a study.

    Attributes:
        name: Name on the page, such as `country Finland`.
        config: Value of `data.split`.
        parts: Store rows of its parts.
        inside: True if test places lie among training places, so nothing is shifted.
    """

    name: str
    config: SplitConfig
    parts: Split
    inside: bool

    @property
    def rule(self) -> str | JsonObject:
        """Return the value of `data.split` as JSON has it."""
        return self.config if isinstance(self.config, str) else self.config.model_dump(mode="json")

    @property
    def slug(self) -> str:
        """Return the name as a part of file names."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.name)


@dataclass(frozen=True)
class ShiftSetting:
    """Hold what a study compares.

    Attributes:
        splits: The splits.
        changes: Metadata at test. The first one is `true`.
        notes: Sentences on what was left out, and why.
    """

    splits: tuple[ShiftSplit, ...]
    changes: tuple[MetadataChange, ...]
    notes: tuple[str, ...]


def require_teacher(recipe: Recipe) -> None:
    """Check that a recipe has a teacher that sees places or dates.

    Raises:
        ConfigError: It has none. The message says what to set.
    """
    encoder = recipe.model.encoder
    if recipe.model.metadata != "teacher":
        raise ConfigError(
            f"{recipe.name} has model.metadata={recipe.model.metadata}, and a study of metadata needs a recipe with a "
            "teacher: give one, such as eurosat/fixmatch_teacher_cpu, or set model.metadata=teacher"
        )
    if not (encoder.place or encoder.date):
        raise ConfigError(
            f"{recipe.name} has model.encoder.place=false and date=false, so its teacher sees nothing. The study makes "
            "this control itself: give the recipe whose teacher sees places or dates."
        )


def choose_setting(recipe: Recipe, options: ShiftOptions) -> ShiftSetting:
    """Find the splits and changes of metadata that a recipe's store allows.

    Raises:
        ConfigError: A split or change that was asked for is unknown or impossible here, or the store allows no split.
        DataError: The store cannot be read.
    """
    if options.seeds < 1 or options.draws < 100 or options.degrees <= 0:
        raise ConfigError("--seeds needs 1 or more, --draws 100 or more, --degrees more than 0")
    store = Store.open(recipe.data.store)
    named, notes = dict[str, ShiftSplit](), list[str]()
    for word in dict.fromkeys(options.splits or USUAL_SPLITS):
        try:
            split = _split(word, recipe, store)
            if split.name not in named:  # `country` and `country:Serbia` may be the same split
                notes += _few_blocks(split, store, options.degrees)
                named[split.name] = split
        except (ConfigError, DataError) as error:
            if error.passing:
                raise
            if options.splits:
                raise ConfigError(f"--splits {word}: {error}") from None
            notes.append(f"The split {word} is left out: {error}")
    splits = tuple(named.values())
    if not splits:
        raise ConfigError(f"{store.path} allows none of the splits {', '.join(USUAL_SPLITS)}: {notes[0]}")
    least = 1 + 20 * COMPARISONS * len(splits)
    if options.draws < least:
        # The smallest p is 1 / (1 + draws), and Holm multiplies it by the number of comparisons.
        raise ConfigError(
            f"--draws: {options.draws} could show no difference in {len(splits)} splits: give {least} or more"
        )
    changes, left = _changes(recipe, store, splits, options)
    return ShiftSetting(splits, changes, (*notes, *left))


def _split(word: str, recipe: Recipe, store: Store) -> ShiftSplit:
    """Make a split from its word.

    Raises:
        ConfigError: The split is unknown, or no patch is left for test.
        DataError: The store cannot be split so.
    """
    name, config = _rule(word, recipe, store)
    parts = make_split(store, config, recipe.data.exclude, recipe.evaluation.validated)
    if not len(parts.test):
        raise ConfigError(f"it leaves no test patch in {store.path}")
    return ShiftSplit(name, config, parts, inside=word in ("random", *store.split_names))


def _few_blocks(split: ShiftSplit, store: Store, degrees: float) -> list[str]:
    """Say in a note if the test patches of a split lie in too few blocks for an interval."""
    rows = split.parts.test
    blocks = len(np.unique(place_blocks(places_of(store)[rows], degrees)))
    if blocks >= LEAST_BLOCKS:
        return []
    words = f"The {len(rows):,} test patches of split {split.name} lie in {blocks} blocks of {degrees:g} degrees"
    return [f"{words}, too few for intervals ({LEAST_BLOCKS}). Smaller blocks: --degrees {degrees / 2:g}."]


def places_of(store: Store) -> NDArray[np.float64]:
    """Return latitude and longitude [rows, 2] in degrees of all rows of a store; NaN if missing."""
    return np.stack([np.asarray(store.column(name), float) for name in ("lat", "lon")], 1)


def _rule(word: str, recipe: Recipe, store: Store) -> tuple[str, SplitConfig]:
    given, (column, _, value) = recipe.data.split, word.partition(":")
    if word in store.split_names:
        return word, word
    if word == "random":
        return word, given if isinstance(given, RandomSplit) else RandomSplit(name="random")
    if word == "blocks":
        return word, given if isinstance(given, BlockSplit) else BlockSplit(name="blocks")
    if word == "longitude":
        return word, given if isinstance(given, LongitudeSplit) else LongitudeSplit(name="longitude")
    if not store.has_column(column):
        known = ", ".join(("random", "blocks", "longitude", *store.split_names))
        raise ConfigError(
            f"{store.path} has no column '{column}' and no such split. There are: {known}, and each column, such as "
            "country or country:Serbia"
        )
    left = value or _usual_value(store, column)
    return f"{column} {left}", LeaveOutSplit(name="leave_out", column=column, values=(left,))


def _usual_value(store: Store, column: str) -> str:
    """Choose the value to leave out: that with a share of the patches nearest to `TEST_SHARE`.

    Raises:
        ConfigError: The column has many values a patch, or fewer than two different ones.
    """
    values = as_text(store.column(column))
    if values.ndim > 1:
        raise ConfigError(f"{column} has many values a patch. Give a column such as country")
    names, counts = np.unique(values[values != ""], return_counts=True)
    if len(names) < 2:
        raise ConfigError(f"{store.path} has fewer than two values of {column}")
    return str(names[np.argmin(np.abs(counts / len(values) - TEST_SHARE))])


def _changes(
    recipe: Recipe, store: Store, splits: Sequence[ShiftSplit], options: ShiftOptions
) -> tuple[tuple[MetadataChange, ...], list[str]]:
    """Read the changes of metadata. Leave out those that change nothing here, unless the user asked for them."""
    columns = (np.asarray(store.column(name)) for name in ("lat", "lon", "day_of_year", "time"))
    table, encoder = metadata_table(*columns), recipe.model.encoder
    seen = {"km": encoder.place, "d": encoder.date, "": True}
    found, notes = [MetadataChange()], list[str]()
    for word in options.metadata or USUAL_CHANGES:
        change = parse_change(word)
        try:
            for split in splits:
                require_known(table[torch.from_numpy(split.parts.test)], change, "test")
            if not seen[change.unit]:
                what = {"km": "place", "d": "date"}[change.unit]
                raise ConfigError(f"model.encoder.{what} is false, so {change} would change nothing")
        except ConfigError as error:
            if options.metadata:
                raise
            notes.append(f"Metadata {change} is left out: {str(error).removeprefix('--metadata: ')}")
            continue
        found += [change] if change not in found else []
    return tuple(found), notes
