"""timm backbones: made by name, with weights from timm's hub or a local file.

timm is imported by who builds a network: that takes seconds, and drivers and controllers do without.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stssl.errors import ConfigError
from stssl.models.injection import Family, Shape

Weights = dict[str, Tensor]


def slim_resnet(in_channels: int, classes: int, **options: Any) -> nn.Module:
    """A timm ResNet for small images: few channels, a stride-1 stem without pooling, 0.32 M parameters by default."""
    from timm.models.resnet import BasicBlock, ResNet

    options = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)} | options
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    stem = options["channels"][0]
    network = ResNet(
        BasicBlock, in_chans=in_channels, num_classes=classes, stem_type="deep", stem_width=stem // 2, **options
    )
    network.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


OWN = {"slim_resnet": slim_resnet}


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
    if name in OWN:
        if hub:
            raise ConfigError(f"model.weights: {name} has no weights on timm's hub. Give none or file:PATH.")
        try:
            return OWN[name](in_channels, classes, **options)
        except TypeError as error:
            raise ConfigError(f"model.backbone_args do not fit {name}: {error}") from None
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *OWN], n=3)
        raise ConfigError(f"model.backbone: timm has no '{name}'" + (f". Near: {', '.join(near)}" if near else ""))
    wanted = {"pretrained": hub, "in_chans": in_channels, "num_classes": classes, **options}
    try:
        try:
            return timm.create_model(name, img_size=size, **wanted)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **wanted)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"model.backbone_args do not fit {name} at {size} px: {error}") from None
    except Exception as error:  # the hub's client raises the errors of whichever transport it uses
        if not hub:
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.weights: cannot load the weights of {name} from timm's hub ({reason}). "
            "Download them elsewhere and give model.weights=file:PATH."
        ) from None


def shape_of(backbone: Any, name: str) -> Shape:
    """What sites must know of a backbone called `name`.

    Raises:
        ConfigError: It has no single linear classifier.
    """
    from timm.models.vision_transformer import VisionTransformer

    classifier = backbone.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(f"model.backbone: {name} does not end in one linear classifier, so it cannot be used here")
    width = classifier.in_features
    if not (hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens")):
        return Shape("cnn", width, tuple(info["num_chs"] for info in getattr(backbone, "feature_info", ())))
    family: Family = "vit" if isinstance(backbone, VisionTransformer) else "tokens"
    heads = int(getattr(getattr(backbone.blocks[0], "attn", None), "num_heads", 1))
    has_class = getattr(backbone, "cls_token", None) is not None
    return Shape(family, width, (width,) * len(backbone.blocks), heads, has_class)


def stages(backbone: Any) -> list[nn.Module]:
    """The modules at which sites enter: blocks of a transformer, stages of others."""
    if hasattr(backbone, "blocks") and hasattr(backbone, "num_prefix_tokens"):
        return list(backbone.blocks)
    return [backbone.get_submodule(info["module"]) for info in backbone.feature_info]


def load_weights(backbone: nn.Module, path: str, in_channels: int) -> None:
    """Load a state dict, adapting band count and grid of position embeddings; the head is left as it is.

    Args:
        backbone: What `make_backbone` built.
        path: `.safetensors`, or a file of `torch.save` that holds tensors only; also one of this project's exports.
        in_channels: Bands of the backbone.

    Raises:
        ConfigError: The file cannot be read, or none of its tensors fit.
    """
    own, head = backbone.state_dict(), _head(backbone)
    state = {_renamed(name, own): value for name, value in read_weights(path).items()}
    fitted = {name: _fit(name, value, own[name], backbone) for name, value in state.items() if name in own}
    good = {n: value for n, value in fitted.items() if value.shape == own[n].shape and not n.startswith(head)}
    bad = [f"{name} {tuple(state[name].shape)}" for name in fitted if name not in good and not name.startswith(head)]
    missing = [name for name in own if name not in fitted and not name.startswith(head)]
    foreign = [name for name in state if name not in own and not name.startswith(head)]
    if bad or missing or len(foreign) > len(state) // 10:
        problem = (
            f"other shapes: {bad[:3]}" if bad else f"lacks {missing[:3]}" if missing else f"also has {foreign[:3]}"
        )
        raise ConfigError(f"model.weights: {path} does not fit model.backbone ({problem}). It must be the same model.")
    backbone.load_state_dict(good, strict=False)


def _renamed(name: str, own: Weights) -> str:
    """Average pooling normalises after pooling, under another name."""
    other = "fc_" + name
    return other if name not in own and other in own else name


def read_weights(path: str) -> Weights:
    """Tensors by name from a safetensors file or a pickled state dict, read without running any code of it."""
    file = Path(path)
    if not file.exists():
        raise ConfigError(f"model.weights: there is no file {path}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"model.weights: {path} is not a state dict: {str(error).splitlines()[0]}") from None
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"model.weights: {path} does not hold tensors by name")
    named = {str(name).removeprefix("module."): value for name, value in state.items()}
    inner = {name.removeprefix("backbone."): value for name, value in named.items() if name.startswith("backbone.")}
    return inner or named


def _head(backbone: nn.Module) -> str:
    return str(getattr(backbone, "default_cfg", {}).get("classifier", "fc" if hasattr(backbone, "fc") else "head"))


def _fit(name: str, value: Tensor, own: Tensor, backbone: nn.Module) -> Tensor:
    """Adapt position embeddings to another grid and the first kernel to another number of bands."""
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    if name == "pos_embed" and value.shape != own.shape:
        prefix = int(getattr(backbone, "num_prefix_tokens", 1))
        grid: Any = backbone.patch_embed
        return resample_abs_pos_embed(value, list(grid.grid_size), num_prefix_tokens=prefix, antialias=False)
    if value.ndim == 4 and own.ndim == 4 and value.shape[1] != own.shape[1] and value.shape[0] == own.shape[0]:
        return adapt_input_conv(own.shape[1], value)
    return value
