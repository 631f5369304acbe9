"""Build timm backbones by name, with weights from timm's hub if a recipe asks for them.

Each function imports timm when it is called, not with this module: the import takes seconds, and many processes build
no network.
"""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stssl.base.errors import ConfigError, first_line
from stssl.base.json_types import JsonMapping
from stssl.models.injection import Family, Shape
from stssl.models.timm_import import load_timm

if TYPE_CHECKING:

    class Backbone(nn.Module):
        """Tell type checkers which methods timm's models have. List only those that this package uses."""

        default_cfg: dict[str, Any]

        def forward_features(self, images: Tensor) -> Tensor:
            """Compute the final tokens or feature maps of images."""

        def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
            """Pool the final tokens or feature maps, and compute logits. With `pre_logits`, stop after the pooling."""

        def get_classifier(self) -> nn.Module:
            """Return the last layer, which computes the logits."""

        def group_matcher(self, coarse: bool) -> dict[str, Any]:
            """Return patterns that find the layer of a parameter by its name. With `coarse`, a stage is one layer."""

        def reset_classifier(self, num_classes: int) -> None:
            """Replace the last layer by one with `num_classes` outputs. With 0, remove it."""
else:
    Backbone = nn.Module


def slim_resnet(in_channels: int, classes: int, **options: Any) -> Backbone:
    """Build a small timm ResNet for small images: 0.32 M parameters, first layer with stride 1, no pooling after it.

    Args:
        in_channels: Number of bands.
        classes: Number of outputs.
        **options: Arguments of timm's ResNet. One of them is `channels`: the number of channels of each stage.

    Raises:
        ValueError: `layers` or `channels` has not four numbers, or the first number of channels is odd.
    """
    load_timm()
    from timm.models.resnet import BasicBlock, ResNet

    options = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)} | options
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if len(options["channels"]) != 4 or len(options["layers"]) != 4 or options["channels"][0] % 2:
        raise ValueError("layers and channels must be 4 numbers each, the first number of channels even")
    stem = options["channels"][0]
    block: Any = BasicBlock  # timm's type hint asks for an instance, but its constructor needs the class
    network = ResNet(
        block, in_chans=in_channels, num_classes=classes, stem_type="deep", stem_width=stem // 2, **options
    )
    first = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    # Use `setattr`: timm declares other types for these layers, and type checkers would refuse a plain assignment.
    setattr(network, "conv1", first)  # noqa: B010
    setattr(network, "maxpool", nn.Identity())  # noqa: B010
    return cast(Backbone, network)


OWN: dict[str, Callable[..., Backbone]] = {"slim_resnet": slim_resnet}
"""Functions that build the backbones that timm does not have, by name."""
MISFITS = (TypeError, AssertionError, ValueError, LookupError, AttributeError)
"""Errors that timm's constructors raise if they cannot use their arguments."""
DECIDED_BY = {
    "num_classes": "data.labels",
    "in_chans": "data.bands",
    "img_size": "model.image_size",
    "pretrained": "model.weights",
    "checkpoint_path": "model.weights",
    "pretrained_cfg": "model.weights",
    "pretrained_cfg_overlay": "model.weights",
    "cache_dir": "model.weights",
}
"""Arguments that `backbone_args` must not hold, each with the recipe key that sets it."""


def make_backbone(name: str, options: JsonMapping, *, size: int, in_channels: int, classes: int, hub: bool) -> Backbone:
    """Build a backbone, the network that turns images into features, with a head that computes `classes` logits.

    Args:
        name: `slim_resnet` or any name that timm knows.
        options: Further arguments of the backbone's constructor.
        size: Side of the images in pixels.
        in_channels: Number of bands.
        classes: Number of outputs.
        hub: True to start from timm's pretrained weights, False to start from random ones.

    Raises:
        ConfigError: The name is unknown (the message lists similar names), the constructor does not take the
            arguments, another key of the recipe sets one of them, or the hub cannot be reached.
    """
    for key in DECIDED_BY.keys() & options.keys():
        raise ConfigError(f"model.backbone_args.{key}: {DECIDED_BY[key]} decides this. Leave it out.")
    if name in OWN:
        if hub:
            raise ConfigError(f"model.weights: {name} has no weights on timm's hub. Give none or file:PATH.")
        try:
            return OWN[name](in_channels, classes, **options)
        except (*MISFITS, RuntimeError) as error:
            raise ConfigError(f"model.backbone_args do not fit {name}: {first_line(error)}") from None
    timm = load_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *OWN], n=3)
        raise ConfigError(f"model.backbone: timm has no '{name}'" + (f". Near: {', '.join(near)}" if near else ""))
    # With `hub`, a RuntimeError may come from the hub's client, not from wrong arguments: see the last `except`.
    misfits = MISFITS if hub else (*MISFITS, RuntimeError)
    wanted: dict[str, Any] = {"pretrained": hub, "in_chans": in_channels, "num_classes": classes, **options}
    try:
        # Try with `img_size` first: convolutional models refuse it, and timm does not list which models take it.
        try:
            return cast(Backbone, timm.create_model(name, img_size=size, **wanted))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return cast(Backbone, timm.create_model(name, **wanted))
    except misfits as error:
        raise ConfigError(f"model.backbone_args do not fit {name} at {size} px: {first_line(error)}") from None
    except Exception as error:  # catch all types: the hub's client raises errors of several network libraries
        if not hub:
            raise
        if "loading state_dict" in str(error):
            shapes = " ".join(str(error).split())[:300]
            raise ConfigError(f"model.backbone_args do not fit the pretrained weights of {name}: {shapes}") from None
        raise ConfigError(
            f"model.weights: cannot load the weights of {name} from timm's hub ({first_line(error)}). "
            "Download them elsewhere and give model.weights=file:PATH."
        ) from None


def check_images(network: nn.Module, backbone: nn.Module, name: str, *, bands: int, size: int) -> None:
    """Pass two blank images through a network, to check that it takes images of this size.

    Try evaluation and training mode. The check is needed because timm builds some models even for a size that they
    cannot use. Without it, such a model would fail later, with an error about shapes.

    Args:
        network: Network to check. The check changes its state, so pass a network that you do not need afterwards.
        backbone: Backbone of the network. The message takes from it the size that timm made it for.
        name: Name of the backbone in messages.
        bands: Number of bands.
        size: Side of the images in pixels.

    Raises:
        ConfigError: The network cannot take such images. The message says which size timm made it for, if known.
    """
    try:
        with torch.no_grad():
            for training in (False, True):
                network.train(training)(torch.zeros(2, bands, size, size))
    except (*MISFITS, RuntimeError) as error:
        made = (getattr(backbone, "default_cfg", None) or {}).get("input_size")
        size_for = f"model.image_size={made[-1]}, which it is made for" if made else "another model.image_size"
        words = f"model.backbone: {name} cannot take images of {size} px ({first_line(error)})"
        raise ConfigError(f"{words}. Try {size_for}, or another backbone.") from None


def shape_of(backbone: Backbone, name: str) -> Shape:
    """Return the kind and the sizes of a backbone, which the injection sites (where metadata enters) need.

    Args:
        backbone: Backbone to describe.
        name: Name of the backbone in messages.

    Raises:
        ConfigError: The classifier of the backbone is not one linear layer.
    """
    from timm.models import Beit, Eva, VisionTransformer

    classifier = backbone.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(f"model.backbone: {name} does not end in one linear classifier, so it cannot be used here")
    width = classifier.in_features
    blocks = _blocks(backbone)
    if blocks is None:
        channels = tuple(info["num_chs"] for info in getattr(backbone, "feature_info", ()))
        return Shape("cnn", width, channels, channels_last=getattr(backbone, "output_fmt", None) == "NHWC")
    family: Family = "vit" if isinstance(backbone, VisionTransformer) else "tokens"
    heads = int(getattr(getattr(blocks[0], "attn", None), "num_heads", 1))
    # In other transformers (CaiT, XCiT), the class token joins the patch tokens only after the last of `blocks`, where
    # no injection site could find it.
    joins_early = isinstance(backbone, VisionTransformer | Eva | Beit)
    return Shape(family, width, (width,) * len(blocks), heads, joins_early and backbone.cls_token is not None)


def stages(backbone: nn.Module) -> list[nn.Module]:
    """List the blocks of a transformer, or the stages of another backbone: injection sites add metadata at these."""
    blocks = _blocks(backbone)
    if blocks is not None:
        return blocks
    return [backbone.get_submodule(info["module"]) for info in getattr(backbone, "feature_info", ())]


def layer_numbers(backbone: Backbone) -> dict[str, int]:
    """Number the layers of a backbone as timm groups them, so that each can have its own learning rate.

    Returns:
        For the name of each parameter, the number of its layer, counted from 0 at the images. The parameters of the
            classifier are left out.

    Raises:
        ConfigError: timm does not know the layers of this backbone.
    """
    from timm.models import group_parameters

    head = {id(parameter) for parameter in backbone.get_classifier().parameters()}
    try:
        numbers: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    except (AttributeError, NotImplementedError, AssertionError):
        raise ConfigError(
            f"optimizer.layer_decay: timm does not list the layers of {type(backbone).__name__}. "
            "Set optimizer.layer_decay=1, and optimizer.backbone_factor if the backbone shall learn more slowly."
        ) from None
    return {name: numbers[name] for name, value in backbone.named_parameters() if id(value) not in head}


def _blocks(backbone: nn.Module) -> list[nn.Module] | None:
    """Return a list of a transformer's blocks; None if the backbone is no transformer.

    Some convolutional models of timm have `blocks` too, but only transformers have `num_prefix_tokens`.
    """
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        return list(backbone.get_submodule("blocks").children())
    return None
