"""The linear probe: its rate, and where its settings come from."""

import numpy as np
import pytest
import torch

from stssl.analysis.probe import Frozen, linear
from stssl.base.labels import LabelSpace
from stssl.recipes.pretraining import ProbeConfig


@pytest.fixture
def frozen():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30)[:, None] % 3
    features = torch.randn(30, 8, generator=generator) + targets
    parts = ("train", "validation", "test")
    return Frozen(dict.fromkeys(parts, features), dict.fromkeys(parts, targets), np.arange(30))


def test_raw_features_take_the_rate_as_it_is(frozen):
    """The authors' rate 1 on raw features is the rate 8 of 8 standardized ones."""
    space, own = LabelSpace(("a", "b", "c"), False), (frozen.features["train"], frozen.targets["test"])
    standardized = linear(own, frozen, space, ProbeConfig(lr=8.0, epochs=4, batch=10), 0)
    raw = ProbeConfig(lr=1.0, features="raw", epochs=4, batch=10)
    assert linear(own, frozen, space, raw, 0) == standardized
    assert linear(own, frozen, space, raw.model_copy(update={"lr": 0.01}), 0) != standardized
