"""Averaged weights and their BatchNorm statistics."""

import pytest
import torch
from torch import nn

from stssl.models.ema import Ema, batchnorms, frozen_statistics, reestimate_batchnorm


def test_an_average_follows_without_touching_the_network():
    live = nn.Linear(3, 2)
    average = Ema(live, 0.9)
    start = live.weight.detach().clone()
    with torch.no_grad():
        live.weight.add_(1.0)
    average.update(live)
    torch.testing.assert_close(average.network.weight, start + 0.1)
    torch.testing.assert_close(live.weight, start + 1.0)
    assert not average.network.weight.requires_grad


def test_an_average_is_never_in_training_mode():
    average = Ema(nn.Dropout(), 0.9)
    average.train()
    assert not average.network.training


def test_reestimated_statistics_are_those_of_the_batches():
    layer = nn.BatchNorm1d(4)
    batches = [torch.randn(50, 4) * 3 + 2 for _ in range(6)]
    reestimate_batchnorm(layer, lambda: (layer(batch) for batch in batches))
    torch.testing.assert_close(layer.running_mean, torch.stack(batches).mean((0, 1)))
    torch.testing.assert_close(layer.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))
    assert layer.momentum == pytest.approx(0.1) and not layer.training


def test_frozen_statistics_normalize_by_the_batch():
    layer = nn.BatchNorm1d(4)
    batch = torch.randn(50, 4) * 3 + 2
    expected = nn.BatchNorm1d(4)(batch)
    for training in (True, False):
        layer.train(training)
        with frozen_statistics(layer):
            torch.testing.assert_close(layer(batch), expected)
    assert torch.equal(layer.running_mean, torch.zeros(4)) and layer.num_batches_tracked == 0
    assert batchnorms(layer) == [layer]


def test_frozen_statistics_come_back_after_an_error():
    layer = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="stop"), frozen_statistics(layer):
        raise ValueError("stop")
    assert layer.running_mean is not None
