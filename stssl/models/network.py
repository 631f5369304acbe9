"""One network: backbone, and where it has any, an encoder of metadata and the site where it enters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stssl.config import Config
from stssl.errors import ConfigError
from stssl.models.backbones import family, load_weights, make_backbone
from stssl.models.injection import INJECTIONS, NOWHERE, Injection, Nowhere
from stssl.models.metadata import ENCODERS, Encoder, EncoderBase

Role = Literal["plain", "student", "teacher", "direct"]


@dataclass(frozen=True)
class Prediction:
    """What a network says of images.

    Attributes:
        logits: [B, C].
        context: [B, D] what the student is to infer from pixels.
    """

    logits: Tensor
    context: Tensor


class Network(nn.Module):
    """A backbone with its head; `teacher` and `direct` also have an encoder."""

    def __init__(self, backbone: nn.Module, site: Injection, encoder: Encoder | None, project: nn.Module) -> None:
        """Put together what `build_network` made."""
        super().__init__()
        self.backbone, self.site, self.encoder, self.project = backbone, site, encoder, project
        self.traverse = _FAMILIES[family(backbone)]

    def forward(self, image: Tensor, metadata: Tensor | None = None, inject: bool = True) -> Prediction:
        """Predict.

        Args:
            image: [B, bands, H, W], normalised.
            metadata: [B, 4], NaN where missing; only a network with an encoder looks at it, and all of it is missing
                when this is None.
            inject: False leaves out the site's own token, as for the blank image of CDMAD.
        """
        context = self._context(image, metadata)
        feature, token = self.traverse(self.backbone, self.site if inject else NOWHERE, image, context)
        feature = self.site.pooled(feature, context)
        logits: Tensor = self.backbone.get_classifier()(feature)  # type: ignore[operator]
        return Prediction(logits, self.project(feature if token is None else token))

    def _context(self, image: Tensor, metadata: Tensor | None) -> Tensor | None:
        if self.encoder is None:
            return None
        if metadata is None:
            metadata = torch.full((len(image), 4), torch.nan, device=image.device)
        context: Tensor = self.encoder(metadata)
        return context


def _through_vit(backbone: Any, site: Injection, image: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    tokens = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(image))))
    for number, block in enumerate(backbone.blocks):
        tokens = block(site.block(number, tokens, context))
    tokens, token = site.leave(backbone.norm(tokens))
    return backbone.forward_head(tokens, pre_logits=True), token


def _through_cnn(backbone: Any, site: Injection, image: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return backbone.forward_head(backbone.forward_features(image), pre_logits=True), None


_FAMILIES = {"vit": _through_vit, "cnn": _through_cnn}


def build_network(
    *,
    backbone: str,
    backbone_args: Mapping[str, Any],
    image_size: int,
    in_channels: int,
    classes: int,
    encoder: EncoderBase,
    injection: Config,
    role: Role,
    weights: str,
    distill: bool,
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

    Raises:
        ConfigError: Parts that do not fit each other.
    """
    hub = weights == "imagenet"
    net = make_backbone(backbone, backbone_args, size=image_size, in_channels=in_channels, classes=classes, hub=hub)
    if weights.startswith("file:"):
        load_weights(net, weights.removeprefix("file:"), in_channels)
    elif weights not in ("none", "imagenet"):
        raise ConfigError(f"model.weights: give none, imagenet or file:PATH (given: {weights!r})")
    width, kind = int(net.num_features), family(net)  # type: ignore[arg-type]
    site_type = INJECTIONS[injection.name]  # type: ignore[attr-defined]
    if kind not in site_type.families:
        fitting = ", ".join(name for name, site in INJECTIONS.items() if kind in site.families)
        raise ConfigError(
            f"model.injection: '{injection.name}' needs a vision transformer, and {backbone} is none. "  # type: ignore[attr-defined]
            f"It can have: {fitting}."
        )
    sees = role in ("teacher", "direct")
    depth = len(net.blocks) if kind == "vit" else 4  # type: ignore[arg-type]
    site: Injection = site_type(injection, width, depth)
    tokened = site.own_token
    head_width, context_width = site.head_width, (width if tokened else site.head_width)
    project: nn.Module = nn.Identity()
    if not sees:
        site = site if role == "student" and distill and tokened else Nowhere(injection, width, depth)
        if role == "student" and distill and not tokened:
            project = nn.Linear(width, context_width)
    elif head_width != width:
        _widen_head(net, head_width, classes)
    return Network(net, site, ENCODERS[encoder.name](encoder, width) if sees else None, project)  # type: ignore[attr-defined]


def _widen_head(backbone: Any, width: int, classes: int) -> None:
    """Give the backbone a head for the wider feature; the image's part keeps its weights, the context's starts at 0."""
    old = backbone.get_classifier()
    new = nn.Linear(width, classes)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_features] = old.weight
        new.bias.copy_(old.bias)
    setattr(backbone, "fc" if hasattr(backbone, "fc") and isinstance(backbone.fc, nn.Linear) else "head", new)
