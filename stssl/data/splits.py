"""Split patches into training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from stssl.base.arrays import Ints
from stssl.base.config import Config, Seed
from stssl.base.errors import ConfigError, DataError, shown
from stssl.base.logs import LOG
from stssl.base.paths import ColumnName, Location, Word
from stssl.data.columns import OWN_SPLIT, Columns
from stssl.data.known_splits import LongitudeSplit, RebenSplit, longitude_codes, reben_codes
from stssl.store.lists import as_text, rows_named
from stssl.store.schema import UNUSABLE, ColumnArray

PARTS = ("train", "validation", "test")


class RandomSplit(Config):
    """Divide patches at random. Test patches then lie beside training patches, often at the same place.

    Attributes:
        validation: Share of the patches for validation.
        test: Share of the patches for test.
        seed: Seed of the random numbers that assign the patches.
    """

    name: Literal["random"]
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Seed = 0


class BlockSplit(Config):
    """Divide patches by place: assign each square of latitude and longitude at random to one part of the data.

    The parts are training, validation and test. So training never sees a square with test patches.

    Attributes:
        degrees: Side of the squares in degrees.
        validation: Share of the patches for validation. Squares stay whole, so the share is approximate.
        test: Share of the patches for test, also approximate.
        seed: Seed of the random numbers that assign the squares.
    """

    name: Literal["blocks"]
    degrees: Annotated[float, Field(gt=0)] = 1.0
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Seed = 0


class LeaveOutSplit(Config):
    """Test on the patches that have certain values in a column, such as one country or season. Train on the others.

    Attributes:
        column: Name of the column.
        values: Values in this column that make a patch a test patch.
        validation: Share of the other patches for validation. It consists of whole squares of latitude and longitude.
        degrees: Side of the squares in degrees.
        seed: Seed of the random numbers that assign the patches.
    """

    name: Literal["leave_out"]
    column: ColumnName
    values: Annotated[tuple[Word, ...], Field(min_length=1)]
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    degrees: Annotated[float, Field(gt=0)] = 0.1
    seed: Seed = 0


class ListSplit(Config):
    """Take training, validation and test patches from three files. Each file lists patch names, one in each line.

    Attributes:
        train: File with the names of the training patches.
        validation: File with the names of the validation patches.
        test: File with the names of the test patches.
    """

    name: Literal["lists"]
    train: Location
    validation: Location
    test: Location


SplitConfig = (
    str
    | Annotated[
        BlockSplit | RandomSplit | LeaveOutSplit | ListSplit | LongitudeSplit | RebenSplit,
        Field(discriminator="name"),
    ]
)


@dataclass(frozen=True)
class Split:
    """Hold the store rows of the training, validation and test patches, each sorted from low to high."""

    train: Ints
    validation: Ints
    test: Ints

    def part(self, name: str) -> Ints:
        """Return the store rows of one part of the split: `train`, `validation` or `test`.

        Raises:
            ConfigError: The split has no part with this name.
        """
        if name not in PARTS:
            raise ConfigError(f"unknown part '{name}' of a split: give one of {', '.join(PARTS)}")
        return np.asarray(getattr(self, name))


def make_split(store: Columns, config: SplitConfig, exclude: tuple[str, ...] = (), validated: bool = True) -> Split:
    """Divide the usable rows of a store into training, validation and test, and return the rows of each part.

    Args:
        store: Store with the columns.
        config: Name of a stored split; `random`, `blocks` or `longitude` for these rules with default settings; or a
            rule with its settings.
        exclude: Boolean columns, such as `seasonal_snow`. Leave out the rows that are True in any of them.
        validated: False if the validation part may be empty.

    Raises:
        ConfigError: The store has no such split or column, or its squares are too large for a part. The message lists
            the existing splits or columns, or says what to lower.
        DataError: Training or validation would be empty, or a list names no patch of the store.
    """
    if isinstance(config, str) and config in _NAMED and config not in store.split_names:
        config = _NAMED[config]
    codes = _stored(store, config) if isinstance(config, str) else _RULES[type(config)](store, config)
    # A store has rows for unusable patches too, such as damaged ones: leave them out of all parts.
    keep = ~np.isin(store.column("error_code"), UNUSABLE)
    for name in exclude:
        flags = np.asarray(store.column(name))
        if flags.dtype != bool:
            raise ConfigError(f"data.exclude: {name} of {store.path} is no column of flags, such as seasonal_snow")
        if not flags.any():
            LOG.warning("data.exclude: no patch of %s has %s set, so it leaves out nothing", store.path, name)
        keep &= ~flags
    parts = [np.flatnonzero(keep & (codes == code)) for code in range(3)]
    needed = ("train", "validation") if validated else ("train",)
    for name, rows in zip(PARTS, parts, strict=True):
        # Accept an empty test part: training needs none and only warns, and the evaluation raises an error of its own.
        if len(rows) == 0 and name in needed:
            last = " or set evaluation.checkpoint=last and schedule.patience=null" if name == "validation" else ""
            raise _empty(store.path, config, name, last)
    return Split(*parts)


def _empty(path: str, config: SplitConfig, part: str, last: str) -> DataError | ConfigError:
    """Return the error for a split that leaves a part of the data, such as `validation`, without patches.

    Args:
        path: Path of the store.
        config: Name of a stored split, or a rule.
        part: Name of the part without patches.
        last: Further advice for the end of the message, or an empty text. The message itself advises another split.
    """
    if isinstance(config, BlockSplit | LeaveOutSplit):
        return ConfigError(
            f"data.split: {config.name} leaves no patch for {part}: {path} has too few squares of {config.degrees:g} "
            f"degrees, and a square goes to one part. Give smaller ones, such as "
            f"data.split.degrees={config.degrees / 10:g}, or another data.split{last}."
        )
    name = config if isinstance(config, str) else config.name
    return DataError(
        f"data.split: {shown(name)} leaves no patch for {part} in {path}. Choose another data.split{last}."
    )


def shares_asked(config: SplitConfig) -> dict[str, float]:
    """Return the shares (0..1) of patches that a split rule asks for but may miss, by part: `validation`, `test`.

    Callers warn about missed shares. The rules are `random`, `blocks` and `leave_out`. The share of `leave_out` counts
    among the patches that are not test patches. For other splits, return an empty dict: stored splits and lists ask for
    no share, and `longitude` cannot miss its shares.

    Args:
        config: Name of a split, or a rule with its settings.
    """
    if isinstance(config, str):
        config = _NAMED.get(config, config)
    if isinstance(config, BlockSplit | RandomSplit):
        return {"validation": config.validation, "test": config.test}
    return {"validation": config.validation} if isinstance(config, LeaveOutSplit) else {}


def _stored(store: Columns, name: str) -> ColumnArray:
    """Return the codes of a stored split for the N patches of a store, [N]: 0 training, 1 validation, 2 test.

    Args:
        store: The store.
        name: Name of the split.

    Raises:
        ConfigError: The store has no split with this name.
    """
    if name not in store.split_names:
        places = np.isfinite(np.asarray(store.column("lat"), float)).any()
        known = ", ".join((*store.split_names, *(_NAMED if places else ["random"])))
        without = "" if places else " (no places, so no split by place)"
        raise ConfigError(
            f"data.split: {store.path} has no split '{shown(name)}'. It has: {known}{without}. {OWN_SPLIT}"
        )
    return store.column(f"split_{name}")


def _block_ids(store: Columns, degrees: float) -> tuple[Ints, Ints]:
    """Divide the earth into squares of latitude and longitude, and find the square of each patch with a known place.

    Args:
        store: Store with the columns of latitude and longitude; NaN if a place is missing.
        degrees: Side of the squares in degrees.

    Returns:
        Two arrays: the store rows of the n patches with a known place [n], and the numbers of their squares [n].

    Raises:
        DataError: No patch has a known place.
    """
    lat, lon = (np.asarray(store.column(name), float) for name in ("lat", "lon"))
    rows = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    if len(rows) == 0:
        raise DataError(f"data.split: {store.path} has no coordinates, so it cannot be split by place. {OWN_SPLIT}")
    if len(rows) < store.size:
        LOG.warning(
            "%s: %d of %d patches have no place, so no block of the split takes them",
            store.path,
            store.size - len(rows),
            store.size,
        )
    cells = np.stack([np.floor(lat[rows] / degrees), np.floor(lon[rows] / degrees)], 1).astype(np.int64)
    return rows, np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _random(store: Columns, config: RandomSplit) -> Ints:
    """Assign N patches at random to training, validation or test.

    Return [N] codes: 0 training, 1 validation, 2 test.
    """
    rows = np.arange(store.size)
    return _deal(store.size, rows, rows, {2: config.test, 1: config.validation}, config.seed)


def _blocks(store: Columns, config: BlockSplit) -> Ints:
    """Assign N patches to training, validation or test by squares of the map: all patches of a square get one part.

    Return [N] codes: 0 training, 1 validation, 2 test, 255 for patches without coordinates.
    """
    rows, blocks = _block_ids(store, config.degrees)
    return _deal(store.size, rows, blocks, {2: config.test, 1: config.validation}, config.seed)


def _deal(size: int, rows: Ints, blocks: Ints, shares: dict[int, float], seed: int) -> Ints:
    """Assign squares of the map to training, validation and test. Return for each store row the code of its part.

    Shuffle the squares. Give squares to each part of `shares` in turn until it has its share. The other squares are for
    training (code 0).

    Args:
        size: Number of rows (patches) in the store.
        rows: [n] rows whose patches lie in a square. All other rows get the code 255, "no part".
        blocks: [n] number of the square of each of these rows.
        shares: Share of these rows for a part, by code of the part: 1 for validation, 2 for test.
        seed: Seed of the shuffle.
    """
    counts = np.bincount(blocks)
    order = np.random.default_rng(seed).permutation(len(counts))
    # Give a square to the part in whose share its middle patch lies: this brings the shares nearest to the wanted ones.
    reached = np.cumsum(counts[order]) - counts[order] / 2
    block_codes = np.zeros(len(counts), np.int64)
    start = 0.0
    for code, share in shares.items():
        stop = start + share * len(rows)
        block_codes[order[(reached >= start) & (reached < stop)]] = code
        start = stop
    # Use 255 for "no part" as stored splits do: the same code then reads both.
    codes = np.full(size, 255, np.int64)
    codes[rows] = block_codes[blocks]
    return codes


def _leave_out(store: Columns, config: LeaveOutSplit) -> Ints:
    """Assign N patches to training, validation or test by the values in a column, such as countries.

    Patches with one of the given values are for test. Of the others, whole squares of the map are for validation.
    Return [N] codes: 0 training, 1 validation, 2 test, 255 for patches without a place that are not for test.
    """
    values = as_text(store.column(config.column))
    if values.ndim > 1:
        raise ConfigError(f"data.split.column: {config.column} has many values a patch. Give one such as country.")
    held_out = np.isin(values, config.values)
    missing = sorted(set(config.values) - set(values[held_out]))
    if missing:
        known = ", ".join(sorted(set(values))[:30])
        raise ConfigError(
            f"data.split.values: {config.column} is never {', '.join(missing)} in {store.path}. It has: {known}"
        )
    rows, blocks = _block_ids(store, config.degrees)
    # Give whole squares to validation. Otherwise, validation patches would lie beside training patches and look almost
    # the same, and the choice of the best checkpoint would reward memorized training patches.
    inside = ~held_out[rows]
    kept = np.unique(blocks[inside], return_inverse=True)[1].reshape(-1)
    codes = _deal(store.size, rows[inside], kept, {1: config.validation}, config.seed)
    codes[held_out] = 2
    return codes


def _lists(store: Columns, config: ListSplit) -> Ints:
    """Assign N patches to training, validation or test by the patch names in three files.

    Return [N] codes: 0 training, 1 validation, 2 test, 255 for patches that no file names.

    Raises:
        DataError: Two files name the same patch, or a file cannot be used.
    """
    names = as_text(store.column("patch_id"))
    codes = np.full(store.size, 255, np.int64)
    for code, part in enumerate(PARTS):
        rows = rows_named(names, getattr(config, part), store.path)
        twice = rows[codes[rows] != 255]
        if len(twice):
            other = getattr(config, PARTS[codes[twice[0]]])
            raise DataError(
                f"{getattr(config, part)} names {len(twice)} patches that another part has too (the first: "
                f"{names[twice[0]]}, of {other}): data.split's lists must not overlap"
            )
        codes[rows] = code
    return codes


_RULES: dict[type[Config], Callable[..., Ints]] = {
    BlockSplit: _blocks,
    RandomSplit: _random,
    LeaveOutSplit: _leave_out,
    ListSplit: _lists,
    LongitudeSplit: longitude_codes,
    RebenSplit: reben_codes,
}
_NAMED: dict[str, RandomSplit | BlockSplit | LongitudeSplit] = {
    "random": RandomSplit(name="random"),
    "blocks": BlockSplit(name="blocks"),
    "longitude": LongitudeSplit(name="longitude"),
}
"""Rules that a recipe may name by a word, with their default settings."""
