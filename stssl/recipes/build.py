"""Build the objects of a training run from its recipe: the step (networks and algorithm), the loader, the scaler."""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from stssl.algorithms import ALGORITHMS, Algorithm, DataFacts
from stssl.base.batch import IGNORED, Progress, Stream, View
from stssl.base.distributed import rank
from stssl.base.errors import ConfigError
from stssl.base.logs import LOG
from stssl.data.loader import Loader, StreamSource
from stssl.data.sampler import StreamSampler
from stssl.data.views import PixelScaler, ViewDrawer
from stssl.models import NetworkRole, build_network
from stssl.models.backbones import Backbone, check_images, layer_numbers
from stssl.models.blank import BlankWeights
from stssl.models.geoclip import without_file
from stssl.models.weights import FirstWeights
from stssl.recipes.fine_tuning import require_same_classes
from stssl.recipes.part_counts import announce
from stssl.recipes.recipe import R, Recipe
from stssl.recipes.run_data import PixelData, RunData, open_data, require_labels, require_metadata
from stssl.recipes.sections import DataConfig, MetadataUse, ModelConfig
from stssl.recipes.starting import ChosenScaling, checkable, choose_scaling, first_weights_of
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.steps.votes import NoVotesConfig, Votes


def check_recipe(recipe: Recipe) -> list[str]:
    """Check before a run starts that data and networks fit the recipe.

    Log a warning if the algorithm needs unlabeled patches, but no step of the run uses them. Also log warnings about
    the training, validation or test part of the split if its size is far from what the recipe asks for.

    Returns:
        Lines for the user on what the run trains on: patches of each part, labels and bands.

    Raises:
        ConfigError: The data or the networks do not fit. The message says what would fit.
        DataError: The store cannot be read, a class has no labeled patch, or no validation patch has a label.
    """
    data = open_data(recipe)
    if recipe.model.metadata != "none":
        require_metadata(data, "model.metadata", recipe.model.metadata)
    if len(data.split.validation):
        require_labels(data.targets[torch.from_numpy(data.split.validation)], "validation")
    require_same_classes(recipe, data.space.classes)
    # Check with random weights if the recipe's weights come from the internet: a check must work offline.
    offline = recipe if checkable(recipe) else without_weights(recipe, encoder=False)
    with BlankWeights():
        step, steps = build_step(offline, data), recipe.schedule.steps
    for network in step.networks.values():
        model, bands = recipe.model, len(recipe.data.bands)
        backbone = network.get_submodule("backbone")
        if recipe.optimizer.layer_decay < 1:
            layer_numbers(cast(Backbone, backbone))
        check_images(network, backbone, model.backbone, bands=bands, size=model.image_size)
    if step.views_at(Progress(steps - 1, steps)) != step.views_needed:
        LOG.warning(
            "no step of this run learns from unlabeled patches: schedule.steps is %d, and before the step that "
            "schedule.supervised_start (or algorithm.supervised_steps) names, only labels are learned from",
            steps,
        )
    return announce(recipe, data)


def without_weights(recipe: R, encoder: bool = True) -> R:
    """Return a copy of the recipe whose networks start from random weights, so that no file of weights is read.

    Use it if a checkpoint will replace the weights, or for a check that must work offline.

    Args:
        recipe: Recipe of the run.
        encoder: True to also start a pretrained encoder of places from random weights.
    """
    changes: dict[str, object] = {"weights": "none"}
    if encoder and isinstance(recipe.model, ModelConfig):
        changes["encoder"] = without_file(recipe.model.encoder)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def as_trained(recipe: Recipe) -> Recipe:
    """Return a copy of the recipe from which trained networks are rebuilt, to get their weights from a checkpoint.

    The copy has no initial weights and no votes of neighbors, as the networks are not trained further.
    """
    return without_weights(recipe).model_copy(update={"votes": NoVotesConfig()})


ROLES: dict[MetadataUse, tuple[NetworkRole, ...]] = {
    "none": ("plain",),
    "teacher": ("student", "teacher"),
    "direct": ("direct",),
}
"""Values of `model.metadata`, and the networks of each. The shipped network is first."""


def build_step(recipe: Recipe, data: RunData, first: FirstWeights | None = None) -> TeacherStudentStep:
    """Build the networks, the algorithm, the losses and the averages of weights of a training run as one module.

    The recipe's seed decides random initial weights.

    Args:
        recipe: Recipe of the run.
        data: Open store, its split, and the labels that the run may use.
        first: Weights that the networks start from; None reads those that the recipe names.

    Raises:
        ConfigError: The parts do not fit together, or the weights do not fit the networks.
    """
    first = first or first_weights_of(recipe.model, recipe.data.bands)
    # Set the seed anew: initial weights must not depend on whether a check of the recipe has built networks before.
    torch.manual_seed(recipe.seed)
    model = recipe.model
    roles = ROLES[model.metadata]
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
            weights=first,
            distill=recipe.loss.distills,
            places=data.metadata[torch.from_numpy(data.split.train)],
            head=model.head,
            freeze=model.freeze,
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
        labeler_mode=model.labeler_mode,
    )


def _votes(recipe: Recipe, data: RunData, algorithm: Algorithm) -> Votes | None:
    """Build the votes by which training patches nearby change a pseudo-label. Return None if the recipe uses no votes.

    Args:
        recipe: Recipe of the run.
        data: Places and labels of the patches.
        algorithm: Algorithm of the run. The votes change its pseudo-labels.

    Raises:
        ConfigError: The algorithm does not use votes, or the patches have no places.
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
    # Hide the labels of the other patches: the store knows them, but a run may use only labels of `data.labeled`.
    labeled = torch.isin(train, torch.from_numpy(data.labeled))
    targets = torch.where(labeled[:, None], data.targets[train], IGNORED)
    found = Votes(config, data.metadata[train], targets, data.space.choices)
    if not found.near.shape[1]:
        raise ConfigError(
            f"votes: at most one training patch of {data.store.path} has a place, so nobody has neighbors. "
            "Set votes={name: none}, or convert the archive with its coordinates."
        )
    return found


def build_pixels(
    config: DataConfig,
    size: int,
    data: PixelData,
    memory_format: torch.memory_format,
    scaling: ChosenScaling | None = None,
) -> PixelScaler:
    """Build the scaler, which turns stored bands into normalized square images.

    Args:
        config: Section `data` of the recipe.
        size: Width and height of the images in pixels.
        data: Open store, with the statistics of the bands, and the names of the bands in each array of pixels.
        memory_format: Memory format of the images, the same as that of the networks.
        scaling: Numbers that scale each band; None chooses them by the section `data` alone.
    """
    replacing = (scaling or choose_scaling(config, data)).replacing
    # Read no statistics if the scaling does not use them, as with `bytes` or given numbers: the store may have none.
    if config.scale == "bytes" or replacing is not None:
        mean = std = np.zeros(len(config.bands), np.float32)
    else:
        mean, std = data.band_statistics(config)
        if rank() == 0 and (flat := data.store.constant(config.bands)):
            words = "data.bands: %s has the same value in all training pixels of %s, so networks see 0 there and learn "
            LOG.warning(words + "nothing from it; leave it out", ", ".join(flat), data.store.path)
    return PixelScaler(
        data.reader.layout,
        config.bands,
        size,
        mean=mean,
        std=std,
        scale=config.scale,
        resize=config.resize,
        scaling=replacing,
        memory_format=memory_format,
    )


def build_loader(
    recipe: Recipe, data: RunData, views: Callable[[int], frozenset[View]], rank: int = 0, world: int = 1
) -> Loader:
    """Build the loader, which delivers the patches of each step to one training process (rank).

    A step gets labeled patches and, if a view needs them, unlabeled patches. All training patches serve as unlabeled
    ones.

    Args:
        recipe: Recipe of the run.
        data: Open store, its split, and the labels that the run may use.
        views: Function that returns which views (augmented patches) a step needs, given its number. The last step must
            need all views of the run.
        rank: Rank of this process.
        world: Number of ranks.
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
            data.order(rows[stream], sizes[stream], recipe.seed, stream.randomness, world=world)
            if stream is Stream.UNLABELED
            else StreamSampler(len(rows[stream]), sizes[stream], recipe.seed, stream.randomness),
        )
        for stream in sorted({view.stream for view in needed}, key=lambda stream: stream.value)
    }
    return Loader(sources, drawer, views, rank, world)
