"""The stage of pretraining runs."""

from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from stssl.base.batch import Progress
from stssl.base.distributed import rank, world_size
from stssl.base.errors import ConfigError
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.contrastive.geography import ClustersConfig, NoGeoConfig, cluster_places, known_places
from stssl.contrastive.pairs import PairLoader, PairSource, RawPairs
from stssl.contrastive.positives import Positives
from stssl.contrastive.step import ContrastiveStep, Pairs, PretrainEncoder
from stssl.contrastive.views import apply_pretrain_view
from stssl.data.views import PixelScaler
from stssl.models.backbones import check_images, shape_of
from stssl.models.ema import average_batchnorm, evaluating
from stssl.models.layout import placed
from stssl.models.weights import weighted_backbone
from stssl.recipes.build import build_pixels
from stssl.recipes.pretraining import EncoderModelConfig, PretrainRecipe
from stssl.recipes.run_data import PixelData, labels_of, open_pixels
from stssl.scoring.knn import embed, knn_scores
from stssl.scoring.metrics import diverged
from stssl.training.checkpoint import Checkpoints, export_weights
from stssl.training.task import Task

CHECKED_ROWS = 16
"""Patches whose features tell whether the weights still are numbers."""
PLACES = "location_id"
QUERY = "networks.query.backbone."


class ContrastiveTask(Task):
    """Pairs of views through a contrastive step."""

    recipe: PretrainRecipe
    step: ContrastiveStep
    loader: PairLoader

    def __init__(self, recipe: PretrainRecipe, device: torch.device) -> None:
        """Build this rank's parts.

        Raises:
            ConfigError: The recipe asks for what the store or the networks cannot give.
            DataError: The store cannot be read, or has too few places.
        """
        self.recipe, self.device = recipe, device
        self.data = open_pixels(recipe.data, device)
        self.positives = _positives(recipe, self.data)
        self.step = _build_step(recipe, self.data)
        memory = placed(self.step, device)
        self.makes = PairMaker(recipe, self.data, memory).to(device)
        rows = self.data.split.train
        sampler = self.data.order(rows, recipe.batch.size, recipe.seed, RandomStream.PAIRS, world=world_size())
        bands = len(recipe.data.bands)
        source = PairSource(self.data.reader, rows, self.data.metadata, sampler, self.positives, recipe.views, bands)
        self.loader = PairLoader(source, rank(), world_size())
        self.pixels = build_pixels(recipe.data, recipe.model.image_size, self.data, memory).to(device)

    def batch(self, raw: RawPairs) -> Pairs:
        """Query and key views."""
        made: Pairs = self.makes(raw)
        return made

    def validate(self, progress: Progress) -> tuple[dict[str, float], float | None]:
        """k-NN on frozen features where patches of both parts have labels: to look at, not to choose weights by."""
        average_batchnorm(self.step)
        if not self.data.store.label_sets:
            return {}, None if self._finite() else nan
        labels = labels_of(self.data.store, self.recipe.data.labels)
        options, asked = self.recipe.evaluation, self.recipe.knn
        encoder = self.step.networks["query"]
        with evaluating(encoder):
            scores = knn_scores(
                encoder.features,  # type: ignore[arg-type]
                self.data,
                self.pixels,
                labels,
                "validation",
                bank=asked.bank,
                k=asked.k,
                temperature=asked.temperature,
                batch=options.batch,
                limit=options.limit,
            )
        fine = not diverged(scores) if scores else self._finite()
        return scores, None if fine else nan

    def _finite(self) -> bool:
        """True if the features of some training patches are finite; else the weights are worth nothing."""
        encoder, rows = self.step.networks["query"], self.data.split.train[:CHECKED_ROWS]
        with evaluating(encoder):
            found = embed(encoder.features, self.data, self.pixels, rows, CHECKED_ROWS)  # type: ignore[arg-type]
        return bool(torch.isfinite(found).all())

    def export(self, checkpoints: Checkpoints) -> None:
        """Write the newest backbone as `encoder.safetensors`, which training recipes start from."""
        export_weights(checkpoints, QUERY, "encoder")

    def about(self) -> dict[str, Any]:
        """Store, parts, and the share of patches whose place has another acquisition."""
        share = self.positives.share(self.data.split.train) if self.positives else 0.0
        return self.data.about(world_size()) | {"true_pairs": share}


class PairMaker(nn.Module):
    """Turns what the loader delivers into normalized views on the device."""

    def __init__(self, recipe: PretrainRecipe, data: PixelData, memory: torch.memory_format) -> None:
        """Crop from the stored side, so that small crops keep their detail."""
        super().__init__()
        side = max(group.height for group in data.store.groups.values() if set(group.bands) & set(recipe.data.bands))
        self.pixels: PixelScaler = build_pixels(recipe.data, max(side, recipe.model.image_size), data, memory)
        self.size = recipe.model.image_size

    @torch.no_grad()
    def forward(self, raw: RawPairs) -> Pairs:
        """Query and key views."""
        device = self.pixels.low.device
        images = self.pixels.unit({name: a.to(device, non_blocking=True) for name, a in raw.arrays.items()})
        views: list[Tensor] = []
        for part, draw in zip((images[: len(raw.rows)], images[-len(raw.rows) :]), raw.draws, strict=True):
            views.append(self.pixels.normalize(apply_pretrain_view(part, draw.to(device), self.size)))
        metadata, pairs = (value.to(device, non_blocking=True) for value in (raw.metadata, raw.true_pairs))
        return Pairs(views[0], views[1], metadata, pairs)


def _positives(recipe: PretrainRecipe, data: PixelData) -> Positives | None:
    if not recipe.pretext.temporal:
        return None
    if not data.store.has_column(PLACES):
        raise ConfigError(
            f"pretext.temporal: {data.store.path} does not say which patches show one place (no column {PLACES}). "
            "Set pretext.temporal=false, or convert a manifest with location ids."
        )
    return Positives(data.split.train, data.store.column(PLACES))


def _build_step(recipe: PretrainRecipe, data: PixelData) -> ContrastiveStep:
    """Encoder, queue and heads as one module, initialized from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    pretext = recipe.pretext
    encoder = build_encoder(recipe.model, len(recipe.data.bands), pretext.projection, pretext.mlp)
    centers = None
    if isinstance(pretext.geo, ClustersConfig):
        places = data.metadata[torch.from_numpy(data.split.train)]
        centers = cluster_places(places, pretext.geo.k, recipe.seed)
    return ContrastiveStep(encoder, pretext, centers, recipe.seed)


def build_encoder(model: EncoderModelConfig, bands: int, projection: int, mlp: bool) -> PretrainEncoder:
    """Build the backbone with a projection.

    Args:
        model: Backbone and weights.
        bands: Bands of the images.
        projection: Width of the projection.
        mlp: True for a projection of two layers.

    Raises:
        ConfigError: No such backbone, or weights that do not fit it.
    """
    backbone = weighted_backbone(
        model.backbone, model.backbone_args, model.weights, size=model.image_size, in_channels=bands, classes=2
    )
    width = shape_of(backbone, model.backbone).width
    backbone.reset_classifier(0)  # type: ignore[operator]
    return PretrainEncoder(backbone, width, projection, mlp)


def check_pretraining(recipe: PretrainRecipe) -> None:
    """Find out before anything starts whether data and network can be what the recipe says.

    Raises:
        ConfigError: They cannot; says what would fit.
        DataError: The store cannot be read, or lacks places.
    """
    data = open_pixels(recipe.data)
    most = len(data.split.train)
    if recipe.pretext.queue > most:
        LOG.warning(
            "pretext.queue=%d is longer than the %d training patches, so that it holds patches as their own negatives: "
            "give pretext.queue=%d or less",
            recipe.pretext.queue,
            most,
            most,
        )
    if data.store.label_sets:
        labels_of(data.store, recipe.data.labels)
    positives = _positives(recipe, data)
    if positives and not positives.share(data.split.train):
        raise ConfigError(
            f"pretext.temporal: no training patch of {data.store.path} shares its place with another. "
            "Set pretext.temporal=false, or convert a manifest with a column location_id."
        )
    if not isinstance(recipe.pretext.geo, NoGeoConfig):
        known_places(data.metadata[torch.from_numpy(data.split.train)], getattr(recipe.pretext.geo, "k", 1))
    model = recipe.model.model_copy(update={"weights": "none"} if recipe.model.weights == "imagenet" else {})
    bands, size = len(recipe.data.bands), recipe.model.image_size
    encoder = build_encoder(model, bands, recipe.pretext.projection, recipe.pretext.mlp)
    check_images(encoder, encoder.backbone, model.backbone, bands=bands, size=size)
