"""Choose the splits of a study of metadata under shift and its changes of metadata at test, as a store allows them."""

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
from stssl.recipes.run_data import labels_of
from stssl.scoring.block_scores import require_side
from stssl.scoring.changed_metadata import MetadataChange, parse_change, require_known
from stssl.scoring.group_columns import has_groups, has_value
from stssl.scoring.groups import LEAST_BLOCKS
from stssl.scoring.metrics import score_names
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
    """Hold the options of `stssl shift`: the seeds, splits and metadata of a study, and how it computes intervals.

    Attributes:
        seeds: Number of seeds. They count from the recipe's seed.
        splits: Words that name splits: `random`, `blocks`, `longitude`, a column such as `country` or `season` (the
            patches with one of its values are the test patches), a column with its value (`country:Serbia`), or a split
            of the store. None takes those of `USUAL_SPLITS` that the store allows.
        metadata: Changes of the metadata at test, as `stssl evaluate --metadata` takes them. None takes those of
            `USUAL_CHANGES` that the store allows.
        degrees: Side of a block (a square of latitude and longitude) in degrees, for the intervals.
        draws: Number of bootstrap draws for the intervals, and of random swaps for the p-values.
        score: Name of the score by which networks are compared, such as `loss`. None takes the one that chooses
            checkpoints: `accuracy` or `mAP`.
    """

    seeds: int = 5
    splits: tuple[str, ...] | None = None
    metadata: tuple[str, ...] | None = None
    degrees: float = 1.0
    draws: int = 1000
    score: str | None = None


@dataclass(frozen=True)
class ShiftSplit:
    """Describe one split of a study.

    Attributes:
        name: Name of the split on the report page, such as `country Finland`.
        config: Value of the recipe's key `data.split` that makes the split.
        parts: Store rows of each part: `train`, `validation` and `test`.
        inside: True if test places lie among training places. Such a split has no shift.
    """

    name: str
    config: SplitConfig
    parts: Split
    inside: bool

    @property
    def rule(self) -> str | JsonObject:
        """Return the value of the recipe's key `data.split` for JSON files: a name, or a mapping with settings."""
        return self.config if isinstance(self.config, str) else self.config.model_dump(mode="json")

    @property
    def slug(self) -> str:
        """Return the split's name for use in file names: only letters, digits and hyphens."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.name)


@dataclass(frozen=True)
class ShiftSetting:
    """Hold the splits of a study, and the changes of the metadata with which its networks are tested.

    Attributes:
        splits: Splits on which all networks are trained and tested.
        changes: Changes of the metadata at test. The first one is `true`, which changes nothing.
        notes: Sentences for the user on usual splits and changes that were left out, and why.
    """

    splits: tuple[ShiftSplit, ...]
    changes: tuple[MetadataChange, ...]
    notes: tuple[str, ...]


def require_teacher(recipe: Recipe) -> None:
    """Check that a recipe trains a teacher that sees places or dates, as a study of metadata needs it.

    Raises:
        ConfigError: The recipe has no such teacher. The message says what to set.
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
    """Choose the splits of a study and its changes of metadata: those that the user asked for, else usual ones.

    Usual splits and changes that the recipe's store does not allow are left out, with a note.

    Raises:
        ConfigError: An option is out of range, a split, change or score that the user asked for is unknown or not
            possible with the store, or the store allows no split.
        DataError: The store cannot be read.
    """
    if options.seeds < 1 or options.draws < 100:
        raise ConfigError("--seeds needs 1 or more, --draws 100 or more")
    require_side(options.degrees)
    store = Store.open(recipe.data.store)
    known = score_names(labels_of(store, recipe.data.labels).space)
    if options.score is not None and options.score not in known:
        raise ConfigError(f"--score: unknown score '{options.score}'. There are: {', '.join(known)}.")
    named, notes = dict[str, ShiftSplit](), list[str]()
    for word in dict.fromkeys(options.splits or USUAL_SPLITS):
        try:
            split = _split(word, recipe, store)
            # `country` and `country:Serbia` are the same split if `country` leaves Serbia out: train on it only once.
            if split.name not in named:
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
        # The smallest p is 1 / (1 + draws), and Holm multiplies it by the number of comparisons: with fewer draws, no
        # corrected p can be below 0.05.
        raise ConfigError(
            f"--draws: {options.draws} could show no difference in {len(splits)} splits: give {least} or more"
        )
    changes, left = _changes(recipe, store, splits, options)
    return ShiftSetting(splits, changes, (*notes, *left))


def _split(word: str, recipe: Recipe, store: Store) -> ShiftSplit:
    """Make the split of a study that a word of `ShiftOptions.splits` names, such as `blocks` or `country:Serbia`.

    Raises:
        ConfigError: The split is unknown, or it has no test patch.
        DataError: The store cannot be split in this way.
    """
    name, config = _rule(word, recipe, store)
    parts = make_split(store, config, recipe.data.exclude, recipe.evaluation.validated)
    if not len(parts.test):
        raise ConfigError(f"it leaves no test patch in {store.path}")
    return ShiftSplit(name, config, parts, inside=word in ("random", *store.split_names))


def _few_blocks(split: ShiftSplit, store: Store, degrees: float) -> list[str]:
    """Return a note for the user if a split's test patches lie in too few blocks for intervals; else an empty list.

    Args:
        split: Split of the study.
        store: Store that is split.
        degrees: Side of a block (a square of latitude and longitude) in degrees.
    """
    rows = split.parts.test
    blocks = len(np.unique(place_blocks(places_of(store)[rows], degrees)))
    if blocks >= LEAST_BLOCKS:
        return []
    words = f"The {len(rows):,} test patches of split {split.name} lie in {blocks} block{'s' * (blocks != 1)}"
    advice = f" Smaller blocks: --degrees {degrees / 2:g}." if len(rows) >= LEAST_BLOCKS else ""
    return [f"{words} of {degrees:g} degrees, too few for intervals ({LEAST_BLOCKS}).{advice}"]


def places_of(store: Store) -> NDArray[np.float64]:
    """Return latitude and longitude [rows, 2] in degrees of all patches of a store; NaN if missing."""
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
    if not has_groups(store, column):
        raise ConfigError(
            f"{column} is no column of groups. Give one with a word or whole number a patch, such as country"
        )
    if word.endswith(":"):
        raise ConfigError(f"give a value of {column} after the colon, or {column} alone")
    left = value or _usual_value(store, column)
    return f"{column} {left}", LeaveOutSplit(name="leave_out", column=column, values=(left,))


def _usual_value(store: Store, column: str) -> str:
    """Return the value of a column (such as `country`) whose patches a split leaves out of training, to test on them.

    It is the value whose share of all patches is nearest to `TEST_SHARE`.

    Raises:
        ConfigError: The column has many values a patch, or fewer than two different ones.
    """
    values = as_text(store.column(column))
    if values.ndim > 1:
        raise ConfigError(f"{column} has many values a patch. Give a column such as country")
    names, counts = np.unique(values[has_value(store, column)], return_counts=True)
    if len(names) < 2:
        raise ConfigError(f"{store.path} has fewer than two values of {column}")
    return str(names[np.argmin(np.abs(counts / len(values) - TEST_SHARE))])


def _changes(
    recipe: Recipe, store: Store, splits: Sequence[ShiftSplit], options: ShiftOptions
) -> tuple[tuple[MetadataChange, ...], list[str]]:
    """Choose the changes of the metadata at test: those that the user asked for, else usual ones.

    Args:
        recipe: Recipe of the study, which says whether networks see places and dates.
        store: Store with the metadata.
        splits: Splits of the study, with their test patches.
        options: Options of the study, with the changes that the user asked for.

    Returns:
        The changes, and notes on the usual changes that were left out because they would change nothing.

    Raises:
        ConfigError: A change that the user asked for is unknown, or would change nothing.
    """
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
