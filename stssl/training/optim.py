"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from stssl.recipes.optimizers import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, schedule: ScheduleConfig, base: float) -> float:
    """Linear warm-up, then cosine: base * cos(7 pi t / (16 T)) (FixMatch, arXiv:2001.07685), or down to 0.

    Args:
        step: The step about to be taken, from 0.
        schedule: Of the run.
        base: Peak rate.
    """
    if step < schedule.warmup:
        return base * step / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    if schedule.decay == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return base * max(0.0, math.cos(7 * math.pi / 16 * done))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and kernels are decayed; biases, norms, tokens and position embeddings are not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or name.endswith(("pos_embed", "token", "absent", "position"))
        (kept if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer over a module's trainable parameters, fused."""
    groups = parameter_groups(module, config.weight_decay)
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
        for parameter in module.parameters():  # a first step that is left out would leave them as memory came
            if config.momentum and parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def clip_gradients(networks: Iterable[tuple[str, nn.Module]], bound: float | None) -> dict[str, torch.Tensor]:
    """Bound each network's gradient norm on its own; returns the norms before, by name."""
    norms = {}
    for name, network in networks:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms[name] = nn.utils.get_total_norm(gradients, foreach=True)
        if bound is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), bound, norms[name], foreach=True)
    return norms
