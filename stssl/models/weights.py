"""Load the first weights of a backbone from timm's hub or a file, and adapt them to its bands and image size."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from stssl.base.errors import ConfigError, first_line
from stssl.base.json_types import JsonMapping
from stssl.models.backbones import Backbone, make_backbone
from stssl.models.published import where_to_get
from stssl.models.sealed import UNREADABLE, read_sealed

StateDict = dict[str, Tensor]
"""Weights and buffers of a network, by name."""

COUNTERS = ("num_batches_tracked",)
"""Ends of the names of tensors that may be missing in a file of weights, because no result depends on them."""
DERIVED = (*COUNTERS, "relative_position_index", "attn_mask", "mask_token")
"""Ends of the names of tensors that a file may have although the network lacks them.

They are constants, or masked pretraining used them.
"""


def weighted_backbone(
    name: str, options: JsonMapping, weights: str, *, size: int, in_channels: int, classes: int
) -> Backbone:
    """Build a backbone and load its first weights.

    Args:
        name: `slim_resnet` or any name that timm knows.
        options: Further arguments of the backbone's constructor.
        weights: Weights to load: `none`, `imagenet` (timm's hub) or `file:PATH`.
        size: Side of the images in pixels.
        in_channels: Number of bands.
        classes: Number of outputs.

    Raises:
        ConfigError: The backbone or the weights do not exist, or the weights do not fit the backbone.
    """
    kind, _, path = weights.partition(":")
    if weights not in ("none", "imagenet") and kind != "file":
        raise ConfigError(f"model.weights: give none, imagenet or file:PATH (given: {weights!r})")
    hub = weights == "imagenet"
    backbone = make_backbone(name, options, size=size, in_channels=in_channels, classes=classes, hub=hub)
    if kind == "file":
        load_weights(backbone, path)
    return backbone


def load_weights(backbone: nn.Module, path: str) -> None:
    """Load weights from a file into a backbone, except its head. Adapt them to the backbone's bands and image size.

    Args:
        backbone: Backbone that `make_backbone` built.
        path: `.safetensors` file (such as an export of this project), or file of `torch.save` that holds only tensors.

    Raises:
        ConfigError: The file cannot be read, or it holds the weights of another model.
    """
    own, head = backbone.state_dict(), _head(backbone)
    state = {_renamed(name, own): value for name, value in read_weights(path).items()}
    state = {name: value for name, value in state.items() if not name.startswith(head)}
    needed = {name: value for name, value in own.items() if not name.startswith(head)}
    fitted = {name: _fit(name, value, own[name], backbone, path) for name, value in state.items() if name in needed}
    problems = {
        "other shapes": [
            f"{name} {tuple(state[name].shape)}" for name in fitted if fitted[name].shape != own[name].shape
        ],
        "lacks": [name for name in needed if name not in fitted and not name.endswith(COUNTERS)],
        "also has": [name for name in state if name not in needed and not name.endswith(DERIVED)],
    }
    for what, names in problems.items():
        if names:
            raise ConfigError(
                f"model.weights: {path} does not fit model.backbone ({what}: {', '.join(names[:3])}). "
                "It must be the same model, with the same model.backbone_args."
            )
    backbone.load_state_dict(fitted, strict=False)


def read_weights(path: str) -> StateDict:
    """Read tensors by name from a safetensors file or a pickled state dict. Run no code from the pickle.

    Raises:
        ConfigError: The file does not exist, is damaged, or does not hold tensors by name.
    """
    file = Path(path)
    if not file.is_file():  # reading a pipe could wait forever
        hint = where_to_get(path)
        raise ConfigError(f"model.weights: there is no file {path}" + (f".{hint}" if hint else ""))
    try:
        if file.suffix == ".safetensors":
            state: object = read_sealed(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"model.weights: cannot read {path}: {error.strerror or first_line(error)}") from None
    except UNREADABLE as error:
        raise ConfigError(f"model.weights: {path} is not a state dict: {first_line(error)}") from None
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"model.weights: {path} does not hold tensors by name")
    named = {str(name).removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}
    inner = {name.removeprefix("backbone."): value for name, value in named.items() if name.startswith("backbone.")}
    return inner or named


def _renamed(name: str, own: StateDict) -> str:
    """Return the name that a file's tensor has in this backbone.

    timm calls the last norm `fc_norm` in transformers that pool by averaging: it comes after the pooling.
    """
    other = "fc_" + name
    return other if name not in own and other in own else name


def _head(backbone: nn.Module) -> str:
    return str(getattr(backbone, "default_cfg", {}).get("classifier", "fc" if hasattr(backbone, "fc") else "head"))


def _first_kernel(backbone: nn.Module) -> str:
    """Return the name of the kernel in the backbone's first layer, which reads the image bands."""
    first = getattr(backbone, "default_cfg", {}).get("first_conv", "conv1")
    return f"{first[0] if isinstance(first, tuple | list) else first}.weight"


def _fit(name: str, value: Tensor, own: Tensor, backbone: nn.Module, path: str) -> Tensor:
    """Adapt a file's tensor to the backbone: resize position embeddings, change the bands of the first kernel."""
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    if name == "pos_embed" and value.ndim == own.ndim == 3 and value.shape != own.shape:
        grid: tuple[int, int] = getattr(backbone.get_submodule("patch_embed"), "grid_size")  # noqa: B009
        prefix = own.shape[1] - math.prod(grid)  # number of non-patch tokens with a position; it differs among models
        if math.isqrt(value.shape[1] - prefix) ** 2 != value.shape[1] - prefix:
            return value  # not a square grid: `load_weights` reports the shape
        moved: Tensor = resample_abs_pos_embed(value, list(grid), num_prefix_tokens=prefix, antialias=False)
        return moved
    if name == _first_kernel(backbone) and value.ndim == own.ndim == 4 and value.shape[1] != own.shape[1]:
        if value.shape[1] != 3:
            raise ConfigError(
                f"model.weights: {path} sees {value.shape[1]} bands and data.bands has {own.shape[1]}. "
                "Only weights for 3 bands can be adapted to others."
            )
        adapted: Tensor = adapt_input_conv(own.shape[1], value)
        return adapted
    return value
