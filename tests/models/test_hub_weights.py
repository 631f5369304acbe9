"""Weights of Hugging Face and of timm's hub, from a cache of the layout that `huggingface_hub` writes. No network."""

import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.weights import open_first_weights

KERNEL = "conv1.0.weight"
REVISION = "0123456789abcdef0123456789abcdef01234567"
RGB = ("B04", "B03", "B02")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that puts a file into an empty cache, as if it had been downloaded before."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def put(repository, file):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(REVISION)
        path = folder / "snapshots" / REVISION / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    return put


@pytest.fixture(scope="module")
def state():
    return make_backbone("test_resnet", {}, size=64, in_channels=3, classes=1000, hub=False).state_dict()


def opened(weights, name="test_resnet"):
    first = open_first_weights(weights, name, {}, size=64, image_bands=RGB)
    return first, first.build(name, {}, size=64, in_channels=3, classes=2).state_dict()


@pytest.mark.parametrize("weights", ["hf:some/net", "hf:some/net/model.safetensors"])
def test_a_cached_file_of_hugging_face_loads(hub, state, weights):
    path = hub("some/net", "model.safetensors")
    save_file(state, path)
    (path.parent / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    first, loaded = opened(weights)
    assert torch.equal(loaded[KERNEL], state[KERNEL]) and first.about()["source"] == weights


def test_the_file_must_be_named_if_there_are_several(hub, state):
    for file in ("a.pth", "deep/b.pth"):
        torch.save(state, hub("some/net", file))
    with pytest.raises(ConfigError, match=r"name the file, as hf:OWNER/NAME/FILE\. Files of weights: a\.pth, deep/b"):
        opened("hf:some/net")
    assert torch.equal(opened("hf:some/net/deep/b.pth")[1][KERNEL], state[KERNEL])


def test_the_name_of_a_cached_file_says_what_it_was_fed(hub):
    state = make_backbone("test_resnet", {}, size=64, in_channels=13, classes=2, hub=False).state_dict()
    torch.save(state, hub("wangyi111/SSL4EO-S12", "B13_rn18_moco_0099_ckpt.pth"))
    first, loaded = opened("hf:wangyi111/SSL4EO-S12/B13_rn18_moco_0099_ckpt.pth")
    assert torch.equal(loaded[KERNEL], state[KERNEL][:, [3, 2, 1]])
    assert first.scaling("uint16").std == (10_000,) * 3


@pytest.mark.parametrize("weights", ["timm:r160_in1k", "timm:test_resnet.r160_in1k", "imagenet"])
def test_cached_weights_of_timm_load_with_what_they_were_fed(hub, state, weights):
    save_file(state, hub("timm/test_resnet.r160_in1k", "model.safetensors"))
    first, loaded = opened(weights)
    assert torch.equal(loaded[KERNEL], state[KERNEL])
    assert first.scaling("uint8").mean == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406], abs=40)
    assert first.about()["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("hf:some/absent", "cannot load hf:some/absent from Hugging Face"),
        ("hf:some/absent/model.safetensors", "cannot load hf:some/absent/model.safetensors from Hugging Face"),
        ("hf:some/net/absent.pth", "cannot load hf:some/net/absent.pth from Hugging Face"),
        ("hf:some", r"give hf:OWNER/NAME or hf:OWNER/NAME/FILE"),
        ("hf:so me/n et/x", "cannot load hf:so me"),
        ("timm:r160_in1k", "cannot load the weights of test_resnet.r160_in1k from timm's hub"),
        ("timm:absent", r"timm has no weights 'absent' of test_resnet. It has: r160_in1k"),
    ],
)
def test_what_is_not_in_the_cache_gives_one_line_without_a_network(hub, state, weights, words):
    torch.save(state, hub("some/net", "w.pth"))
    with pytest.raises(ConfigError, match=words) as error:
        opened(weights)
    assert "\n" not in str(error.value)
