"""Open the data that a recipe asks for: pixels, split, metadata, classes and drawn labels."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import rank as own_rank
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.data.draws import draw_labeled
from stssl.data.loader import metadata_table
from stssl.data.order import Sampler, ShardOrder, make_order, shard_order_of
from stssl.data.splits import Split, make_split
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import DataConfig
from stssl.store.cache import Held, PixelSource, Streamed, hold
from stssl.store.disk import DiskCache, default_folder
from stssl.store.lists import as_text
from stssl.store.remote import is_remote
from stssl.store.store import Store

LEAST_KNOWN = 0.5
"""Share of training patches with metadata below which a recipe that uses metadata logs a warning."""


@dataclass(frozen=True)
class PixelData:
    """Hold the open store of a recipe, without labels.

    Attributes:
        store: The open store.
        reader: Source of pixels, with the recipe's bands.
        split: Store rows of each part.
        metadata: [N, 4] of all store rows: degrees north and east, day of year, UTC hour; NaN if missing.
        shard_order: Shards in which a store is fetched from an object store; None if rows are read one by one.
    """

    store: Store
    reader: PixelSource
    split: Split
    metadata: Tensor
    shard_order: ShardOrder | None

    def order(self, rows: Ints, batch: int, seed: int, stream: RandomStream, *, world: int) -> Sampler:
        """Make the random order in which a stream goes through all training patches.

        Args:
            rows: [n] store rows of the stream.
            batch: Number of rows of a global batch.
            seed: Seed of the run.
            stream: Use of random numbers that shuffles the stream.
            world: Number of ranks.

        Raises:
            ConfigError: The store is fetched in shards, and it has fewer shards than there are ranks.
        """
        return make_order(rows, batch, seed, stream, shard_order=self.shard_order, world=world)

    def about(self, world: int) -> JsonObject:
        """Describe the data for a run's record: store, sizes of the parts, bytes held in memory, order by shards.

        Args:
            world: Number of ranks.
        """
        parts: JsonObject = {part: len(self.split.part(part)) for part in ("train", "validation", "test")}
        order: JsonObject = {"order": self.shard_order.about(world)} if self.shard_order else {}
        held: JsonObject = {"held_bytes": self.reader.nbytes} if isinstance(self.reader, Held) else {}
        return {"store": {**self.store.about()}, "parts": parts, **order, **held}


@dataclass(frozen=True)
class RunData(PixelData):
    """Hold the open store of a recipe, with labels.

    Attributes:
        space: Classes, and whether a patch has one or several of them.
        targets: [N, G] choice ids of all store rows, `IGNORED` if unknown.
        labeled: Store rows of the training part that keep their label.
    """

    space: LabelSpace
    targets: Tensor
    labeled: Ints

    def prior(self) -> Tensor:
        """Return the frequency [G, K] of each choice among the known labels of the labeled rows."""
        targets = self.targets[torch.from_numpy(self.labeled)]
        known = (targets != IGNORED)[..., None]
        choices = torch.nn.functional.one_hot(targets.clamp_min(0).long(), self.space.choices) * known
        return choices.sum(0).double() / known.sum(0).clamp_min(1)


def open_pixels(config: DataConfig, device: torch.device | None = None) -> PixelData:
    """Open the store and check that it has the pixels and the split that a recipe asks for.

    Args:
        config: Section `data` of the recipe.
        device: Device of the networks, for training with the cache of `data.cache`; None never fills that cache.

    Raises:
        ConfigError: The store lacks a band, split or column; names those it has.
        DataError: There is no such store, or it has another schema version.
    """
    store = Store.open(config.store)
    _check(store, config)
    split = make_split(store, config.split, config.exclude)
    columns = (np.asarray(store.column(name)) for name in ("lat", "lon", "day_of_year", "time"))
    disk = DiskCache(config.cache_dir or default_folder(), config.cache_bytes) if is_remote(config.store) else None
    reader = store.reader(config.bands, cache=disk)
    held = np.concatenate([split.train, split.validation])  # training never reads test patches
    source = Streamed(reader) if device is None else hold(reader, held, store.size, config.cache, device)
    kept = isinstance(source, Held)
    order = shard_order_of(
        reader, config.shuffle_shards, config.cache_bytes, kept, device is not None and own_rank() == 0
    )
    return PixelData(store, source, split, metadata_table(*columns), order)


class Labels(NamedTuple):
    """Hold a label set of a store.

    Attributes:
        space: Classes, and whether a patch has one or several of them.
        targets: [N, G] choice ids of all store rows, `IGNORED` if unknown.
    """

    space: LabelSpace
    targets: Tensor


def labels_of(store: Store, labels: str) -> Labels:
    """Read the label set called `labels`.

    Raises:
        ConfigError: The store has no such label set; names those it has.
    """
    if labels not in store.label_sets:
        raise ConfigError(f"data.labels: {store.path} has no '{labels}'. It has: {', '.join(store.label_sets)}.")
    space = LabelSpace(store.classes(labels), store.multilabel(labels))
    return Labels(space, space.targets(torch.from_numpy(np.array(store.column(labels)))))


def open_data(recipe: Recipe, device: torch.device | None = None) -> RunData:
    """Open the store, check that it has what the recipe asks for, and draw the labels.

    Args:
        recipe: Recipe of the run.
        device: Device of the networks, for training with the cache of `data.cache`; None never fills that cache.

    Raises:
        ConfigError: The store lacks a band, label set, split or column; names those it has.
        DataError: There is no such store, it has another schema version, or a class has no labeled patch.
    """
    config = recipe.data
    pixels = open_pixels(config, device)
    space, targets = labels_of(pixels.store, config.labels)
    positives = space.positives(targets).numpy().astype(np.int64)
    names = as_text(pixels.store.column("patch_id")) if recipe.labels.list else None
    labeled = draw_labeled(positives, pixels.split.train, recipe.labels, names)
    if not recipe.labels.allow_missing_classes:
        used = np.concatenate([pixels.split.train, pixels.split.validation, pixels.split.test])
        _require_every_class(positives, used, labeled, space, config.labels)
    return RunData(**vars(pixels), space=space, targets=targets, labeled=labeled)


def require_metadata(data: PixelData, key: str, value: str) -> None:
    """Check that some training patch has a place or a date; warn if few have.

    Args:
        data: Open store with its split.
        key: Recipe key that asks for metadata, for messages.
        value: Value of that key, for messages.

    Raises:
        ConfigError: No training patch has either; names the key and what to do.
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
    """Check that a store has the bands and columns of a recipe, in a type that its scale can divide.

    Raises:
        ConfigError: It does not; names what it has.
    """
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


def _require_every_class(positives: Ints, used: Ints, labeled: Ints, space: LabelSpace, labels: str) -> None:
    """Check that each class that occurs in the split has a labeled patch.

    Args:
        positives: [N, C] 1 if a patch has a class, else 0.
        used: Store rows of all parts.
        labeled: Store rows that keep their label.
        space: Classes.
        labels: Name of the label set, for the message.

    Raises:
        DataError: A class has none; names it.
    """
    occurs, has_label = positives[used].sum(0) > 0, positives[labeled].sum(0) > 0
    missing = [name for name, here, drawn in zip(space.classes, occurs, has_label, strict=True) if here and not drawn]
    if missing:
        raise DataError(
            f"no labeled training patch has {', '.join(missing)} ({labels}). Use more labels, another data.split, "
            "or set labels.allow_missing_classes=true."
        )


def require_labels(targets: Tensor, part: str) -> None:
    """Check that some patch of a part can be scored.

    Args:
        targets: [n, G] choice ids of the part's patches.
        part: Name of the part, for messages.

    Raises:
        DataError: The part has no patches, or none of them has a known label.
    """
    if not len(targets):
        raise DataError(f"the split has no {part} patches, so nothing can be scored on them. Use another data.split.")
    if not (targets != IGNORED).any():
        raise DataError(
            f"none of the {len(targets):,} {part} patches has a label, so nothing can be scored on them. "
            "Use another data.split, data.labels or evaluation.limit."
        )
