"""Optimiser and learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def learning_rate(step: int, total: int, warmup: int, base: float) -> float:
    """Linear warm-up, then cosine: base * cos(7 pi t / (16 T)), never below 0 (FixMatch, arXiv:2001.07685).

    Args:
        step: The step about to be taken, from 0.
        total: Steps of the run.
        warmup: Steps of the warm-up.
        base: Peak rate.
    """
    if step < warmup:
        return base * step / warmup
    done = (step - warmup) / max(1, total - warmup)
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


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over a module's trainable parameters, fused where the device has it."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr, fused=True)


def clip_gradients(networks: Iterable[tuple[str, nn.Module]], bound: float | None) -> dict[str, torch.Tensor]:
    """Bound each network's gradient norm on its own; returns the norms before, by name."""
    norms = {}
    for name, network in networks:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms[name] = nn.utils.get_total_norm(gradients, foreach=True)
        if bound is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), bound, norms[name], foreach=True)
    return norms
