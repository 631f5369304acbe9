"""Which parameters decay, and which learning rate a step has."""

import math

import pytest
import torch
from torch import nn

from stssl.recipes.optimizers import AdamWConfig, ScheduleConfig, SgdConfig
from stssl.training.optim import learning_rate, make_optimizer, parameter_groups


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)
        self.pos_embed, self.cls_token = nn.Parameter(torch.zeros(1, 4, 2)), nn.Parameter(torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("which", "right"),
    [
        ("kernels", {"linear.weight"}),
        ("tokens", {"linear.weight", "pos_embed", "cls_token"}),
        ("all", {"linear.weight", "linear.bias", "norm.weight", "norm.bias", "pos_embed", "cls_token"}),
    ],
)
def test_what_decays(which, right):
    module = Parts()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, others = parameter_groups(module, 0.1, which)
    assert {names[id(parameter)] for parameter in decayed["params"]} == right and decayed["weight_decay"] == 0.1
    assert {names[id(parameter)] for parameter in others["params"]} == set(names.values()) - right
    for config in (AdamWConfig(decayed=which, weight_decay=0.5), SgdConfig(decayed=which, weight_decay=0.5)):
        group = make_optimizer(Parts(), config).param_groups[0]
        assert len(group["params"]) == len(right) and group["weight_decay"] == 0.5


def test_a_held_rate_changes_once_an_epoch():
    """5 epochs of 4 steps: lr * 0.5 (1 + cos(pi epoch / epochs))."""
    held = ScheduleConfig(steps=20, decay="cosine", hold=4)
    rates = [learning_rate(step, held, 0.03) for step in range(20)]
    assert rates == pytest.approx([0.03 * 0.5 * (1 + math.cos(math.pi * (step // 4) / 5)) for step in range(20)])
    free = [learning_rate(step, ScheduleConfig(steps=20, decay="cosine"), 0.03) for step in range(20)]
    assert free[::4] == pytest.approx(rates[::4]) and free[1] < rates[1]  # the control
    late = ScheduleConfig(steps=22, warmup=2, decay="cosine", hold=4)
    assert [learning_rate(step, late, 0.03) for step in (1, 2, 5, 6)] == pytest.approx([0.015, 0.03, 0.03, rates[4]])
