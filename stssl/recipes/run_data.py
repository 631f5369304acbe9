"""Open what a recipe uses of a store: pixels, split, places, classes and drawn labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import rank as own_rank
from stssl.base.errors import ConfigError, DataError
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.data.draws import draw_labeled
from stssl.data.loader import metadata_table
from stssl.data.order import Sampler, ShardOrder, make_order, shard_order_of
from stssl.data.splits import Split, make_split
from stssl.recipes.recipe import DataConfig, Recipe
from stssl.store.cache import Held, PixelSource, Streamed, hold
from stssl.store.disk import DiskCache, default_folder
from stssl.store.lists import as_text
from stssl.store.remote import is_remote
from stssl.store.store import Store

LEAST_KNOWN = 0.5
"""Share of training patches with metadata below which a recipe that uses them is warned of."""


@dataclass(frozen=True)
class PixelData:
    """One recipe's view of a store, without labels.

    Attributes:
        store: The open store.
        reader: Delivers the recipe's bands.
        split: Store rows of each part.
        metadata: [N, 4] of all rows.
        shard_order: How to go through the store in shards, where it is fetched from an object store.
    """

    store: Store
    reader: PixelSource
    split: Split
    metadata: Tensor
    shard_order: ShardOrder | None

    def order(self, rows: Ints, batch: int, seed: int, stream: RandomStream, *, world: int) -> Sampler:
        """Make the order of a stream of all training patches.

        Args:
            rows: [n] store rows of the stream.
            batch: Rows of a global batch.
            seed: Seed of the run.
            stream: The use of random numbers that shuffles it.
            world: Number of ranks.

        Raises:
            ConfigError: The store is fetched in shards, and there are fewer than ranks.
        """
        return make_order(rows, batch, seed, stream, shard_order=self.shard_order, world=world)

    def about(self, world: int) -> dict[str, Any]:
        """For a run's record: store, sizes of its parts, what memory holds of it, and an unusual order."""
        parts = {part: len(self.split.part(part)) for part in ("train", "validation", "test")}
        order = {"order": self.shard_order.about(world)} if self.shard_order else {}
        held = {"held_bytes": self.reader.nbytes} if isinstance(self.reader, Held) else {}
        return {"store": self.store.about(), "parts": parts, **order, **held}


@dataclass(frozen=True)
class RunData(PixelData):
    """The same with labels.

    Attributes:
        space: Classes and kind of task.
        targets: [N, G] choice ids of all rows, `IGNORED` where unknown.
        labeled: Store rows of the training part that keep their label.
    """

    space: LabelSpace
    targets: Tensor
    labeled: Ints

    def prior(self) -> Tensor:
        """[G, K] frequency of each choice among the known labels of the labeled rows."""
        targets = self.targets[torch.from_numpy(self.labeled)]
        known = (targets != IGNORED)[..., None]
        choices = torch.nn.functional.one_hot(targets.clamp_min(0).long(), self.space.choices) * known
        return choices.sum(0).double() / known.sum(0).clamp_min(1)


def open_pixels(config: DataConfig, device: torch.device | None = None) -> PixelData:
    """Open the store and check that it has the pixels and the split that a recipe asks for.

    Args:
        config: The recipe's `data`.
        device: Of the networks, for training; None reads pixels from the store whatever `data.cache` says.

    Raises:
        ConfigError: The store lacks a band, split or column; names those it has.
        DataError: No such store, or another schema version.
    """
    store = Store.open(config.store)
    _check(store, config)
    split = make_split(store, config.split, config.exclude)
    columns = (np.asarray(store.column(name)) for name in ("lat", "lon", "day_of_year", "time"))
    disk = DiskCache(config.cache_dir or default_folder(), config.cache_bytes) if is_remote(config.store) else None
    reader = store.reader(config.bands, cache=disk)
    held = np.concatenate([split.train, split.validation])
    source = Streamed(reader) if device is None else hold(reader, held, store.size, config.cache, device)
    kept = isinstance(source, Held)
    order = shard_order_of(
        reader, config.shuffle_shards, config.cache_bytes, kept, device is not None and own_rank() == 0
    )
    return PixelData(store, source, split, metadata_table(*columns), order)


def labels_of(store: Store, labels: str) -> tuple[LabelSpace, Tensor]:
    """Classes of a stored label set, and [N, G] choice ids of all rows.

    Raises:
        ConfigError: The store has no such labels; names those it has.
    """
    if labels not in store.label_sets:
        raise ConfigError(f"data.labels: {store.path} has no '{labels}'. It has: {', '.join(store.label_sets)}.")
    space = LabelSpace(store.classes(labels), store.multilabel(labels))
    return space, space.targets(torch.from_numpy(np.array(store.column(labels))))


def open_data(recipe: Recipe, device: torch.device | None = None) -> RunData:
    """Open the store, check that it has what the recipe asks for, and draw the labels.

    Args:
        recipe: Of the run.
        device: Of the networks, for training; None reads pixels from the store whatever `data.cache` says.

    Raises:
        ConfigError: The store lacks a band, label set, split or column; names those it has.
        DataError: No such store, another schema version, or classes without a labeled patch.
    """
    config = recipe.data
    pixels = open_pixels(config, device)
    space, targets = labels_of(pixels.store, config.labels)
    positives = space.positives(targets).numpy().astype(np.int64)
    names = as_text(pixels.store.column("patch_id")) if recipe.labels.list else None
    labeled = draw_labeled(positives, pixels.split.train, recipe.labels, names)
    if not recipe.labels.allow_missing_classes:
        used = np.concatenate([pixels.split.train, pixels.split.validation, pixels.split.test])
        _every_class_labeled(positives, used, labeled, space, config.labels)
    return RunData(**vars(pixels), space=space, targets=targets, labeled=labeled)


def require_metadata(data: PixelData, key: str, value: str) -> None:
    """Make sure that some training patch has a place or a date where a recipe uses them; warn where few have.

    Raises:
        ConfigError: None has; names the key and what to do.
    """
    known = (~data.metadata[torch.from_numpy(data.split.train)].isnan()).any(1)
    if not known.any():
        raise ConfigError(
            f"{key}: {value} uses places and dates, and no training patch of {data.store.path} has either. Set {key}="
            "none, or convert the archive with columns lat, lon and time (`stssl convert` says which columns it read)."
        )
    if known.float().mean() < LEAST_KNOWN:
        words = "%s: only %d of the %d training patches of %s have a place or a date"
        LOG.warning(words, key, int(known.sum()), len(known), data.store.path)


def _check(store: Store, config: DataConfig) -> None:
    missing = [band for band in config.bands if band not in store.bands]
    if missing:
        raise ConfigError(f"data.bands: {store.path} has no {', '.join(missing)}. It has: {', '.join(store.bands)}.")
    wide = [
        group for group in store.groups.values() if group.dtype != np.uint8 and set(group.bands) & set(config.bands)
    ]
    if config.scale == "bytes" and wide:
        bands = ", ".join(band for group in wide for band in group.bands if band in config.bands)
        raise ConfigError(
            f"data.scale: bytes divides by 255, and {store.path} stores {bands} as {wide[0].dtype}. "
            "Set data.scale=sigmas."
        )
    absent = [name for name in config.exclude if not store.has_column(name)]
    if absent:
        raise ConfigError(f"data.exclude: {store.path} has no column {', '.join(absent)}")


def _every_class_labeled(positives: Ints, used: Ints, labeled: Ints, space: LabelSpace, labels: str) -> None:
    occurs, has_label = positives[used].sum(0) > 0, positives[labeled].sum(0) > 0
    missing = [name for name, here, drawn in zip(space.classes, occurs, has_label, strict=True) if here and not drawn]
    if missing:
        raise DataError(
            f"no labeled training patch has {', '.join(missing)} ({labels}). Use more labels, another data.split, "
            "or set labels.allow_missing_classes=true."
        )


def require_labels(targets: Tensor, part: str) -> None:
    """Make sure that some of a part's patches can be scored, given their choice ids [n, G].

    Raises:
        DataError: None of them has a known label.
    """
    if not len(targets):
        raise DataError(f"the split has no {part} patches, so nothing can be scored on them. Use another data.split.")
    if not (targets != IGNORED).any():
        raise DataError(
            f"none of the {len(targets):,} {part} patches has a label, so nothing can be scored on them. "
            "Use another data.split, data.labels or evaluation.limit."
        )
