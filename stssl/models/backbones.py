"""timm backbones: made by name, with weights from timm's hub where asked.

timm is imported by who builds a network: that takes seconds, and drivers and controllers do without.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stssl.base.errors import ConfigError, first_line
from stssl.models.injection import Family, Shape


def slim_resnet(in_channels: int, classes: int, **options: Any) -> nn.Module:
    """Build a timm ResNet for small images: few channels, a stride-1 stem without pooling (0.32 M parameters).

    Args:
        in_channels: Bands of the images.
        classes: Outputs.
        **options: Arguments of timm's ResNet, and `channels`, the width of each stage.
    """
    from timm.models.resnet import BasicBlock, ResNet

    options = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)} | options
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if len(options["channels"]) != 4 or len(options["layers"]) != 4 or options["channels"][0] % 2:
        raise ValueError("layers and channels must be 4 numbers each, the first number of channels even")
    stem = options["channels"][0]
    network = ResNet(
        BasicBlock, in_chans=in_channels, num_classes=classes, stem_type="deep", stem_width=stem // 2, **options
    )
    network.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


OWN = {"slim_resnet": slim_resnet}
MISFITS = (TypeError, AssertionError, ValueError, LookupError, AttributeError)
"""What constructors raise at arguments that they cannot use."""
DECIDED_BY = {
    "num_classes": "data.labels",
    "in_chans": "data.bands",
    "img_size": "model.image_size",
    "pretrained": "model.weights",
}
"""Arguments of constructors that other keys of a recipe decide."""


def make_backbone(
    name: str, options: Mapping[str, Any], *, size: int, in_channels: int, classes: int, hub: bool
) -> nn.Module:
    """Build a backbone with a head of `classes` outputs.

    Args:
        name: `slim_resnet` or any name that timm knows.
        options: Further arguments of its constructor.
        size: Side of the images in pixels.
        in_channels: Bands.
        classes: Outputs.
        hub: Whether to start from timm's pretrained weights.

    Raises:
        ConfigError: Unknown name (names the nearest), arguments it does not take, or no way to the hub.
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
    wanted = {"pretrained": hub, "in_chans": in_channels, "num_classes": classes, **options}
    try:
        try:
            return timm.create_model(name, img_size=size, **wanted)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **wanted)
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
    """Pass two blank images through a network, in evaluation and in training mode, as its first step will.

    Some networks can be built for a size and not run at it, which else ends the first step with an error of theirs.

    Args:
        network: What is trained; its state changes, so pass one that is thrown away.
        backbone: Its backbone.
        name: The backbone's name in messages.
        bands: Bands of the images.
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


def shape_of(backbone: Any, name: str) -> Shape:
    """Describe the backbone called `name` for injection sites.

    Raises:
        ConfigError: It has no single linear classifier.
    """
    from timm.models import Beit, Eva, VisionTransformer

    classifier = backbone.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(f"model.backbone: {name} does not end in one linear classifier, so it cannot be used here")
    width = classifier.in_features
    if not (hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens")):
        channels = tuple(info["num_chs"] for info in getattr(backbone, "feature_info", ()))
        return Shape("cnn", width, channels, channels_last=getattr(backbone, "output_fmt", None) == "NHWC")
    family: Family = "vit" if isinstance(backbone, VisionTransformer) else "tokens"
    heads = int(getattr(getattr(backbone.blocks[0], "attn", None), "num_heads", 1))
    # Other transformers (CaiT, XCiT) have one that joins the patches after the last of `blocks`.
    has_class = isinstance(backbone, VisionTransformer | Eva | Beit) and backbone.cls_token is not None
    return Shape(family, width, (width,) * len(backbone.blocks), heads, has_class)


def stages(backbone: Any) -> list[nn.Module]:
    """The modules at which sites enter: blocks of a transformer, stages of others."""
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        return list(backbone.blocks)
    return [backbone.get_submodule(info["module"]) for info in backbone.feature_info]
