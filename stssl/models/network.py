"""One network: backbone, and where it has any, an encoder of metadata and the site where it enters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stssl.base.batch import MetadataColumn
from stssl.base.config import Config
from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone, shape_of, stages
from stssl.models.injection import INJECTIONS, NOWHERE, Injection, Nowhere, Shape
from stssl.models.metadata import ENCODERS, EncoderBase, MetadataEncoder
from stssl.models.weights import weighted_backbone

NetworkRole = Literal["plain", "student", "teacher", "direct"]


@dataclass(frozen=True)
class Prediction:
    """Hold a network's output for some images.

    Attributes:
        logits: [B, C].
        context: [B, D] what the student is to infer from pixels.
    """

    logits: Tensor
    context: Tensor


class Network(nn.Module):
    """A backbone with its head; `teacher` and `direct` also have an encoder."""

    def __init__(
        self, backbone: nn.Module, site: Injection, encoder: MetadataEncoder | None, project: nn.Module, tokens: bool
    ) -> None:
        """Put together what `build_network` made; `tokens` says whether the backbone is a transformer."""
        super().__init__()
        self.backbone, self.site, self.encoder, self.project = backbone, site, encoder, project
        self.tokens = tokens

    def forward(self, image: Tensor, metadata: Tensor | None = None, inject: bool = True) -> Prediction:
        """Predict.

        Args:
            image: [B, bands, H, W], normalized.
            metadata: [B, 4], NaN where missing; only a network with an encoder looks at it, and all of it is missing
                when this is None.
            inject: False leaves the site out of the backbone, as for the blank image of CDMAD.
        """
        context = self._context(image, metadata)
        site = self.site if inject else NOWHERE
        features, token = site.leave(self.features(image, context, site))
        feature = self.site.pooled(self.backbone.forward_head(features, pre_logits=True), context)  # type: ignore[operator]
        logits: Tensor = self.backbone.get_classifier()(feature)  # type: ignore[operator]
        return Prediction(logits, self.project(feature if token is None else token))

    def features(self, image: Tensor, context: Tensor | None, site: Injection) -> Tensor:
        """Compute the backbone's final tokens or maps, with the context entering where the site says.

        The site is called by hooks that live as long as this call, so that any timm model can be used as it is and
        copies of a network do not share them.

        Args:
            image: [B, C, H, W].
            context: [B, D] context vectors; None without metadata.
            site: Where the context enters.
        """
        parts = stages(self.backbone) if len(site.touched) else []
        hooks = [self._hook(parts[number], number, site, context) for number in site.touched]
        try:
            tokens: Tensor = self.backbone.forward_features(image)  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        return tokens

    def _hook(self, part: nn.Module, number: int, site: Injection, context: Tensor | None) -> RemovableHandle:
        if self.tokens:
            return part.register_forward_pre_hook(lambda _, given: (site.block(number, given[0], context), *given[1:]))
        return part.register_forward_hook(lambda _, given, made: site.block(number, made, context))

    def _context(self, image: Tensor, metadata: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        if metadata is None:
            metadata = torch.full((len(image), len(MetadataColumn)), torch.nan, device=image.device)
        context: Tensor = self.encoder(metadata)
        return context


def build_network(
    *,
    backbone: str,
    backbone_args: Mapping[str, Any],
    image_size: int,
    in_channels: int,
    classes: int,
    encoder: EncoderBase,
    injection: Config,
    role: NetworkRole,
    weights: str,
    distill: bool,
    places: Tensor | None = None,
) -> Network:
    """Build one network of a run.

    Args:
        backbone: timm's name, or `slim_resnet`.
        backbone_args: Further arguments of the backbone.
        image_size: Side in pixels.
        in_channels: Bands.
        classes: Outputs.
        encoder: Configuration of the metadata encoder.
        injection: Configuration of the site.
        role: `teacher` and `direct` see metadata; a `student` carries what distillation needs; `plain` has neither.
        weights: `none`, `imagenet` (timm's hub) or `file:PATH`.
        distill: Whether the student is distilled.
        places: [n, 4] metadata of the training patches, for encoders that standardize.

    Raises:
        ConfigError: Parts that do not fit each other.
    """
    net = weighted_backbone(backbone, backbone_args, weights, size=image_size, in_channels=in_channels, classes=classes)
    shape = shape_of(net, backbone)
    site: Injection = Nowhere(injection, shape) if role == "plain" else make_site(injection, shape, backbone)
    project: nn.Module = nn.Identity()
    made: MetadataEncoder | None = None
    if role == "student":
        if distill and not site.own_token:
            project = nn.Linear(shape.width, site.head_width)
        site = site if distill and site.own_token else Nowhere(injection, shape)
    elif not isinstance(site, Nowhere):  # an encoder whose context goes nowhere would never get a gradient
        if site.head_width != shape.width:
            _widen_head(net, site.head_width)
        made = ENCODERS[encoder.name](encoder, shape.width, places)  # type: ignore[attr-defined]
    return Network(net, site, made, project, shape.family != "cnn")


def check_fit(*, backbone: str, backbone_args: Mapping[str, Any], image_size: int, injection: Config) -> None:
    """Check that a backbone exists and that a site fits it, as cheaply as timm allows and without weights.

    Args:
        backbone: Name of a timm model or `slim_resnet`.
        backbone_args: Arguments of that model.
        image_size: Pixels a side.
        injection: Configuration of the site.

    Raises:
        ConfigError: They do not; says what would.
    """

    def make() -> nn.Module:
        return make_backbone(backbone, backbone_args, size=image_size, in_channels=3, classes=2, hub=False)

    try:
        with torch.device("meta"):
            net = make()
    except RuntimeError:  # constructors that look at numbers cannot be run without memory
        net = make()
    with torch.device("meta"):
        make_site(injection, shape_of(net, backbone), backbone)


def make_site(injection: Config, shape: Shape, backbone: str) -> Injection:
    """Make the injection site for a backbone.

    Args:
        injection: Configuration of the site.
        shape: Description of the backbone.
        backbone: Name of the backbone in messages.

    Raises:
        ConfigError: It does not fit; names those that do.
    """
    name = injection.name  # type: ignore[attr-defined]
    site_type = INJECTIONS[name]
    if shape.family not in site_type.families or (name == "film" and not shape.blocks):
        fitting = ", ".join(name for name, site in INJECTIONS.items() if shape.family in site.families)
        kind = "a plain vision transformer" if site_type.own_token else "a vision transformer"
        raise ConfigError(f"model.injection: '{name}' needs {kind}, and {backbone} is none. It can have: {fitting}.")
    return site_type(injection, shape)


def _widen_head(backbone: Any, width: int) -> None:
    """Give the backbone a head for the wider feature; the image's part keeps its weights, the context's starts at 0."""
    old = backbone.get_classifier()
    new = nn.Linear(width, old.out_features)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_features] = old.weight
        new.bias.copy_(old.bias)
    path = next(name for name, module in backbone.named_modules() if module is old)
    parent, _, child = path.rpartition(".")
    setattr(backbone.get_submodule(parent), child, new)
