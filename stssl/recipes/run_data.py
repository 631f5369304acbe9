"""Open the data that a recipe names: pixels, split, metadata, classes, and the labels that the run may use."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import AnyArray, Floats, Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import rank as own_rank
from stssl.base.distributed import reading_threads
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.base.remote import is_remote
from stssl.data.draws import draw_labeled
from stssl.data.loader import metadata_table
from stssl.data.order import Sampler, ShardOrder, make_order, shard_order_of
from stssl.data.splits import Split, make_split
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import DataConfig
from stssl.store.cache import Held, PixelSource, Streamed, hold
from stssl.store.disk import DiskCache, default_folder
from stssl.store.lists import as_text
from stssl.store.store import Store

LEAST_KNOWN = 0.5
"""If a smaller share of training patches has metadata, a recipe that uses metadata logs a warning."""


@dataclass(frozen=True)
class PixelData:
    """Hold the data of a pretraining run: the open store, the reader of pixels, the split and the metadata.

    Attributes:
        store: The open store.
        reader: Source of the patches' pixels, with the recipe's bands.
        split: Store rows of the training, the validation and the test part.
        metadata: [N, 4] for all N store rows: degrees north, degrees east, day of year, UTC hour; NaN if missing.
        shard_order: Groups of shards (files of many patches) to download from an object store one after the other; None
            if patches are read one by one.
    """

    store: Store
    reader: PixelSource
    split: Split
    metadata: Tensor
    shard_order: ShardOrder | None

    def order(self, rows: Ints, batch: int, seed: int, stream: RandomStream, *, world: int) -> Sampler:
        """Return a sampler, which yields the store rows of each batch in random order.

        Args:
            rows: [n] store rows to shuffle.
            batch: Number of rows of a global batch.
            seed: Seed of the run.
            stream: Source of random numbers: with another stream, the same seed gives another order.
            world: Number of ranks (training processes).

        Raises:
            ConfigError: Patches are downloaded in shards, and the store has fewer shards than the run has ranks.
        """
        return make_order(rows, batch, seed, stream, shard_order=self.shard_order, world=world)

    def band_statistics(self, config: DataConfig) -> tuple[Floats, Floats]:
        """Return the means [bands] and the standard deviations [bands] of the stored values of a recipe's bands.

        The recipe key `data.statistics` says whether they come from the store's patches or from publications.

        Args:
            config: Section `data` of the recipe.

        Raises:
            ConfigError: The store has no published statistics of a band.
            DataError: The store has no statistics of a band, or they are damaged.
        """
        if config.statistics == "store":
            return self.store.statistics(config.bands)
        found = self.store.published_statistics()
        if missing := [band for band in config.bands if band not in found]:
            raise ConfigError(
                f"data.statistics: {self.store.path} holds no published statistics of {', '.join(missing)}; only "
                "stores of BigEarthNet v1.0 do. Set data.statistics=store."
            )
        mean, std = np.array([found[band] for band in config.bands], np.float32).T
        return mean, std

    def about(self, world: int) -> JsonObject:
        """Return a description of the data for a run's record, as a dict of JSON values.

        It tells the store, the numbers of training, validation and test patches, how downloaded shards are mixed, and
        how many bytes of pixels are held in memory.

        Args:
            world: Number of ranks (training processes).
        """
        parts: JsonObject = {part: len(self.split.part(part)) for part in ("train", "validation", "test")}
        order: JsonObject = {"order": self.shard_order.about(world)} if self.shard_order else {}
        held: JsonObject = {"held_bytes": self.reader.nbytes} if isinstance(self.reader, Held) else {}
        return {"store": {**self.store.about()}, "parts": parts, **order, **held}


@dataclass(frozen=True)
class RunData(PixelData):
    """Hold the data of a training run: the open store with pixels, split and metadata, and the labels it may use.

    Attributes:
        space: Classes, and whether a patch has one class or several.
        targets: [N, G] labels of all N store rows; `IGNORED` for unknown ones. If a patch has one class, G is 1 and the
            label is the number of the class. Else there are G classes: 1 means present, 0 absent.
        labeled: Store rows of the training patches that keep their label.
    """

    space: LabelSpace
    targets: Tensor
    labeled: Ints

    def prior(self) -> Tensor:
        """Return the share of each class among the known labels of the labeled patches.

        The shape is [1, classes] if a patch has one class. If it may have several, the shape is [classes, 2]: the share
        of patches without each class, and the share of patches with it.
        """
        targets = self.targets[torch.from_numpy(self.labeled)]
        known = (targets != IGNORED)[..., None]
        choices = torch.nn.functional.one_hot(targets.clamp_min(0).long(), self.space.choices) * known
        return choices.sum(0).double() / known.sum(0).clamp_min(1)


def open_pixels(config: DataConfig, device: torch.device | None = None, validated: bool = True) -> PixelData:
    """Open the store of a recipe, check that it has the recipe's bands, split and columns, and return its data.

    Args:
        config: Section `data` of the recipe.
        device: Device of the networks, for training. If `data.cache` asks for it, pixels are held in memory. None never
            holds them.
        validated: False if the split may lack a validation part.

    Raises:
        ConfigError: The store lacks a band, split or column. The message names what the store has.
        DataError: The store does not exist, or has another schema version.
    """
    store = Store.open(config.store)
    _check(store, config)
    split = make_split(store, config.split, config.exclude, validated)
    columns = (np.asarray(store.column(name)) for name in ("lat", "lon", "day_of_year", "time"))
    disk = DiskCache(config.cache_dir or default_folder(), config.cache_bytes) if is_remote(config.store) else None
    reader = store.reader(config.bands, config.threads or reading_threads(), cache=disk)
    # Leave test patches out of the copy in memory: a training run never reads them, and memory is short.
    held = np.concatenate([split.train, split.validation])
    source = Streamed(reader) if device is None else hold(reader, held, store.size, config.cache, device)
    kept = isinstance(source, Held)
    order = shard_order_of(
        reader, config.shuffle_shards, config.cache_bytes, kept, device is not None and own_rank() == 0
    )
    return PixelData(store, source, split, metadata_table(*columns), order)


class Labels(NamedTuple):
    """Hold the classes and the labels of all patches of a store, for one label set (one way to label patches).

    Attributes:
        space: Classes, and whether a patch has one class or several.
        targets: [N, G] labels of all N store rows; `IGNORED` for unknown ones. If a patch has one class, G is 1 and the
            label is the number of the class. Else there are G classes: 1 means present, 0 absent.
    """

    space: LabelSpace
    targets: Tensor


def labels_of(store: Store, labels: str) -> Labels:
    """Read one of a store's label sets (ways to label its patches), and return its classes and all patches' labels.

    Args:
        store: Open store.
        labels: Name of the label set.

    Raises:
        ConfigError: The store has no such label set. The message names the label sets of the store.
    """
    if labels not in store.label_sets:
        if not store.label_sets:
            raise ConfigError(
                f"data.labels: {store.path} has no labels at all, so no '{labels}'. Convert again with a column of "
                "labels: `stssl convert` says which columns it reads."
            )
        raise ConfigError(f"data.labels: {store.path} has no '{labels}'. It has: {', '.join(store.label_sets)}.")
    space = LabelSpace(store.classes(labels), store.multilabel(labels))
    return Labels(space, space.table(torch.from_numpy(np.array(store.column(labels)))))


def open_data(recipe: Recipe, device: torch.device | None = None) -> RunData:
    """Open the store of a recipe, choose which training patches keep their label, and return the data of the run.

    The labeled patches are drawn at random, or come from the list that the recipe names.

    Args:
        recipe: Recipe of the run.
        device: Device of the networks, for training. If `data.cache` asks for it, pixels are held in memory. None never
            holds them.

    Raises:
        ConfigError: The store lacks a band, label set, split or column. The message names what the store has.
        DataError: The store does not exist or has another schema version, or a class has no labeled patch.
    """
    config = recipe.data
    pixels = open_pixels(config, device, recipe.evaluation.validated)
    space, targets = labels_of(pixels.store, config.labels)
    positives = space.positives(targets).numpy()
    named = recipe.labels.list is not None or recipe.labels.seed_rule == "usb"
    names = as_text(pixels.store.column("patch_id")) if named else None
    labeled = draw_labeled(positives, pixels.split.train, recipe.labels, names)
    if not recipe.labels.allow_missing_classes:
        used = np.concatenate([pixels.split.train, pixels.split.validation, pixels.split.test])
        _require_every_class(positives, used, labeled, space, config.labels)
    return RunData(**vars(pixels), space=space, targets=targets, labeled=labeled)


def require_metadata(data: PixelData, key: str, value: str) -> None:
    """Check that training patches have places or dates. Log a warning if less than half of them have either.

    Args:
        data: Open store with its split.
        key: Recipe key that requires metadata, for messages.
        value: Value of that key, for messages.

    Raises:
        ConfigError: No training patch has a place or a date. The message names the key and says what to do.
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
    """Check that a store has the bands and columns that a recipe names, and that `data.scale` fits the bands' type.

    Args:
        store: Open store.
        config: Section `data` of the recipe.

    Raises:
        ConfigError: A band or column is missing, or the scale does not fit. The message names what the store has.
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


def _require_every_class(positives: AnyArray, used: Ints, labeled: Ints, space: LabelSpace, labels: str) -> None:
    """Check that every class that occurs in the training, validation or test part has a labeled training patch.

    Args:
        positives: [N, C] for N patches and C classes: True if the patch has the class.
        used: Store rows of the training, validation and test patches.
        labeled: Store rows of the training patches that keep their label.
        space: Classes.
        labels: Name of the label set, for the message.

    Raises:
        DataError: A class has no labeled patch. The message names the class.
    """
    occurs, has_label = (np.asarray(positives[rows].any(0)) for rows in (used, labeled))
    missing = [name for name, here, drawn in zip(space.classes, occurs, has_label, strict=True) if here and not drawn]
    if missing:
        raise DataError(
            f"no labeled training patch has {', '.join(missing)} ({labels}). Use more labels, another data.split, "
            "or set labels.allow_missing_classes=true."
        )


def require_labels(targets: Tensor, part: str) -> None:
    """Check that at least one patch of a part of the split has a label, because scores need labels.

    Args:
        targets: [n, G] labels of the part's n patches; `IGNORED` if unknown. G is 1, or the number of classes if a
            patch may have several.
        part: Name of the part for messages: `train`, `validation` or `test`.

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
