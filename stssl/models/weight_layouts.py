"""Recognize by the names of its tensors which program wrote a file of weights, and translate the names to timm's.

The names are translated in two steps. First, the prefixes of `WRAPPERS` are removed one after the other, as long as one
fits: trainers put them before the names of one network among several. Then the first of `DIALECTS` that fits translates
the names. To support another program, add a line to one of these tables, with the public code that writes such files as
`source`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from stssl.base.errors import ConfigError
from stssl.models.weight_files import StateDict

Names = frozenset[str]
"""Names of the tensors in a file."""


@dataclass(frozen=True)
class Wrapper:
    """Describe a prefix that a trainer puts before the tensor names of the network that it trains.

    Attributes:
        name: Name of the trainer in messages.
        prefix: The prefix, which is taken off. Tensors without it belong to the trainer's other networks, and are set
            aside.
        source: URL of public code that writes such files.
        needs: Other prefixes: the wrapper fits only if a tensor of the file has one of them. They tell it apart from
            networks that use `prefix` in their own names. Empty if `prefix` alone is enough.
    """

    name: str
    prefix: str
    source: str
    needs: tuple[str, ...] = ()

    def fits(self, names: Names) -> bool:
        """Return True if a file with these tensor names was written by this trainer.

        At least one name must start with `prefix` and, if `needs` is not empty, another with one of `needs`.
        """
        found = any(name.startswith(self.prefix) for name in names)
        return found and (not self.needs or any(name.startswith(self.needs) for name in names))


@dataclass(frozen=True)
class Dialect:
    """Describe a program that names the tensors of a network in its own way.

    Attributes:
        name: Name of the program in messages.
        source: URL of public code that writes such files.
        fits: Function that gets the names of all tensors and returns True if they are in this program's way.
        renamed: Function that returns timm's name of a tensor, given its name and all names; None if it is no part of
            the encoder.
        arches: Start of the names of those timm networks that compute the same outputs as the program's; empty if every
            timm network may.
    """

    name: str
    source: str
    fits: Callable[[Names], bool]
    renamed: Callable[[str, Names], str | None]
    arches: str = ""


@dataclass(frozen=True)
class Recognized:
    """Hold the tensors of a file under timm's names, and what their old names told about the file.

    Attributes:
        tensors: Tensors of the encoder and its head, by timm's names.
        layout: Names of the programs that wrote the file, joined by ` + `.
        aside: Names of tensors that were left out, such as those of a momentum encoder.
        arches: Start of the names of those timm networks that compute the same outputs as the file's; empty if unknown.
    """

    tensors: StateDict
    layout: str
    aside: list[str]
    arches: str


MOCO = "https://github.com/facebookresearch/moco/blob/main/moco/builder.py"
TORCHGEO = "https://github.com/torchgeo/torchgeo/tree/main/torchgeo/trainers"
WRAPPERS = (
    Wrapper(
        "DDP", "module.", "https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel"
    ),
    Wrapper("torch.compile", "_orig_mod.", "https://docs.pytorch.org/docs/stable/generated/torch.compile"),
    Wrapper("MoCo", "encoder_q.", MOCO),
    Wrapper(
        "MoCo v3",
        "base_encoder.",
        "https://github.com/facebookresearch/moco-v3/blob/main/moco/builder.py",
    ),
    Wrapper("Lightning", "model.", f"{TORCHGEO}/classification.py"),
    Wrapper("DINO, torchgeo's pretraining or this program", "backbone.", f"{TORCHGEO}/moco.py"),
    Wrapper(
        "segmentation models",
        "encoder.",
        "https://github.com/qubvel-org/segmentation_models.pytorch/blob/main/segmentation_models_pytorch/base/model.py",
        needs=("decoder.", "segmentation_head."),
    ),
)
"""Known trainers. After one fits and its prefix is taken off, the search starts again from the first."""

LITE_BLOCKS = {
    16: (1, 2, 2, 3, 3, 4, 1),
    21: (1, 3, 3, 4, 4, 5, 1),
    24: (1, 3, 3, 5, 5, 6, 1),
    30: (1, 4, 4, 6, 6, 8, 1),
}
"""Blocks in each stage of EfficientNet-Lite 0, 1 and 2, 3, 4, by their total number: the base numbers times the depth
coefficient, rounded up, except in the first and last stage."""
_LITE_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite(name: str, names: Names) -> str | None:
    """Return timm's name of a tensor of EfficientNet-Lite, given the name by the program efficientnet-pytorch.

    That program numbers the blocks through all stages. timm starts from 0 in each stage.

    Args:
        name: Name of the tensor.
        names: Names of all tensors, which tell the number of blocks.
    """
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return f"{_LITE_TOP[part]}.{rest}" if part in _LITE_TOP else name
    number, layer, rest = rest.split(".", 2)
    total = 1 + max(int(other.split(".")[1]) for other in names if other.startswith("_blocks."))
    place, stage = int(number), 0
    for stage, count in enumerate(LITE_BLOCKS.get(total, (total,))):  # noqa: B007 (used below)
        if place < count:
            break
        place -= count
    expanded = f"_blocks.{number}._expand_conv.weight" in names
    layer = (_LITE_EXPANDED if expanded else _LITE_PLAIN).get(layer, layer)
    return f"blocks.{stage}.{place}.{layer}.{rest}"


_VIT_TOP = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    "encoder.ln": "norm",
    "heads.head": "head",
}
_VIT_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_1": "mlp.fc1",
    "mlp.linear_2": "mlp.fc2",
}


def _torchvision_vit(name: str, names: Names) -> str | None:
    block = re.fullmatch(r"encoder\.layers\.(?:encoder_layer_)?(\d+)\.(.+)", name)
    rest, table = (block[2], _VIT_BLOCK) if block else (name, _VIT_TOP)
    for old, new in table.items():
        if rest.startswith(old):
            renamed = new + rest.removeprefix(old)
            return f"blocks.{block[1]}.{renamed}" if block else renamed
    return name


_SEQUENCE = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _seco(name: str, names: Names) -> str | None:
    number, _, rest = name.partition(".")
    return f"{_SEQUENCE[number]}.{rest}" if number in _SEQUENCE else name


def _mae(name: str, names: Names) -> str | None:
    return None if name.startswith(("decoder_", "mask_token")) else name


DIALECTS = (
    Dialect(
        "efficientnet-pytorch (EfficientNet-Lite)",
        "https://github.com/lukemelas/EfficientNet-PyTorch/blob/master/efficientnet_pytorch/model.py",
        lambda names: "_conv_stem.weight" in names and not any("._se_" in name for name in names),
        _lite,
        "tf_efficientnet_lite",
    ),
    Dialect(
        "torchvision (ViT)",
        "https://github.com/pytorch/vision/blob/main/torchvision/models/vision_transformer.py",
        lambda names: "conv_proj.weight" in names and "encoder.pos_embedding" in names,
        _torchvision_vit,
    ),
    Dialect(
        "SeCo (layers of a ResNet in a row)",
        "https://github.com/ServiceNow/seasonal-contrast/blob/main/models/moco2_module.py",
        lambda names: {"0.weight", "1.running_mean", "4.0.conv1.weight"} <= names,
        _seco,
    ),
    Dialect(
        "MAE",
        "https://github.com/facebookresearch/mae/blob/main/models_mae.py",
        lambda names: any(name.startswith("decoder_") for name in names) and "pos_embed" in names,
        _mae,
    ),
)
"""Programs with names of their own. timm, torchvision's ResNets and USB's vision transformers share timm's names."""


def recognize(tensors: StateDict, path: str) -> Recognized:
    """Find out which programs wrote a file's tensors, and translate the names of the tensors to those of timm.

    Args:
        tensors: Tensors of the file by name.
        path: Path of the file, for messages.

    Returns:
        The tensors under timm's names, and what their names told about the programs.

    Raises:
        ConfigError: The file holds a network of a kind that timm does not have.
    """
    names, aside, layout = frozenset(tensors), list[str](), list[str]()
    kept: dict[str, Tensor] = dict(tensors)
    while wrapper := next((wrapper for wrapper in WRAPPERS if wrapper.fits(frozenset(kept))), None):
        layout.append(wrapper.name)
        aside += _without(kept, wrapper.prefix)
        kept = {
            name.removeprefix(wrapper.prefix): value for name, value in kept.items() if name.startswith(wrapper.prefix)
        }
    names = frozenset(kept)
    if "channel_embed" in names or "patch_embed.0.proj.weight" in names:
        raise ConfigError(
            f"model.weights: {path} is a SatMAE with groups of channels, a network that timm does not have. SatMAE "
            "without groups can be used, such as that for RGB images."
        )
    dialect = next((dialect for dialect in DIALECTS if dialect.fits(names)), None)
    if dialect is None:
        return Recognized(kept, " + ".join([*layout, "timm's names"]), aside, "")
    renamed = {name: dialect.renamed(name, names) for name in kept}
    aside += [name for name, new in renamed.items() if new is None]
    found = {new: kept[name] for name, new in renamed.items() if new is not None}
    return Recognized(found, " + ".join([*layout, dialect.name]), aside, dialect.arches)


def _without(names: Iterable[str], prefix: str) -> list[str]:
    return [name for name in names if not name.startswith(prefix)]
