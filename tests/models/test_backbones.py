"""Backbones and the weights they start from."""

import pytest
import small
import torch
from safetensors.torch import save_file
from small import MULTILABEL, SIZE, make_network

from stssl.errors import ConfigError
from stssl.models.backbones import make_backbone


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


def test_other_bands_grids_and_heads_are_adapted(tmp_path):
    source = vit(size=16, classes=1000)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pt")
    backbone = loaded(tmp_path / "w.pt", in_channels=12)
    assert backbone.patch_embed.proj.weight.shape[1] == 12 and backbone.pos_embed.shape[1] == 5
    # Bands repeat, scaled so that an even image gives what it gave.
    image = torch.ones(1, 1, SIZE, SIZE)
    torch.testing.assert_close(
        backbone.patch_embed(image.expand(-1, 12, -1, -1)),
        source.patch_embed.proj(image.expand(-1, 3, -1, -1)).flatten(2).mT,
    )


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b"not a state dict"), "is not a state dict"),
        (lambda path: torch.save([1, 2], path), "does not hold tensors"),
        (lambda path: torch.save(vit(depth=1).state_dict(), path), r"lacks \['blocks.1"),
        (lambda path: torch.save(vit(depth=3).state_dict(), path), r"also has \['blocks.2"),
        (lambda path: torch.save(vit(embed_dim=24).state_dict(), path), r"other shapes: \['cls_token \(1, 1, 24\)"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, write, words):
    write(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path / "w.pt")


def test_code_in_a_file_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"a": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="is not a state dict"):
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
