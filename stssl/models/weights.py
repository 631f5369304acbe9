"""Start networks from given weights: read the weights once, fit them to each network, and log the differences.

`weight_sources` finds the weights, `weight_files` reads files, `weight_layouts` recognizes who wrote them,
`weight_bands` matches bands by name, `weight_fitting` loads them into a backbone, and `known_weights` lists published
ones.
"""

import math
from dataclasses import replace

import torch
from torch import nn

from stssl.base.distributed import rank
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.logs import LOG
from stssl.base.scaling import BandScaling, StoredType
from stssl.models.backbones import Backbone, make_backbone
from stssl.models.timm_import import load_timm
from stssl.models.weight_bands import BandsMissing, pick_bands
from stssl.models.weight_files import StateDict
from stssl.models.weight_fitting import DERIVED, Matching, fit_weights
from stssl.models.weight_sources import Checkpoint, facts_offline, open_checkpoint, open_file

SMALL = 64
"""Side in pixels below which weights of large images help little: a linear layer on EfficientNet-Lite0's features of
EuroSAT has 46.8 % accuracy at 32 px and 84.0 % at 64 px."""

_WARNED: set[tuple[str, str]] = set()
"""Warnings of this process: source of the weights, and text."""


class FirstWeights:
    """Build networks that start from weights that were read once for a run.

    Attributes:
        checkpoint: The weights; None for random ones.
        image_bands: Bands of the images; None if they are not known.
        missing: How to fill bands that only the images have, `zero` or `mean`; None raises an error for them.
        matching: Which tensors were loaded into the network that was built last; None before the first.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        image_bands: tuple[str, ...] | None = None,
        missing: BandsMissing | None = None,
    ) -> None:
        """Take weights that `open_first_weights` has read. Build nothing yet."""
        self.checkpoint, self.image_bands, self.missing = checkpoint, image_bands, missing
        self.matching: Matching | None = None

    def build(
        self,
        name: str,
        options: JsonMapping,
        *,
        size: int,
        in_channels: int,
        classes: int,
        with_head: bool = False,
    ) -> Backbone:
        """Build a backbone that starts from the weights. Its head is random, unless `with_head` is True.

        Args:
            name: `slim_resnet` or any name that timm knows.
            options: Further arguments of the backbone's constructor.
            size: Side of the images in pixels.
            in_channels: Number of bands.
            classes: Number of outputs.
            with_head: True to load the head, too.

        Raises:
            ConfigError: The backbone does not exist, or the weights do not fit it.
        """
        backbone = make_backbone(name, options, size=size, in_channels=in_channels, classes=classes, hub=False)
        if self.checkpoint is None:
            return backbone
        first = self.matching is None
        found = fit_weights(
            backbone, self.checkpoint, image_bands=self.image_bands, missing=self.missing, with_head=with_head
        )
        refuse_twins(backbone, self.checkpoint, name, options, size=size, in_channels=in_channels, classes=classes)
        self.matching = found
        if first and rank() == 0:
            for line in self.lines(name, size, in_channels):
                LOG.info("weights: %s", line)
        return backbone

    def lines(self, name: str, size: int, in_channels: int) -> list[str]:
        """Return log lines on where the weights come from, and which tensors did not match. Random weights have none.

        Also log a warning if the images are too small for the weights, or if the weights' bands are not known.
        """
        checkpoint, found = self.checkpoint, self.matching
        if checkpoint is None or found is None:
            return []
        if size < SMALL and not checkpoint.own and not _made_for(checkpoint, size):
            _warn_once(
                checkpoint,
                f"model.image_size={size}: pretrained weights help little with images below {SMALL} px. Set "
                f"model.image_size={SMALL}, also if the patches are smaller: they are resized.",
            )
        if checkpoint.bands is None and self.image_bands and not checkpoint.own:
            _warn_once(
                checkpoint,
                f"model.weights: {checkpoint.source} does not say which {in_channels} bands it was trained on: taken "
                f"as {', '.join(self.image_bands)}. If they are others, give model.weights_bands.",
            )
        title = f" ({checkpoint.known.title})" if checkpoint.known else ""
        return [f"{checkpoint.source}{title}, layout: {checkpoint.layout}", *found.lines()]

    def scaling(self, stored: StoredType | None) -> BandScaling | None:
        """Return the scaling that the weights were trained with, for the bands of the images; None if it is unknown.

        Args:
            stored: Type of the stored values of all bands; None if the bands have several types.
        """
        known = self.checkpoint.known if self.checkpoint else None
        if known is None or self.image_bands is None or known.stored != stored:
            return None
        named = replace(known, bands=self.checkpoint.bands) if self.checkpoint and self.checkpoint.bands else known
        return named.scaling_of(self.image_bands)

    def about(self) -> JsonObject:
        """Describe the weights as JSON values for a run's record: their source, and which tensors did not match."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return {}
        known = checkpoint.known
        title: JsonObject = {"known_as": known.title, "page": known.source, "license": known.license} if known else {}
        table = self.matching.about() if self.matching else {}
        return {"source": checkpoint.source, "layout": checkpoint.layout, **title, **table}


def open_first_weights(
    weights: "str | FirstWeights",
    name: str,
    options: JsonMapping,
    *,
    size: int,
    image_bands: tuple[str, ...] | None = None,
    weights_bands: tuple[str, ...] | None = None,
    missing: BandsMissing | None = None,
) -> FirstWeights:
    """Read the weights that the networks of a run start from.

    Args:
        weights: Value of `model.weights`. A `FirstWeights` is returned unchanged.
        name: `slim_resnet` or any name that timm knows.
        options: Further arguments of the backbone's constructor.
        size: Side of the images in pixels.
        image_bands: Bands of the images; None if they are not known.
        weights_bands: Bands of the weights, in the order of their first layer; None if the weights say them.
        missing: How to fill bands that only the images have, `zero` or `mean`; None raises an error for them.

    Raises:
        ConfigError: The weights do not exist, cannot be read, or have NaN or infinite numbers.
    """
    if isinstance(weights, FirstWeights):
        return weights
    found = open_checkpoint(weights, name, options, size=size, classes=2)
    if found is not None and (broken := broken_tensors(found.tensors)):
        raise ConfigError(
            f"model.weights: {found.source.removeprefix('file:')} has {broken[0]}. No network can learn from it. Copy "
            "the file again, or take weights from before their training diverged."
        )
    if found is not None and weights_bands is not None:
        found = replace(found, bands=weights_bands)
    return FirstWeights(found, image_bands, missing)


def broken_tensors(tensors: StateDict) -> list[str]:
    """List the tensors that hold NaN or infinite numbers, each in words such as `NaN in layer1.0.conv1.weight`.

    Leave out constants, such as those of attention masks: they may be infinite, since they are not learned.
    """
    found = []
    for name, value in tensors.items():
        if value.is_floating_point() and not name.endswith(DERIVED) and not bool(torch.isfinite(value).all()):
            found.append(f"{'NaN' if bool(torch.isnan(value).any()) else 'inf'} in {name}")
    return found


def check_offline(
    weights: str,
    name: str,
    image_bands: tuple[str, ...],
    weights_bands: tuple[str, ...] | None,
    missing: BandsMissing | None,
) -> None:
    """Check the name and the bands of a hub's weights as far as they are known without a download.

    Raises:
        ConfigError: timm has no such weights, or the weights lack bands of the images.
    """
    facts = facts_offline(weights, name)
    bands = weights_bands or (facts.bands if facts else None)
    if bands is not None and facts is not None:
        pick_bands(bands, image_bands, missing, weights)


def given_weights(weights: str | FirstWeights) -> bool:
    """Return True if `weights` names or holds weights to start from, False if networks start from random ones."""
    return weights != "none" if isinstance(weights, str) else weights.checkpoint is not None


def load_weights(backbone: nn.Module, path: str) -> Matching:
    """Load weights from a file into a backbone, except its head. Adapt them to the backbone's image size.

    Args:
        backbone: Backbone that `make_backbone` built.
        path: File of weights.

    Returns:
        Which tensors were loaded or changed, and which did not match.

    Raises:
        ConfigError: The file cannot be read, or it holds the weights of another model.
    """
    return fit_weights(backbone, open_file(path))


def read_weights(path: str) -> StateDict:
    """Return the tensors of a file of weights, by timm's names. Run no code from the file.

    Raises:
        ConfigError: The file does not exist, is damaged, or does not hold tensors by name.
    """
    return open_file(path).tensors


def refuse_twins(
    backbone: nn.Module,
    checkpoint: Checkpoint,
    name: str,
    options: JsonMapping,
    *,
    size: int,
    in_channels: int,
    classes: int,
) -> None:
    """Check that weights are not those of another network, which has equal names and shapes but computes other outputs.

    For example, `efficientnet_lite0` and `tf_efficientnet_lite0` differ only in their padding. If the weights do not
    say which network they are of, and such a pair exists, only log a warning.

    Raises:
        ConfigError: The weights are those of such a network. The message names it.
    """
    timm, base = load_timm(), name.partition(".")[0]
    if checkpoint.arches and not base.startswith(checkpoint.arches):
        arch = "tf_" + base if timm.is_model("tf_" + base) else f"{checkpoint.arches}0"
        raise ConfigError(_twin_words(checkpoint, arch, name))
    said = checkpoint.arch
    if said is None:
        twin = base.removeprefix("tf_") if base.startswith("tf_") else f"tf_{base}"
        if timm.is_model(twin) and rank() == 0:
            LOG.warning(
                "model.weights: %s fits %s and %s, which compute different numbers, and does not say which it is of.",
                *(checkpoint.source, base, twin),
            )
        return
    if said == base or not timm.is_model(said):
        return
    try:
        other = make_backbone(said, options, size=size, in_channels=in_channels, classes=classes, hub=False)
    except ConfigError:  # the recipe's arguments do not fit this network, so it is no twin
        return
    same = {key: value.shape for key, value in other.state_dict().items()}
    if same == {key: value.shape for key, value in backbone.state_dict().items()} and repr(other) != repr(backbone):
        raise ConfigError(_twin_words(checkpoint, said, name))


def _warn_once(checkpoint: Checkpoint, words: str) -> None:
    """Log a warning on weights only once per process. The check of a run and its start would otherwise log it twice."""
    if (checkpoint.source, words) not in _WARNED:
        _WARNED.add((checkpoint.source, words))
        LOG.warning("%s", words)


def _twin_words(checkpoint: Checkpoint, arch: str, name: str) -> str:
    return (
        f"model.weights: {checkpoint.source.removeprefix('file:')} holds weights of {arch}. {name} has layers of the "
        f"same names and shapes and computes other numbers. Set model.backbone={arch}."
    )


def _made_for(checkpoint: Checkpoint, size: int) -> bool:
    """Return True if position embeddings show that a transformer's training images were at most `size` pixels wide."""
    places, kernel = checkpoint.tensors.get("pos_embed"), checkpoint.tensors.get("patch_embed.proj.weight")
    if places is None or kernel is None or places.ndim != 3:
        return False
    side: int = math.isqrt(places.shape[1] - 1) * kernel.shape[-1]
    return side <= size
