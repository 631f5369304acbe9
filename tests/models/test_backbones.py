"""Backbones and the weights they start from."""

import pytest
import small
import torch
from safetensors.torch import save_file
from small import MULTILABEL, SIZE, make_network

from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.weights import load_weights


def vit(size=SIZE, in_channels=3, classes=5, **options):
    options = small.VIT | options
    return make_backbone(
        "vit_tiny_patch16_224", options, size=size, in_channels=in_channels, classes=classes, hub=False
    )


def loaded(path, role="student", **changes):
    return make_network(MULTILABEL, role, weights=f"file:{path}", **changes).backbone


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_teacher_and_student_start_from_the_same_file(tmp_path, ending):
    state, path = vit().state_dict(), tmp_path / f"weights.{ending}"
    torch.save(state, path) if ending == "pt" else save_file(state, path)
    for role in ("teacher", "student"):
        backbone = loaded(path, role)
        for name, value in backbone.state_dict().items():
            assert name.startswith("head") or torch.equal(value, state[name]), name


def test_other_grids_and_heads_are_adapted(tmp_path):
    source = vit(size=16, classes=1000)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pt")
    backbone = loaded(tmp_path / "w.pt")
    assert backbone.pos_embed.shape[1] == 5
    torch.testing.assert_close(backbone.patch_embed.proj.weight, source.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b"not a state dict"), "holds no weights that can be read"),
        (lambda path: torch.save([1, 2], path), "does not hold tensors"),
        (lambda path: torch.save(vit(depth=1).state_dict(), path), r"lacks: blocks.1"),
        (lambda path: torch.save(vit(depth=3).state_dict(), path), r"also has: blocks.2"),
        (lambda path: torch.save(vit().state_dict() | {"reg_token": torch.ones(1)}, path), "also has: reg_token"),
        (lambda path: torch.save(vit(size=48, reg_tokens=1).state_dict(), path), "other shapes: pos_embed"),
        (lambda path: torch.save(vit(in_channels=12).state_dict(), path), "sees 12 bands and data.bands has 3"),
        (lambda path: path.write_bytes(b""), "is empty. Copy or download it again"),
        (lambda path: torch.save(vit(embed_dim=24).state_dict(), path), r"other shapes: cls_token \(1, 1, 24\)"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, write, words):
    write(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit3_small_patch16_224", small.VIT | {"no_embed_class": True}),
        ("cait_xxs24_224", {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}),
    ],
)
def test_grids_are_adapted_where_class_tokens_have_no_position(tmp_path, name, options):
    source, own = (make_backbone(name, options, size=size, in_channels=3, classes=5, hub=False) for size in (16, 32))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(own, str(tmp_path / "w.pt"))
    assert own.pos_embed.shape[1] == 4 * source.pos_embed.shape[1]
    torch.testing.assert_close(own.pos_embed.mean(), source.pos_embed.mean(), atol=1e-3, rtol=0)


def test_counters_of_batchnorm_may_be_missing(tmp_path):
    source, own = (make_backbone("slim_resnet", {}, size=32, in_channels=3, classes=10, hub=False) for _ in range(2))
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "w.pt")
    load_weights(own, str(tmp_path / "w.pt"))
    assert torch.equal(own.conv1.weight, source.conv1.weight)
    torch.save({name: value for name, value in state.items() if "running_var" not in name}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"lacks: bn1\.running_var"):
        load_weights(own, str(tmp_path / "w.pt"))


def test_kernels_of_another_resnet_do_not_fit(tmp_path):
    sizes = {"size": 32, "in_channels": 3, "classes": 10, "hub": False}
    torch.save(make_backbone("resnet18", {}, **sizes).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"other shapes: layer1\.0\.conv1\.weight"):
        load_weights(make_backbone("resnet50", {}, **sizes), str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 7}, "num_classes: data.labels decides"),
        ({"pretrained": True}, "pretrained: model.weights decides"),
        ({"channels": []}, "do not fit slim_resnet"),
        ({"channels": [5, 8, 8, 8]}, "do not fit slim_resnet"),
        ({"layers": [1, 1]}, "do not fit slim_resnet"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        make_backbone("slim_resnet", options, size=32, in_channels=3, classes=10, hub=False)


def test_code_in_a_file_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"a": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="cannot be read: it holds an object of"):
        loaded(tmp_path / "w.pt")


def test_paper_sizes():
    """ViT-S/16 at 128 px and ViT-S/2 at 32 px, without their weights."""
    with torch.device("meta"):
        large = make_backbone("vit_small_patch16_224", {}, size=128, in_channels=3, classes=43, hub=False)
        small_images = make_backbone(
            "vit_small_patch16_224", {"patch_size": 2}, size=32, in_channels=3, classes=10, hub=False
        )
    assert large.pos_embed.shape == (1, 65, 384) and small_images.pos_embed.shape == (1, 257, 384)


def test_the_slim_resnet_is_small_and_keeps_the_resolution_of_its_stem():
    backbone = make_backbone("slim_resnet", {}, size=32, in_channels=3, classes=10, hub=False)
    assert 0.30e6 < sum(p.numel() for p in backbone.parameters()) < 0.34e6
    assert backbone.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 4, 4)


def test_a_head_of_the_same_shape_is_left_alone(tmp_path):
    source = vit()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    backbone = loaded(tmp_path / "w.safetensors")
    assert backbone.head.weight.shape == source.head.weight.shape
    assert not torch.equal(backbone.head.weight, source.head.weight)
