"""timm backbones: made by name, with weights from timm's hub or a local file."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stssl.errors import ConfigError

Weights = dict[str, Tensor]


def slim_resnet(in_channels: int, classes: int, **options: Any) -> ResNet:
    """A timm ResNet for small images: few channels, a stride-1 stem without pooling, 0.32 M parameters by default."""
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
_SIZED = frozenset({"vision_transformer", "deit", "eva", "beit", "cait", "xcit", "swin_transformer"})


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
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *OWN], n=3)
        raise ConfigError(f"model.backbone: timm has no '{name}'" + (f". Near: {', '.join(near)}" if near else ""))
    sized = {"img_size": size} if _takes_size(name) else {}
    try:
        return timm.create_model(name, pretrained=hub, in_chans=in_channels, num_classes=classes, **sized, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"model.backbone_args do not fit {name} at {size} px: {error}") from None
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.weights: cannot load the weights of {name} from timm's hub: {error}. "
            "Download them elsewhere and give model.weights=file:PATH."
        ) from None


def _takes_size(name: str) -> bool:
    """Whether the model's constructor has `img_size`: ViTs do, plain CNNs do not."""
    return timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1] not in (
        "resnet",
        "convnext",
        "efficientnet",
    )


def family(backbone: nn.Module) -> str:
    """`vit` where the parts that token sites need are there, else `cnn`."""
    return "vit" if isinstance(backbone, VisionTransformer) else "cnn"


def load_weights(backbone: nn.Module, path: str, in_channels: int) -> None:
    """Load a state dict, adapting band count and grid of position embeddings; the head is left as it is.

    Args:
        backbone: What `make_backbone` built.
        path: `.safetensors`, or a file of `torch.save` that holds tensors only; also one of this project's exports.
        in_channels: Bands of the backbone.

    Raises:
        ConfigError: The file cannot be read, or none of its tensors fit.
    """
    state = read_weights(path)
    own = backbone.state_dict()
    fitted = {name: _fit(name, value, own[name], backbone) for name, value in state.items() if name in own}
    good = {name: value for name, value in fitted.items() if value.shape == own[name].shape}
    bad = [name for name in fitted if name not in good and not name.startswith(_head(backbone))]
    missing = [name for name in own if name not in good and not name.startswith(_head(backbone))]
    if bad or len(missing) > len(own) // 2:
        wrong = ", ".join((bad or missing)[:4])
        raise ConfigError(f"model.weights: {path} does not fit model.backbone: {wrong}")
    backbone.load_state_dict(good, strict=False)


def read_weights(path: str) -> Weights:
    """Tensors by name from a safetensors file or a pickled state dict, read without running any code of it."""
    file = Path(path)
    if not file.exists():
        raise ConfigError(f"model.weights: there is no file {path}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"model.weights: {path} is not a state dict: {str(error).splitlines()[0]}") from None
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"model.weights: {path} does not hold tensors by name")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _head(backbone: nn.Module) -> str:
    return str(getattr(backbone, "default_cfg", {}).get("classifier", "fc" if isinstance(backbone, ResNet) else "head"))


def _fit(name: str, value: Tensor, own: Tensor, backbone: nn.Module) -> Tensor:
    """Adapt position embeddings to another grid and the first kernel to another number of bands."""
    if name == "pos_embed" and value.shape != own.shape:
        prefix = int(getattr(backbone, "num_prefix_tokens", 1))
        grid: Any = backbone.patch_embed
        return resample_abs_pos_embed(value, list(grid.grid_size), num_prefix_tokens=prefix)
    if value.ndim == 4 and own.ndim == 4 and value.shape[1] != own.shape[1] and value.shape[0] == own.shape[0]:
        return adapt_input_conv(own.shape[1], value)
    return value
