"""Build networks: a backbone and, for some roles, an encoder of place and date and a site.

A role is the purpose of a network, such as `teacher`. A site is the layers that add the encoder's vector to the
backbone.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stssl.base.batch import MetadataColumn
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonMapping
from stssl.models.backbones import Backbone, make_backbone, shape_of, stages
from stssl.models.encoders import ENCODERS
from stssl.models.freezing import freeze_backbone, is_frozen
from stssl.models.injection import NOWHERE, Injection, InjectionBase, Nowhere, Shape
from stssl.models.metadata import EncoderBase, MetadataEncoder
from stssl.models.sites import INJECTIONS
from stssl.models.weights import FirstWeights, given_weights, open_first_weights

NetworkRole = Literal["plain", "student", "teacher", "direct"]
"""Purpose of a network.

`teacher` and `direct` see images and metadata (place and date). `student` sees only images, and has the layers that
distillation needs. `plain` sees only images, and has no such layers.
"""

Head = Literal["new", "weights"]
"""First weights of the head, which computes the logits: `new`, or those that `model.weights` names."""


@dataclass(frozen=True)
class Prediction:
    """Hold what a network computes for n images: logits, and the vectors that distillation compares.

    Attributes:
        logits: [n, classes] logits.
        context: [n, size] vectors: the final state of the token that the injection site has added, or the pooled
            feature (of a student, after a linear layer). In distillation, the student learns to predict the teacher's
            vectors from pixels.
    """

    logits: Tensor
    context: Tensor


class Network(nn.Module):
    """Predict classes from images and, in the roles `teacher` and `direct`, from place and date."""

    backbone: Backbone

    def __init__(
        self, backbone: Backbone, site: Injection, encoder: MetadataEncoder | None, project: nn.Module, tokens: bool
    ) -> None:
        """Join the parts of a network.

        Args:
            backbone: Backbone with its head.
            site: Site where the context enters the backbone.
            encoder: Encoder of place and date; None for networks that see no metadata.
            project: Layer that turns the pooled feature into the vector that distillation compares.
            tokens: True if the backbone is a transformer, which computes tokens; False if it computes feature maps.
        """
        super().__init__()
        self.backbone, self.site, self.encoder, self.project = backbone, site, encoder, project
        self.tokens = tokens

    def train(self, mode: bool = True) -> "Network":
        """Set training mode (`mode` True) or evaluation mode, and return the network.

        A frozen backbone stays in evaluation mode.
        """
        super().train(mode)
        for part in self.children():
            if is_frozen(part):
                part.eval()
        return self

    def forward(self, image: Tensor, metadata: Tensor | None = None, inject: bool = True) -> Prediction:
        """Predict the classes of images. Return the logits and the vectors that distillation compares.

        Args:
            image: [images, bands, height, width], normalized.
            metadata: [images, 4] latitude, longitude, day of the year and UTC hour, with NaN for missing values; None
                if all values are missing. Networks without an encoder ignore it.
            inject: False lets no context enter the backbone's blocks or stages, but the site `late` still adds it
                afterwards. CDMAD needs this for the blank image whose logits it subtracts.
        """
        feature, token = self._pooled(image, metadata, inject)
        logits: Tensor = self.backbone.get_classifier()(feature)
        return Prediction(logits, self.project(feature if token is None else token))

    def embedding(self, image: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return the pooled features of images, from which the head computes logits.

        They have the shape [images, width], or [images, 2 * width] if the site `late` appends the context.

        Args:
            image: [images, bands, height, width], normalized.
            metadata: [images, 4] latitude, longitude, day of the year and UTC hour, with NaN for missing values; None
                if all values are missing.
        """
        return self._pooled(image, metadata, True)[0]

    def _pooled(self, image: Tensor, metadata: Tensor | None, inject: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the features that enter the head.

        Args:
            image: [images, bands, height, width], normalized.
            metadata: [images, 4] places and dates, with NaN for missing values; None if all values are missing.
            inject: False lets no context enter the backbone's blocks or stages.

        Returns:
            Pooled features [images, features], with the context if the site adds it there; and the final state
                [images, width] of the site's own token, or None if the site adds no token.
        """
        context = self._context(image, metadata)
        site = self.site if inject else NOWHERE
        features, token = site.leave(self.features(image, context, site))
        return self.site.pooled(self.backbone.forward_head(features, pre_logits=True), context), token

    def features(self, image: Tensor, context: Tensor | None, site: Injection) -> Tensor:
        """Return the backbone's final tokens or feature maps of images. On the way, `site` adds the context vectors.

        Args:
            image: [images, bands, height, width], normalized.
            context: [images, width] context vectors; None without metadata.
            site: Site where the context enters.
        """
        parts = stages(self.backbone) if len(site.touched) else []
        # Hooks work with any timm model, without changes to it. Remove them after each call: a copy of this network
        # (such as an average) would contain them too, and they would call the site of the original network.
        hooks = [self._hook(parts[number], number, site, context) for number in site.touched]
        try:
            tokens = self.backbone.forward_features(image)
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
    backbone_args: JsonMapping,
    image_size: int,
    in_channels: int,
    classes: int,
    encoder: EncoderBase,
    injection: InjectionBase,
    role: NetworkRole,
    weights: str | FirstWeights,
    distill: bool,
    places: Tensor | None = None,
    head: Head = "new",
    freeze: bool = False,
) -> Network:
    """Build one network of a run, with the weights from which its training starts, and return it.

    Args:
        backbone: Name of a timm model, or `slim_resnet`.
        backbone_args: Further arguments of the backbone's constructor.
        image_size: Side of the images in pixels.
        in_channels: Number of bands.
        classes: Number of classes.
        encoder: Configuration of the metadata encoder.
        injection: Configuration of the site where the encoder's vector enters the backbone.
        role: Purpose of the network: `plain`, `student`, `teacher` or `direct`.
        weights: Weights to start from: a value of `model.weights`, or weights that are already in memory.
        distill: True if the student learns from the teacher's outputs by distillation.
        places: [patches, 4] places and dates of the training patches, for encoders that standardize.
        head: `new` starts the head from zero if weights are given, `weights` copies the head of the given weights.
        freeze: True to freeze the backbone.

    Raises:
        ConfigError: The backbone, the weights or the site do not exist, or do not fit each other.
    """
    first = open_first_weights(weights, backbone, backbone_args, size=image_size)
    sizes = {"size": image_size, "in_channels": in_channels, "classes": classes}
    net = first.build(backbone, backbone_args, **sizes, with_head=head == "weights")
    shape = shape_of(net, backbone)
    if head == "new" and given_weights(weights):
        _start_head_from_zero(net)
    site: Injection = Nowhere(injection, shape) if role == "plain" else make_site(injection, shape, backbone)
    project: nn.Module = nn.Identity()
    made: MetadataEncoder | None = None
    if role == "student":
        if distill and not site.own_token:
            project = nn.Linear(shape.width, site.head_width)
        site = site if distill and site.own_token else Nowhere(injection, shape)
    elif not isinstance(site, Nowhere):  # build no encoder without a site: it would never get a gradient
        if site.head_width != shape.width:
            _widen_head(net, site.head_width)
        made = ENCODERS[encoder.name](encoder, shape.width, places)
    if freeze:
        freeze_backbone(net, net.get_classifier())
    return Network(net, site, made, project, shape.family != "cnn")


def check_fit(*, backbone: str, backbone_args: JsonMapping, image_size: int, injection: InjectionBase) -> None:
    """Check that a backbone exists and that an injection site fits it. Load no weights.

    Args:
        backbone: Name of a timm model or `slim_resnet`.
        backbone_args: Further arguments of the backbone's constructor.
        image_size: Side of the images in pixels.
        injection: Configuration of the site.

    Raises:
        ConfigError: The backbone does not exist, or the site does not fit it. The message lists the sites that fit.
    """

    def make() -> Backbone:
        return make_backbone(backbone, backbone_args, size=image_size, in_channels=3, classes=2, hub=False)

    try:
        with torch.device("meta"):
            net = make()
    except RuntimeError:  # some constructors read values of tensors, which tensors on the device `meta` do not have
        net = make()
    with torch.device("meta"):
        make_site(injection, shape_of(net, backbone), backbone)


def make_site(injection: InjectionBase, shape: Shape, backbone: str) -> Injection:
    """Create and return the injection site (the layers by which metadata enters) for a backbone.

    Args:
        injection: Configuration of the site.
        shape: Kind and sizes of the backbone.
        backbone: Name of the backbone in messages.

    Raises:
        ConfigError: The site does not fit the backbone. The message lists the sites that fit.
    """
    name = injection.name
    site_type = INJECTIONS[name]
    if not site_type.fits(shape):
        fitting = ", ".join(name for name, site in INJECTIONS.items() if site.fits(shape))
        kind = "a plain vision transformer" if site_type.own_token else "a vision transformer"
        raise ConfigError(f"model.injection: '{name}' needs {kind}, and {backbone} is none. It can have: {fitting}.")
    return site_type(injection, shape)


def _start_head_from_zero(backbone: Backbone) -> None:
    """Set the weights and biases of the backbone's head to zero, in place.

    The gradients of a random head would change pretrained features before the head has learned anything.
    """
    with torch.no_grad():
        for parameter in backbone.get_classifier().parameters():
            parameter.zero_()


def _widen_head(backbone: Backbone, width: int) -> None:
    """Replace the backbone's head, in place, by one that takes a feature of size `width`, which is larger than before.

    The old weights stay for the old inputs. The weights of the additional inputs are 0.

    Raises:
        TypeError: The head is not one linear layer.
    """
    old = backbone.get_classifier()
    if not isinstance(old, nn.Linear):
        raise TypeError("the classifier is not one linear layer")
    new = nn.Linear(width, old.out_features)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_features] = old.weight
        new.bias.copy_(old.bias)
    path = next(name for name, module in backbone.named_modules() if module is old)
    parent, _, child = path.rpartition(".")
    setattr(backbone.get_submodule(parent), child, new)
