"""Define the task of a `PretrainRecipe`: train a backbone without labels, on pairs of views."""

from math import nan

import torch
from torch import Tensor, nn

from stssl.base.batch import Progress
from stssl.base.distributed import rank, world_size
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream
from stssl.contrastive.geography import ClustersConfig, NoGeoConfig, cluster_places, known_places
from stssl.contrastive.pairs import PairLoader, PairSource, RawPairs
from stssl.contrastive.positives import Positives
from stssl.contrastive.step import ContrastiveStep, Pairs, PretrainEncoder
from stssl.contrastive.views import apply_pretrain_view
from stssl.data.views import PixelScaler
from stssl.models.backbones import check_images, shape_of
from stssl.models.blank import BlankWeights
from stssl.models.ema import average_batchnorm, evaluating
from stssl.models.layout import placed
from stssl.models.weights import FirstWeights, open_first_weights
from stssl.recipes.build import build_pixels
from stssl.recipes.part_counts import announce
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.run_data import PixelData, labels_of, open_pixels
from stssl.recipes.sections import BackboneConfig
from stssl.recipes.starting import ChosenScaling, Start, checkable, first_weights_of
from stssl.scoring.knn import features_of_rows, knn_scores
from stssl.scoring.metrics import diverged
from stssl.students.description import KEY
from stssl.training.checkpoints import Checkpoints, export_weights
from stssl.training.describe import describe_encoder
from stssl.training.task import Task, Validation

CHECKED_ROWS = 16
"""Number of training patches whose features are computed to check that the weights are finite."""
PLACES = "location_id"
"""Column of the store with an id for the place of each patch. Patches of the same place have the same id."""
QUERY = "networks.query.backbone."
"""Prefix of the backbone's weights in the state dict of the training step."""


class ContrastiveTask(Task[PretrainRecipe, RawPairs, Pairs]):
    """Pretrain a query encoder and its momentum encoder on pairs of views of all training patches, without labels."""

    step: ContrastiveStep
    loader: PairLoader

    def __init__(self, recipe: PretrainRecipe, device: torch.device, recorded: JsonMapping | None = None) -> None:
        """Open the data, and build networks and loader for one rank (training process).

        Args:
            recipe: Recipe to build from.
            device: Device of the networks.
            recorded: The run's record, if the run resumes. It says how images are scaled.

        Raises:
            ConfigError: The store or the networks cannot do what the recipe asks for.
            DataError: The store cannot be read, or has too few places.
        """
        self.recipe, self.device = recipe, device
        self.data = open_pixels(recipe.data, device, recipe.evaluation.validated)
        self.positives = _positives(recipe, self.data)
        self.start = Start(recipe, self.data, recorded)
        self.step = _build_step(recipe, self.data, self.start.weights)
        memory = placed(self.step, device)
        scaling = self.start.scaling
        self.make_pairs = PairMaker(recipe, self.data, memory, scaling).to(device)
        rows = self.data.split.train
        sampler = self.data.order(rows, recipe.batch.size, recipe.seed, RandomStream.PAIRS, world=world_size())
        bands = len(recipe.data.bands)
        source = PairSource(self.data.reader, rows, self.data.metadata, sampler, self.positives, recipe.views, bands)
        self.loader = PairLoader(source, rank(), world_size())
        self.pixels = build_pixels(recipe.data, recipe.model.image_size, self.data, memory, scaling).to(device)

    @classmethod
    def check(cls, recipe: PretrainRecipe) -> list[str]:
        """Check before a run starts that data and network fit the recipe. Train nothing.

        Return lines of text for the user that say what the run trains on.
        """
        return check_pretraining(recipe)

    def batch(self, raw: RawPairs) -> Pairs:
        """Return augmented, normalized views of the pairs of stored patches `raw`: a query and a key for each pair.

        The views are on the device of the networks.
        """
        made: Pairs = self.make_pairs(raw)
        return made

    def validate(self, progress: Progress) -> Validation:
        """Score the encoder's features by k-NN: classify validation patches by their nearest training patches.

        Return the scores by name. They only inform users, and do not choose the best checkpoint, because pretraining
        must not use labels: the newest checkpoint with finite features counts as the best. If the store has no labels
        or the data has no validation patches, the scores are empty.

        Args:
            progress: The last step that was taken. It is not used.
        """
        average_batchnorm(self.step)
        if not self.data.store.label_sets or not len(self.data.split.validation):
            return Validation({}, None if self._finite() else nan)
        labels = labels_of(self.data.store, self.recipe.data.labels)
        options, knn = self.recipe.evaluation, self.recipe.knn
        encoder = self._encoder()
        with evaluating(encoder):
            scores = knn_scores(
                encoder.features,
                self.data,
                self.pixels,
                labels,
                "validation",
                bank=knn.bank,
                k=knn.k,
                temperature=knn.temperature,
                batch=options.batch,
                limit=options.limit,
            )
        finite = not diverged(scores) if scores else self._finite()
        return Validation(scores, None if finite else nan)

    def _encoder(self) -> PretrainEncoder:
        encoder = self.step.networks["query"]
        assert isinstance(encoder, PretrainEncoder)
        return encoder

    def _finite(self) -> bool:
        """Return True if the encoder computes finite features for a few training patches, so its weights are usable."""
        encoder, rows = self._encoder(), self.data.split.train[:CHECKED_ROWS]
        with evaluating(encoder):
            found = features_of_rows(encoder.features, self.data, self.pixels, rows, CHECKED_ROWS)
        return bool(torch.isfinite(found).all())

    def export(self, checkpoints: Checkpoints) -> None:
        """Write the backbone's weights in the best of `checkpoints` as `encoder.safetensors`, beside the checkpoints.

        Other recipes can start from this file.
        """
        description = describe_encoder(self.recipe, self.data, self.pixels)
        export_weights(checkpoints, QUERY, "encoder", {KEY: description.text()})

    def about(self) -> JsonObject:
        """Return a description of the data for the run's record: the store, and the number of patches in each part.

        In it, `true_pairs` is the share of training patches that can be paired with another patch of the same place.
        """
        share = self.positives.share(self.data.split.train) if self.positives else 0.0
        return self.data.about(world_size()) | {"true_pairs": share} | self.start.about()


class PairMaker(nn.Module):
    """Turn pairs of stored patches into augmented, normalized views on the device of the networks."""

    def __init__(
        self, recipe: PretrainRecipe, data: PixelData, memory: torch.memory_format, scaling: ChosenScaling
    ) -> None:
        """Prepare crops, colors and normalization for the recipe's image size.

        Args:
            recipe: Recipe of the run.
            data: Open store. Its band statistics and the image size of each band are used.
            memory: Memory format of the networks.
            scaling: Numbers that scale the images.
        """
        super().__init__()
        # Cut crops out of images of the stored size, and resize only the crops: small crops then keep their detail.
        side = max(group.height for group in data.store.groups.values() if set(group.bands) & set(recipe.data.bands))
        size = max(side, recipe.model.image_size)
        self.pixels: PixelScaler = build_pixels(recipe.data, size, data, memory, scaling)
        self.size = recipe.model.image_size

    @torch.no_grad()
    def forward(self, raw: RawPairs) -> Pairs:
        """Augment and normalize the two patches of each pair, on the device of the networks.

        Args:
            raw: Pixels of the pairs, and the crops, flips and colors that the loader chose at random for them.

        Returns:
            The first patches as queries and the second ones as keys, each [n, bands, H, W], their metadata, and which
            pairs show the same place.
        """
        device = self.pixels.low.device
        images = self.pixels.unit({name: a.to(device, non_blocking=True) for name, a in raw.arrays.items()})
        # Take queries from the front and keys from the back. If each patch is its own partner, the loader reads it only
        # once, so both slices have the same images.
        views: list[Tensor] = []
        for part, draw in zip((images[: len(raw.rows)], images[-len(raw.rows) :]), raw.draws, strict=True):
            views.append(self.pixels.normalize(apply_pretrain_view(part, draw.to(device), self.size)))
        metadata, pairs = (value.to(device, non_blocking=True) for value in (raw.metadata, raw.true_pairs))
        return Pairs(views[0], views[1], metadata, pairs)


def _positives(recipe: PretrainRecipe, data: PixelData) -> Positives | None:
    """Return groups of training patches of the same place, from which pairs of patches are formed.

    Return None if the recipe makes each patch its own partner.

    Raises:
        ConfigError: The store does not say which patches show the same place.
    """
    if not recipe.pretext.temporal:
        return None
    if not data.store.has_column(PLACES):
        raise ConfigError(
            f"pretext.temporal: {data.store.path} does not say which patches show one place (no column {PLACES}). "
            "Set pretext.temporal=false, or convert a manifest with location ids."
        )
    return Positives(data.split.train, data.store.column(PLACES))


def _build_step(recipe: PretrainRecipe, data: PixelData, first: FirstWeights) -> ContrastiveStep:
    """Return one module with the encoders, queue and heads of pretraining.

    The backbone starts with the weights in `first`. All other weights are random; the recipe's seed determines them.
    """
    torch.manual_seed(recipe.seed)
    pretext = recipe.pretext
    encoder = build_encoder(recipe.model, len(recipe.data.bands), pretext.projection, pretext.mlp, first)
    centers = None
    if isinstance(pretext.geo, ClustersConfig):
        places = data.metadata[torch.from_numpy(data.split.train)]
        centers = cluster_places(places, pretext.geo.k, recipe.seed)
    return ContrastiveStep(encoder, pretext, centers, recipe.seed)


def build_encoder(
    model: BackboneConfig, bands: int, projection: int, mlp: bool, first: FirstWeights | None = None
) -> PretrainEncoder:
    """Return a backbone with a projection that maps its features to the vectors of the contrastive loss.

    Args:
        model: Backbone, image size and initial weights.
        bands: Number of bands of the images.
        projection: Size of the projected vectors.
        mlp: True for a projection of two layers, False for one.
        first: Weights to start from; None reads those that `model` names.

    Raises:
        ConfigError: The backbone is unknown, or the weights do not fit it.
    """
    name, options, size = model.backbone, model.backbone_args, model.image_size
    weights = open_first_weights(first or model.weights, name, options, size=size)
    backbone = weights.build(name, options, size=size, in_channels=bands, classes=2)
    width = shape_of(backbone, model.backbone).width
    backbone.reset_classifier(0)
    return PretrainEncoder(backbone, width, projection, mlp)


def check_pretraining(recipe: PretrainRecipe) -> list[str]:
    """Check before a run starts that data and network fit the recipe.

    Log a warning if the queue is longer than the number of training patches, or if the size of a part of the data
    (training, validation, test) is far from what the recipe asks for.

    Returns:
        Lines for the user on what the run trains on: number of patches in each part of the data, and bands.

    Raises:
        ConfigError: Data or network do not fit the recipe. The message says what would fit.
        DataError: The store cannot be read, or has too few places.
    """
    data = open_pixels(recipe.data, validated=recipe.evaluation.validated)
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
    # Check the network without pretrained weights if these would have to be downloaded: this check must work offline.
    model = recipe.model.model_copy(update={} if checkable(recipe) else {"weights": "none"})
    bands, size = len(recipe.data.bands), recipe.model.image_size
    first = first_weights_of(model, recipe.data.bands)
    with BlankWeights():
        encoder = build_encoder(model, bands, recipe.pretext.projection, recipe.pretext.mlp, first)
    check_images(encoder, encoder.backbone, model.backbone, bands=bands, size=size)
    return announce(recipe, data)
