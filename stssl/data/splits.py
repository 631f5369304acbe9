"""Which patches train, validate and test, and which of the training patches carry a label."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stssl.config import Config, Seed
from stssl.data.lists import rows_named, text
from stssl.errors import ConfigError, DataError
from stssl.schema import UNUSABLE

Ints = NDArray[np.int64]
PARTS = ("train", "validation", "test")


class Columns(Protocol):
    """What a split needs of a store."""

    path: str

    @property
    def size(self) -> int:
        """N: rows."""
        ...

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the stored splits."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """A metadata array [N] or [N, C]."""
        ...

    def has_column(self, name: str) -> bool:
        """Whether the store has that metadata array."""
        ...


class BlockSplit(Config):
    """Whole latitude-longitude blocks go to one part each, so that test places are new places."""

    name: Literal["blocks"]
    degrees: Annotated[float, Field(gt=0)] = 1.0
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Seed = 0


class LeaveOutSplit(Config):
    """Test on the patches whose column has one of some values, such as a country or a season; train on the others."""

    name: Literal["leave_out"]
    column: str
    values: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    degrees: Annotated[float, Field(gt=0)] = 0.1
    seed: Seed = 0


class ListSplit(Config):
    """Lists of patch names, one a line, for each part."""

    name: Literal["lists"]
    train: str
    validation: str
    test: str


SplitConfig = str | Annotated[BlockSplit | LeaveOutSplit | ListSplit, Field(discriminator="name")]


class LabelsConfig(Config):
    """How many training patches keep their label: exactly one of fraction, per_class, total, list; or all."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    per_class: Annotated[int, Field(ge=1)] | None = None
    total: Annotated[int, Field(ge=1)] | None = None
    list: str | None = None
    allow_missing_classes: bool = False
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_rule(self) -> "LabelsConfig":
        given = [name for name in ("fraction", "per_class", "total", "list") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"give one of fraction, per_class, total, list (given: {', '.join(given)}; set others to null)"
            )
        return self


@dataclass(frozen=True)
class Split:
    """Store rows of each part, ascending."""

    train: Ints
    validation: Ints
    test: Ints

    def part(self, name: str) -> Ints:
        """Rows of the part called `train`, `validation` or `test`.

        Raises:
            ConfigError: Another name.
        """
        if name not in PARTS:
            raise ConfigError(f"unknown part '{name}' of a split: give one of {', '.join(PARTS)}")
        return np.asarray(getattr(self, name))


def make_split(store: Columns, config: SplitConfig, exclude: tuple[str, ...] = ()) -> Split:
    """Divide a store's readable rows.

    Args:
        store: Where the columns are.
        config: The name of a stored split, `blocks`, or a rule.
        exclude: Boolean columns (such as `seasonal_snow`) whose rows take no part.

    Raises:
        ConfigError: The store has no such split or column; names those it has.
        DataError: A part would be empty, or a list names no patch of the store.
    """
    if config == "blocks":
        config = BlockSplit(name="blocks")
    codes = _stored(store, config) if isinstance(config, str) else _RULES[type(config)](store, config)
    keep = ~np.isin(store.column("error_code"), UNUSABLE)
    for name in exclude:
        flags = np.asarray(store.column(name))
        if flags.dtype != bool:
            raise ConfigError(f"data.exclude: {name} of {store.path} is no column of flags, such as seasonal_snow")
        keep &= ~flags
    parts = [np.flatnonzero(keep & (codes == code)) for code in range(3)]
    for name, rows in zip(PARTS, parts, strict=True):
        if len(rows) == 0:
            raise DataError(f"{store.path}: split {config} leaves no patch for {name}. Choose another data.split.")
    return Split(*parts)


def _stored(store: Columns, name: str) -> NDArray[Any]:
    if name not in store.split_names:
        known = ", ".join((*store.split_names, "blocks"))
        raise ConfigError(f"data.split: {store.path} has no split '{name}'. It has: {known}.")
    return store.column(f"split_{name}")


def _block_ids(store: Columns, degrees: float) -> tuple[Ints, Ints]:
    """Rows with a place, and the number of the block that each lies in."""
    lat, lon = (np.asarray(store.column(name), float) for name in ("lat", "lon"))
    rows = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    if len(rows) == 0:
        raise DataError(f"{store.path} has no coordinates, so it cannot be split by place. Choose another data.split.")
    cells = np.stack([np.floor(lat[rows] / degrees), np.floor(lon[rows] / degrees)], 1).astype(np.int64)
    return rows, np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)


def _blocks(store: Columns, config: BlockSplit) -> Ints:
    rows, blocks = _block_ids(store, config.degrees)
    return _deal(store.size, rows, blocks, {2: config.test, 1: config.validation}, config.seed)


def _deal(size: int, rows: Ints, blocks: Ints, shares: dict[int, float], seed: int) -> Ints:
    """Codes [size]: shuffled blocks fill each share in turn, the rest trains, rows without a block take no part."""
    counts = np.bincount(blocks)
    order = np.random.default_rng(seed).permutation(len(counts))
    reached = np.cumsum(counts[order]) - counts[order] / 2
    block_codes = np.zeros(len(counts), np.int64)
    start = 0.0
    for code, share in shares.items():
        stop = start + share * len(rows)
        block_codes[order[(reached >= start) & (reached < stop)]] = code
        start = stop
    codes = np.full(size, 255, np.int64)
    codes[rows] = block_codes[blocks]
    return codes


def _leave_out(store: Columns, config: LeaveOutSplit) -> Ints:
    values = text(store.column(config.column))
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
    inside = ~held_out[rows]
    kept = np.unique(blocks[inside], return_inverse=True)[1].reshape(-1)
    codes = _deal(store.size, rows[inside], kept, {1: config.validation}, config.seed)
    codes[held_out] = 2
    return codes


def _lists(store: Columns, config: ListSplit) -> Ints:
    names = text(store.column("patch_id"))
    codes = np.full(store.size, 255, np.int64)
    for code, part in enumerate(PARTS):
        rows = rows_named(names, getattr(config, part), store.path)
        twice = rows[codes[rows] != 255]
        if len(twice):
            raise DataError(
                f"{getattr(config, part)} names {len(twice)} patches that another part has too (the first: "
                f"{names[twice[0]]}): data.split's lists must not overlap"
            )
        codes[rows] = code
    return codes


_RULES: dict[type[Config], Callable[..., Ints]] = {BlockSplit: _blocks, LeaveOutSplit: _leave_out, ListSplit: _lists}


def draw_labeled(targets: Ints, rows: Ints, config: LabelsConfig, names: NDArray[np.str_] | None = None) -> Ints:
    """Choose the training rows that keep their label.

    Every class that occurs keeps at least one row. `per_class` and `total` deal classes in turn where a row has one
    class; `fraction` draws at random once every class is covered.

    Args:
        targets: [N, C] 1 where a patch has a class.
        rows: Training rows.
        config: The rule and its seed.
        names: Patch names, for `list`.

    Returns:
        Ascending store rows.

    Raises:
        DataError: No training row has a label, or fewer are asked for than there are classes.
    """
    if config.list is not None:
        known = np.array([], str) if names is None else names
        listed = np.intersect1d(rows_named(known, config.list, "the store"), rows)
        if len(listed) == 0:
            raise DataError(f"none of the patches that labels.list {config.list} names is in the training part")
        return listed
    rows = rows[targets[rows].any(1)]
    if len(rows) == 0:
        raise DataError("no training patch has a label: check data.labels and data.split")
    order = np.random.default_rng(config.seed).permutation(rows)
    hits = targets[order].astype(bool)
    if config.per_class is not None:
        chosen = _cover(hits, config.per_class)
    elif config.total is not None:
        chosen = _fill(hits, config.total)
    elif config.fraction is not None:
        chosen = _at_random(hits, max(1, round(config.fraction * len(rows))))
    else:
        chosen = np.arange(len(order))
    return np.sort(order[chosen])


def _cover(hits: NDArray[np.bool_], times: int) -> Ints:
    """Places in the order such that each class has `times` rows (or all it has), rare classes first."""
    chosen = np.zeros(len(hits), bool)
    for label in np.argsort(hits.sum(0), kind="stable"):
        missing = times - int(hits[chosen, label].sum())
        if missing > 0:
            chosen[np.flatnonzero(hits[:, label] & ~chosen)[:missing]] = True
    return np.flatnonzero(chosen)


def _fill(hits: NDArray[np.bool_], total: int) -> Ints:
    """Raise the number a class until the total is reached; the last round stops at the total."""
    classes = int(hits.any(0).sum())
    if total < classes:
        raise DataError(f"labels.total is {total}, but {classes} classes occur and each keeps at least one label")
    chosen = _cover(hits, 1)
    times = 1
    while len(chosen) < min(total, len(hits)):
        times += 1
        more = np.setdiff1d(_cover(hits, times), chosen)
        if len(more) == 0 and times > hits.sum(0).max():
            break
        chosen = np.concatenate([chosen, more[: total - len(chosen)]])
    return chosen


def _at_random(hits: NDArray[np.bool_], total: int) -> Ints:
    """Rows that cover every class, filled up to the total in the given random order."""
    chosen = _cover(hits, 1)
    rest = np.setdiff1d(np.arange(len(hits)), chosen)
    return np.concatenate([chosen, rest[: max(0, total - len(chosen))]])
