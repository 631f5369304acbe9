"""From a recipe to its parts: data, networks and algorithm in one step module, loader, views."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stssl.algorithms import ALGORITHMS, DataFacts
from stssl.batch import IGNORED, Stream, View
from stssl.data.cache import Source as PixelSource
from stssl.data.cache import Streamed, hold
from stssl.data.loader import Loader, Source, metadata_table
from stssl.data.sampler import StreamSampler
from stssl.data.splits import Split, draw_labeled, make_split, text
from stssl.data.store import Store
from stssl.errors import ConfigError, DataError
from stssl.labels import LabelSpace
from stssl.models import Role, build_network, check_fit
from stssl.randomness import Ints
from stssl.recipe import DataConfig, Recipe
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.views import Pixels, ViewDrawer


@dataclass(frozen=True)
class RunData:
    """One recipe's view of a store.

    Attributes:
        store: The open store.
        reader: Delivers the recipe's bands.
        space: Classes and kind of task.
        split: Store rows of each part.
        labeled: Store rows of the training part that keep their label.
        targets: [N, G] way ids of all rows, `IGNORED` where unknown.
        metadata: [N, 4] of all rows.
    """

    store: Store
    reader: PixelSource
    space: LabelSpace
    split: Split
    labeled: Ints
    targets: Tensor
    metadata: Tensor

    def prior(self) -> Tensor:
        """[G, K] frequency of each way among the known labels of the labeled rows."""
        targets = self.targets[torch.from_numpy(self.labeled)]
        known = (targets != IGNORED)[..., None]
        ways = torch.nn.functional.one_hot(targets.clamp_min(0).long(), self.space.ways) * known
        return ways.sum(0).double() / known.sum(0).clamp_min(1)


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
    store = Store.open(config.store)
    _check(store, config)
    space = LabelSpace(store.classes(config.labels), store.multilabel(config.labels))
    targets = space.targets(torch.from_numpy(np.array(store.column(config.labels))))
    split = make_split(store, config.split, config.exclude)
    positives = space.positives(targets).numpy().astype(np.int64)
    names = text(store.column("patch_id")) if recipe.labels.list else None
    labeled = draw_labeled(positives, split.train, recipe.labels, names)
    if not recipe.labels.allow_missing_classes:
        _every_class_labeled(positives, labeled, space, config.labels)
    columns = (np.asarray(store.column(name)) for name in ("lat", "lon", "day_of_year", "time"))
    reader = store.reader(config.bands)
    held = np.concatenate([split.train, split.validation])
    source = Streamed(reader) if device is None else hold(reader, held, store.size, config.cache, device)
    return RunData(store, source, space, split, labeled, targets, metadata_table(*columns))


def _check(store: Store, config: DataConfig) -> None:
    missing = [band for band in config.bands if band not in store.bands]
    if missing:
        raise ConfigError(f"data.bands: {store.path} has no {', '.join(missing)}. It has: {', '.join(store.bands)}.")
    if config.labels not in store.label_sets:
        raise ConfigError(f"data.labels: {store.path} has no '{config.labels}'. It has: {', '.join(store.label_sets)}.")
    absent = [name for name in config.exclude if not store.has_column(name)]
    if absent:
        raise ConfigError(f"data.exclude: {store.path} has no column {', '.join(absent)}")


def _every_class_labeled(positives: Ints, labeled: Ints, space: LabelSpace, labels: str) -> None:
    occurs, has_label = positives.sum(0) > 0, positives[labeled].sum(0) > 0
    missing = [name for name, here, drawn in zip(space.classes, occurs, has_label, strict=True) if here and not drawn]
    if missing:
        raise DataError(
            f"no labeled training patch has {', '.join(missing)} ({labels}). Use more labels, another data.split, "
            "or set labels.allow_missing_classes=true."
        )


def check(recipe: Recipe) -> None:
    """Find out before anything starts whether data and networks can be what the recipe says.

    Raises:
        ConfigError: They cannot; says what would fit.
        DataError: The store cannot be read, or a class has no label.
    """
    open_data(recipe)
    resolved_weights(recipe)
    model = recipe.model
    if model.metadata != "none":
        check_fit(
            backbone=model.backbone,
            backbone_args=model.backbone_args,
            image_size=model.image_size,
            injection=model.injection,
        )


def resolved_weights(recipe: Recipe) -> str:
    """`model.weights` with `run:` replaced by the file of that run's best student.

    Raises:
        ConfigError: There is no such run, or it has no checkpoint yet.
    """
    kind, _, name = recipe.model.weights.partition(":")
    if kind != "run":
        return recipe.model.weights
    folder = Path(name) if Path(name).is_dir() else Path(recipe.launch.storage) / name
    weights = folder / "checkpoints" / "student.safetensors"
    if not weights.exists():
        raise ConfigError(f"model.weights: {folder} has no {weights.name}. Give the name or folder of a finished run.")
    return f"file:{weights}"


_ROLES: dict[str, tuple[Role, ...]] = {"none": ("plain",), "teacher": ("student", "teacher"), "direct": ("direct",)}


def build_step(recipe: Recipe, data: RunData) -> TeacherStudentStep:
    """Networks, algorithm, losses and EMA as one module, initialised from the recipe's seed.

    Raises:
        ConfigError: Parts that do not fit each other, or weights that do not fit the networks.
    """
    torch.manual_seed(recipe.seed)
    model = recipe.model
    roles = _ROLES[model.metadata]
    networks = [
        build_network(
            backbone=model.backbone,
            backbone_args=model.backbone_args,
            image_size=model.image_size,
            in_channels=len(recipe.data.bands),
            classes=len(data.space.classes),
            encoder=model.encoder,
            injection=model.injection,
            role=role,
            weights=resolved_weights(recipe),
            distill=recipe.loss.distills,
            places=data.metadata[torch.from_numpy(data.split.train)],
        )
        for role in roles
    ]
    facts = DataFacts(prior=data.prior(), unlabeled_count=len(data.split.train))
    algorithm = ALGORITHMS[recipe.algorithm.name](recipe.algorithm, data.space, facts)
    return TeacherStudentStep(
        student=networks[0],
        teacher=networks[1] if len(networks) > 1 else None,
        algorithm=algorithm,
        space=data.space,
        loss=recipe.loss,
        ema_decay=recipe.ema.decay,
        strong_labeled=recipe.augment.strong_labeled,
        supervised_start=recipe.schedule.supervised_start,
    )


def build_pixels(recipe: Recipe, data: RunData) -> Pixels:
    """What scales stored bands for the networks."""
    mean, std = data.store.statistics(recipe.data.bands)
    scale, size = recipe.data.scale, recipe.model.image_size
    return Pixels(data.reader.layout, recipe.data.bands, size, mean=mean, std=std, scale=scale)


def build_loader(recipe: Recipe, data: RunData, views: frozenset[View], rank: int = 0, world: int = 1) -> Loader:
    """This rank's part of both streams; the unlabeled one is all training patches, left out where no view needs it."""
    drawer = ViewDrawer(recipe.augment, views, recipe.seed, recipe.model.image_size)
    sizes = {
        Stream.LABELED: recipe.batch.labeled,
        Stream.UNLABELED: recipe.batch.labeled * recipe.batch.unlabeled_ratio,
    }
    rows = {Stream.LABELED: data.labeled, Stream.UNLABELED: data.split.train}
    sources = {
        stream: Source(
            data.reader,
            rows[stream],
            data.metadata,
            data.targets,
            StreamSampler(len(rows[stream]), sizes[stream], recipe.seed, stream.value),
        )
        for stream in sorted({view.stream for view in views}, key=lambda stream: stream.value)
    }
    return Loader(sources, drawer, rank, world)
