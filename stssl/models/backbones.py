"""Build timm backbones by name, with weights from timm's hub where a recipe asks for them.

timm is imported inside functions: that takes seconds, and processes that build no network do without it.
"""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stssl.base.errors import ConfigError, first_line
from stssl.base.json_types import JsonMapping
from stssl.models.injection import Family, Shape

if TYPE_CHECKING:

    class Backbone(nn.Module):
        """Declare what this package uses of timm's models, for type checkers."""

        default_cfg: dict[str, Any]

        def forward_features(self, images: Tensor) -> Tensor:
            """Compute final tokens or maps."""

        def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
            """Pool final tokens or maps."""

        def get_classifier(self) -> nn.Module:
            """Return the layer that computes logits."""

        def reset_classifier(self, num_classes: int) -> None:
            """Replace the layer that computes logits; 0 removes it."""
else:
    Backbone = nn.Module


def slim_resnet(in_channels: int, classes: int, **options: Any) -> Backbone:
    """Build a timm ResNet for small images: few channels, a stride-1 stem without pooling (0.32 M parameters).

    Args:
        in_channels: Number of bands.
        classes: Number of outputs.
        **options: Arguments of timm's ResNet, and `channels`, the width of each stage.
    """
    from timm.models.resnet import BasicBlock, ResNet

    options = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)} | options
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if len(options["channels"]) != 4 or len(options["layers"]) != 4 or options["channels"][0] % 2:
        raise ValueError("layers and channels must be 4 numbers each, the first number of channels even")
    stem = options["channels"][0]
    block: Any = BasicBlock  # timm declares an instance where its constructor wants the class
    network = ResNet(
        block, in_chans=in_channels, num_classes=classes, stem_type="deep", stem_width=stem // 2, **options
    )
    first = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
    # By `setattr`, since timm declares other types of layers than those that fit here.
    setattr(network, "conv1", first)  # noqa: B010
    setattr(network, "maxpool", nn.Identity())  # noqa: B010
    return cast(Backbone, network)


OWN: dict[str, Callable[..., Backbone]] = {"slim_resnet": slim_resnet}
"""Backbones that timm does not have."""
MISFITS = (TypeError, AssertionError, ValueError, LookupError, AttributeError)
"""Errors that timm's constructors raise if they cannot use their arguments."""
DECIDED_BY = {
    "num_classes": "data.labels",
    "in_chans": "data.bands",
    "img_size": "model.image_size",
    "pretrained": "model.weights",
}
"""Arguments of constructors that other keys of a recipe decide, and those keys."""


def make_backbone(name: str, options: JsonMapping, *, size: int, in_channels: int, classes: int, hub: bool) -> Backbone:
    """Build a backbone with a head of `classes` outputs.

    Args:
        name: `slim_resnet` or any name that timm knows.
        options: Further arguments of its constructor.
        size: Side of the images in pixels.
        in_channels: Number of bands.
        classes: Number of outputs.
        hub: True to start from timm's pretrained weights.

    Raises:
        ConfigError: The name is unknown (names the nearest), the constructor does not take the arguments, or the hub
            cannot be reached.
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
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *OWN], n=3)
        raise ConfigError(f"model.backbone: timm has no '{name}'" + (f". Near: {', '.join(near)}" if near else ""))
    misfits = MISFITS if hub else (*MISFITS, RuntimeError)  # the hub's client raises RuntimeErrors too
    wanted: dict[str, Any] = {"pretrained": hub, "in_chans": in_channels, "num_classes": classes, **options}
    try:
        # Only asking tells which models take a size: convolutional ones have no such argument.
        try:
            return cast(Backbone, timm.create_model(name, img_size=size, **wanted))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return cast(Backbone, timm.create_model(name, **wanted))
    except misfits as error:
        raise ConfigError(f"model.backbone_args do not fit {name} at {size} px: {first_line(error)}") from None
    except Exception as error:  # the hub's client raises the errors of whichever transport it uses
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
    """Check that a network takes images of a size: pass two blank ones through it, in evaluation and in training mode.

    Some of timm's models can be built for a size at which they then fail, with an error about shapes deep inside them.

    Args:
        network: Network to check. Its state changes, so pass one that is thrown away.
        backbone: Its backbone.
        name: Name of the backbone in messages.
        bands: Number of bands.
        size: Side of the images in pixels.

    Raises:
        ConfigError: The network cannot take such images; says which size it was made for, if that is known.
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
    """Describe a backbone for injection sites; `name` is its name in messages.

    Raises:
        ConfigError: Its classifier is not one linear layer.
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
    # Other transformers (CaiT, XCiT) have a class token that joins the patches only after the last of `blocks`.
    joins_early = isinstance(backbone, VisionTransformer | Eva | Beit)
    return Shape(family, width, (width,) * len(blocks), heads, joins_early and backbone.cls_token is not None)


def stages(backbone: nn.Module) -> list[nn.Module]:
    """List the modules at which sites enter: blocks of a transformer, stages of other backbones."""
    blocks = _blocks(backbone)
    if blocks is not None:
        return blocks
    return [backbone.get_submodule(info["module"]) for info in getattr(backbone, "feature_info", ())]


def _blocks(backbone: nn.Module) -> list[nn.Module] | None:
    """List the blocks of a transformer over tokens; None for other backbones.

    Some convolutional models of timm have `blocks` too: only transformers also count tokens before the patches.
    """
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        return list(backbone.get_submodule("blocks").children())
    return None
