"""Make the optimizer, compute its learning rate, and clip gradients."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from stssl.recipes.optimizers import Decayed, OptimizerConfig, ScheduleConfig
from stssl.training.plain_optimizers import SGD, AdamW
from stssl.training.rates import NEW, LayerRate

TOKENS = ("pos_embed", "token", "absent", "position")
"""Ends of the names of tokens and position embeddings."""


def learning_rate(step: int, schedule: ScheduleConfig, base: float) -> float:
    """Compute the learning rate of a step: it rises linearly in the warmup and falls along a cosine after it.

    `decay: fixmatch` is base * cos(7 pi t / (16 T)) (FixMatch, arXiv:2001.07685) and ends at a fifth of the peak rate.
    `decay: cosine` ends at 0. t is the number of steps taken since the warmup; T is the number of all steps after it.
    With `hold: n`, t is rounded down to a multiple of n.

    Args:
        step: Number of the step, counted from 0.
        schedule: Schedule of the run.
        base: Peak rate, reached at the end of the warmup.
    """
    if step < schedule.warmup:
        return base * step / schedule.warmup
    taken = (step - schedule.warmup) // schedule.hold * schedule.hold
    done = taken / max(1, schedule.steps - schedule.warmup)
    if schedule.decay == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return base * max(0.0, math.cos(7 * math.pi / 16 * done))


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    which: Decayed = "kernels",
    rates: Mapping[nn.Parameter, LayerRate] | None = None,
) -> list[dict[str, Any]]:
    """Divide trainable parameters into groups, by weight decay and by learning rate.

    Parameters that are not trained are in no group. The groups of new layers (those without pretrained weights) come
    first.

    Args:
        module: Module with the parameters.
        weight_decay: Weight decay of the parameters that decay.
        which: Parameters that decay; see `AdamWConfig`.
        rates: Learning rates of the parameters that do not learn like new layers.

    Returns:
        For each learning rate, a group with weight decay and one without. `factor` multiplies the learning rate, and
        `waits` is True if the group learns nothing in the first `schedule.head_steps` steps.
    """
    found: dict[LayerRate, tuple[list[nn.Parameter], list[nn.Parameter]]] = {NEW: ([], [])}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or name.endswith(".bias")
        token = name.endswith(TOKENS)
        free = which != "all" and (plain or (token and which == "kernels"))
        found.setdefault((rates or {}).get(parameter, NEW), ([], []))[free].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "factor": rate.factor, "waits": rate.waits}
        for rate, (decayed, kept) in found.items()
        for parameters, decay in ((decayed, weight_decay), (kept, 0.0))
    ]


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, rates: Mapping[nn.Parameter, LayerRate] | None = None
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer for a module's trainable parameters, in torch's fused implementation.

    Only a fused optimizer can skip a step on the device. The training loop needs this to leave out steps with bad
    gradients.

    Args:
        module: Module with the parameters.
        config: Optimizer of the recipe.
        rates: Learning rates of the parameters that do not learn like new layers.
    """
    groups = parameter_groups(module, config.weight_decay, config.decayed, rates)
    if config.name == "sgd":
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
        # Create the momentum now. Torch would create it in the first step, and leave it uninitialized if it skips this
        # step.
        for parameter in module.parameters():
            if config.momentum and parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return AdamW(groups, lr=config.lr, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, schedule: ScheduleConfig, base: float) -> None:
    """Set the learning rate of each group for a step.

    Args:
        optimizer: Optimizer that `make_optimizer` returned.
        step: Number of the step, counted from 0.
        schedule: Schedule of the run.
        base: Peak rate of new layers.
    """
    rate = learning_rate(step, schedule, base)
    for group in optimizer.param_groups:
        waiting = group["waits"] and step < schedule.head_steps
        # Let weights wait by the rate 0, which changes no weight, and not by switching off their gradients: DDP would
        # have to search for unused weights in each step.
        group["lr"] = 0.0 if waiting else rate * group["factor"]


def clip_gradients(networks: Iterable[tuple[str, nn.Module]], bound: float | None) -> dict[str, torch.Tensor]:
    """Clip the gradients of each network to a largest norm, without making the host wait for the device.

    Args:
        networks: Name and module of each network.
        bound: Largest norm; None clips nothing.

    Returns:
        Gradient norm of each network before clipping, a scalar tensor, by the network's name.
    """
    norms = {}
    for name, network in networks:
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms[name] = nn.utils.get_total_norm(gradients, foreach=True)
        if bound is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), bound, norms[name], foreach=True)
    return norms
