"""From a recipe to its parts: data, networks and algorithm in one step module, loader, views."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stssl.algorithms import ALGORITHMS, Algorithm, DataFacts
from stssl.base.batch import IGNORED, Progress, Stream, View
from stssl.base.distributed import rank
from stssl.base.errors import ConfigError
from stssl.data.loader import Loader, StreamSource
from stssl.data.sampler import StreamSampler
from stssl.data.views import PixelScaler, ViewDrawer
from stssl.models import NetworkRole, build_network
from stssl.models.backbones import check_images
from stssl.recipes.recipe import DataConfig, R, Recipe
from stssl.recipes.run_data import PixelData, RunData, open_data, require_labels, require_metadata
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.steps.votes import NoVotesConfig, Votes

log = logging.getLogger("stssl")


def check_recipe(recipe: Recipe) -> None:
    """Find out before anything starts whether data and networks can be what the recipe says.

    Warns where unlabeled patches are asked for and no step is left to learn from them.

    Raises:
        ConfigError: They cannot; says what would fit.
        DataError: The store cannot be read, or a class has no label.
    """
    data = open_data(recipe)
    if recipe.model.metadata != "none":
        require_metadata(data, "model.metadata", recipe.model.metadata)
    require_labels(data.targets[torch.from_numpy(data.split.validation)], "validation")
    local = recipe.model.weights.startswith(("file:", "run:"))
    step, steps = build_step(recipe if local else without_weights(recipe), data), recipe.schedule.steps
    for network in step.networks.values():
        model, bands = recipe.model, len(recipe.data.bands)
        check_images(network, network.backbone, model.backbone, bands=bands, size=model.image_size)  # type: ignore[arg-type]
    if step.views_at(Progress(steps - 1, steps)) != step.views_needed:
        log.warning(
            "no step of this run learns from unlabeled patches: schedule.steps is %d, and before the step that "
            "schedule.supervised_start (or algorithm.supervised_steps) names, only labels are learned from",
            steps,
        )


def without_weights(recipe: R) -> R:
    """The same recipe, its networks starting from random weights: what they are comes from a checkpoint."""
    model: Any = recipe.model  # type: ignore[attr-defined]
    return recipe.model_copy(update={"model": model.model_copy(update={"weights": "none"})})


def as_trained(recipe: Recipe) -> Recipe:
    """The recipe of the networks alone, for whoever has a checkpoint of them and trains no further."""
    return without_weights(recipe).model_copy(update={"votes": NoVotesConfig()})


def resolved_weights(recipe: Recipe) -> str:
    """`model.weights` with `run:` replaced by the file of that run's best student or pretrained encoder.

    Raises:
        ConfigError: There is no such run, or it has no checkpoint yet.
    """
    kind, _, name = recipe.model.weights.partition(":")
    if kind != "run":
        return recipe.model.weights
    folder = Path(name)
    files = [folder / "checkpoints" / f"{part}.safetensors" for part in ("student", "encoder")]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise ConfigError(
            f"model.weights: {folder} has no {' or '.join(file.name for file in files)}. "
            "Give the name or folder of a finished run."
        )
    return f"file:{found}"


_ROLES: dict[str, tuple[NetworkRole, ...]] = {
    "none": ("plain",),
    "teacher": ("student", "teacher"),
    "direct": ("direct",),
}


def build_step(recipe: Recipe, data: RunData) -> TeacherStudentStep:
    """Networks, algorithm, losses and EMA as one module, initialized from the recipe's seed.

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
        votes=_votes(recipe, data, algorithm),
    )


def _votes(recipe: Recipe, data: RunData, algorithm: Algorithm) -> Votes | None:
    """Build the votes of all training patches; only the labels of labeled ones are known to it.

    Raises:
        ConfigError: The algorithm has no use for votes, or the patches have no places.
    """
    config = recipe.votes
    if isinstance(config, NoVotesConfig):
        return None
    if not algorithm.takes_votes:
        raise ConfigError(
            f"votes.name: {recipe.algorithm.name} as it is set has no use for {config.name}, which change what is "
            "said of unlabeled patches alone. Set votes={name: none}, or another algorithm, such as fixmatch."
        )
    train = torch.from_numpy(data.split.train)
    labeled = torch.isin(train, torch.from_numpy(data.labeled))
    targets = torch.where(labeled[:, None], data.targets[train], IGNORED)
    found = Votes(config, data.metadata[train], targets, data.space.choices)
    if not found.near.shape[1]:
        raise ConfigError(
            f"votes: at most one training patch of {data.store.path} has a place, so nobody has neighbors. "
            "Set votes={name: none}, or convert the archive with its coordinates."
        )
    return found


def build_pixels(config: DataConfig, size: int, data: PixelData, memory_format: torch.memory_format) -> PixelScaler:
    """Build the scaler from stored bands to images of `size` pixels a side, in the networks' memory format.

    Args:
        config: The recipe's `data`.
        size: Pixels a side.
        data: Store, for band statistics and layout.
        memory_format: Of the networks.
    """
    if config.scale == "bytes":  # for which stores without statistics will do
        mean = std = np.zeros(len(config.bands), np.float32)
    else:
        mean, std = data.store.statistics(config.bands)
        if rank() == 0 and (flat := data.store.constant(config.bands)):
            words = "data.bands: %s has the same value in all training pixels of %s, so networks see 0 there and learn "
            log.warning(words + "nothing from it; leave it out", ", ".join(flat), data.store.path)
    layout, scale = data.reader.layout, config.scale
    return PixelScaler(layout, config.bands, size, mean=mean, std=std, scale=scale, memory_format=memory_format)


def build_loader(
    recipe: Recipe, data: RunData, views: Callable[[int], frozenset[View]], rank: int = 0, world: int = 1
) -> Loader:
    """This rank's part of both streams; the unlabeled one is all training patches, left out where no view needs it.

    Args:
        recipe: Of the run.
        data: Its data.
        views: Those that a step looks at; the last step of the run looks at all that any does.
        rank: This process.
        world: Number of processes.
    """
    drawer = ViewDrawer(recipe.augment, recipe.seed, recipe.model.image_size)
    needed = views(recipe.schedule.steps - 1)
    sizes = {
        Stream.LABELED: recipe.batch.labeled,
        Stream.UNLABELED: recipe.batch.labeled * recipe.batch.unlabeled_ratio,
    }
    rows = {Stream.LABELED: data.labeled, Stream.UNLABELED: data.split.train}
    sources = {
        stream: StreamSource(
            data.reader,
            rows[stream],
            data.metadata,
            data.targets,
            data.order(rows[stream], sizes[stream], recipe.seed, stream.value, world=world)
            if stream is Stream.UNLABELED
            else StreamSampler(len(rows[stream]), sizes[stream], recipe.seed, stream.value),
        )
        for stream in sorted({view.stream for view in needed}, key=lambda stream: stream.value)
    }
    return Loader(sources, drawer, views, rank, world)
