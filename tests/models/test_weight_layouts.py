"""Files of other programs load: the key names are those that the named public code writes."""

import argparse

import numpy as np
import pytest
import small
import torch
from torch import Tensor

from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.weight_layouts import LITE_BLOCKS
from stssl.models.weights import open_first_weights

State = dict[str, Tensor]
ARGS = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TINY = {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}
"""Arguments of a ResNet with few weights and the names of `resnet18`."""


def network(name: str, options: dict | None = None, size: int = 64) -> torch.nn.Module:
    """Build a network of timm with other weights than the next call makes."""
    return make_backbone(name, options or {}, size=size, in_channels=3, classes=7, hub=False)


def named(state: State, prefix: str) -> State:
    """Put a prefix before all names."""
    return {prefix + name: value for name, value in state.items()}


def momentum(state: State, prefix: str = "module.") -> State:
    """Name tensors as MoCo: facebookresearch/moco, moco/builder.py; the same in SSL4EO-S12 and geography-aware-ssl."""
    queue = {f"{prefix}queue": torch.zeros(2, 2), f"{prefix}queue_ptr": torch.zeros(1, dtype=torch.long)}
    return named(state, f"{prefix}encoder_q.") | named(state, f"{prefix}encoder_k.") | queue


def in_a_row(state: State) -> State:
    """Name tensors as SeCo: ServiceNow/seasonal-contrast, models/moco2_module.py (children of a ResNet in a row)."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = ((name.split(".", 1), value) for name, value in state.items() if not name.startswith("fc"))
    return {f"{places[first]}.{rest}": value for (first, rest), value in parts}


def seco(state: State) -> dict[str, object]:
    """Wrap a ResNet as SeCo's checkpoints do."""
    row = in_a_row(state)
    heads = {"heads_q.0.0.weight": torch.zeros(2, 2), "queue": torch.zeros(1, 2, 2)}
    return {
        "state_dict": named(row, "encoder_q.") | named(row, "encoder_k.") | heads,
        "hyper_parameters": {"emb_dim": 128},
    }


def masked(state: State) -> dict[str, object]:
    """Wrap a ViT as MAE and SatMAE: facebookresearch/mae, models_mae.py and util/misc.py (`save_model`)."""
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_embed.weight": torch.zeros(16, 32),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
    }
    encoder = {name: value for name, value in state.items() if not name.startswith("head.")}
    return {"model": encoder | decoder, "optimizer": {}, "epoch": 7, "scaler": {}, "args": argparse.Namespace(lr=0.1)}


def torchvision_vit(state: State) -> State:
    """Name tensors as torchvision: pytorch/vision, torchvision/models/vision_transformer.py."""
    words = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    found = {}
    for name, value in state.items():
        new = name if not name.startswith("head.") else f"heads.{name}"
        new = f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else new
        for ours, theirs in words.items():
            new = new.replace(ours, theirs)
        number = new.split(".")[1] if new.startswith("blocks.") else ""
        found[new.replace(f"blocks.{number}.", f"encoder.layers.encoder_layer_{number}.") if number else new] = value
    return found


RESNETS = {
    "timm": lambda state: state,
    "timm's train.py": lambda state: {
        "state_dict": state,
        "arch": "resnet18",
        "args": argparse.Namespace(lr=np.float32(1)),
        "metric": np.float64(1.0),
    },
    "torchvision": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    "DDP": lambda state: {"state_dict": named(state, "module.")},
    "torch.compile": lambda state: named(state, "_orig_mod."),
    "MoCo": lambda state: {"epoch": 1, "arch": "resnet18", "state_dict": momentum(state), "optimizer": {}},
    "SeCo": seco,
    "DINO": lambda state: {
        "teacher": named(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
        "student": named(state, "module.backbone."),
        "args": argparse.Namespace(arch="resnet18"),
    },
    "Lightning, torchgeo's classification": lambda state: {
        "state_dict": named(state, "model."),
        "hyper_parameters": {"model": "resnet18"},
        "pytorch-lightning_version": "2",
    },
    "torchgeo's MoCo": lambda state: {
        "state_dict": named(state, "backbone.") | named(state, "backbone_momentum."),
        "hyper_parameters": {},
    },
    "torchgeo's segmentation": lambda state: {
        "state_dict": named(state, "model.encoder.") | {"model.decoder.x.weight": torch.zeros(1)}
    },
}
"""ResNets as programs store them. timm's `save_checkpoint` is in timm/utils/checkpoint_saver.py, DINO's in
facebookresearch/dino, main_dino.py, torchgeo's tasks in torchgeo/trainers."""
VITS = {
    "USB": lambda state: {"model": named(state, "module."), "ema_model": named(state, "module."), "it": 3},
    "MAE": masked,
    "torchvision": torchvision_vit,
    "MoCo v3": lambda state: {
        "state_dict": named(state, "module.base_encoder.") | named(state, "module.momentum_encoder.")
    },
}
"""Vision transformers: USB's `save_model` is in semilearn/core/algorithmbase.py, MoCo v3's in
facebookresearch/moco-v3."""


def started(path, content, name, options=None, size=64):
    torch.save(content, path)
    first = open_first_weights(f"file:{path}", name, options or {}, size=size)
    return first, first.build(name, options or {}, size=size, in_channels=3, classes=5).state_dict()


def compared(state: State, loaded: State, head: str, but: tuple[str, ...] = ()) -> None:
    for name, value in state.items():
        if not name.startswith(head) and name not in but and not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], value), name


@pytest.fixture(scope="module")
def resnet():
    return network("resnet18", TINY).state_dict()


@pytest.fixture(scope="module")
def vit():
    return network("vit_tiny_patch16_224", ARGS, size=64).state_dict()


@pytest.mark.parametrize("layout", RESNETS)
def test_resnets_of_other_programs_load(tmp_path, layout, resnet):
    state = resnet
    first, loaded = started(tmp_path / "w.pth", RESNETS[layout](state), "resnet18", TINY)
    compared(state, loaded, "fc.")
    assert first.matching.missing == [] or layout in ("torchvision",)


@pytest.mark.parametrize("layout", VITS)
def test_vision_transformers_of_other_programs_load_and_their_positions_move(tmp_path, layout, vit):
    state = vit
    first, loaded = started(tmp_path / "w.pth", VITS[layout](state), "vit_tiny_patch16_224", ARGS, size=96)
    compared(state, loaded, "head.", but=("pos_embed",))
    assert first.matching.reshaped == {"pos_embed": "from 16 to 36 places"}
    before, after = state["pos_embed"], loaded["pos_embed"]
    grid = before[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(after[:, 1:], moved.flatten(2).mT)
    assert torch.equal(after[:, :1], before[:, :1])


@pytest.mark.parametrize(("blocks", "variant"), [(16, "lite0"), (21, "lite1"), (24, "lite3"), (30, "lite4")])
def test_blocks_of_efficientnet_lite_are_those_of_timm(blocks, variant):
    with torch.device("meta"):
        found = network(f"tf_efficientnet_{variant}")
    assert tuple(len(stage) for stage in found.blocks) == LITE_BLOCKS[blocks]


class Harmful:
    """An object whose unpickling would call `print`."""

    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"model": {"a": torch.ones(1)}, "x": Harmful()},
            "holds an object of print, and reading that could run",
        ),
        ({"state_dict": {}, "x": small.VIT}, "does not hold tensors by name"),
        ({"model": {"channel_embed": torch.ones(1), "patch_embed.0.proj.weight": torch.ones(1)}}, "groups of channels"),
    ],
)
def test_other_files_are_refused_in_words_of_our_own(tmp_path, content, words, capsys):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=words) as error:
        open_first_weights(f"file:{tmp_path}/w.pth", "resnet18", {}, size=64)
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value) and capsys.readouterr().out == ""
