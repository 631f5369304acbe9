"""Check whole pretraining steps against recorded values: contrastive losses, queue, momentum encoder, SGD."""

import math
from typing import Any
from unittest.mock import patch

import torch
from oracle import Oracle
from torch import nn

from stssl.base.batch import Progress
from stssl.contrastive import step as contrastive
from stssl.contrastive.geography import ClustersConfig
from stssl.contrastive.moco import PretextConfig, similarities
from stssl.contrastive.step import ContrastiveStep, Pairs, PretrainEncoder
from stssl.recipes.optimizers import SgdConfig
from stssl.training.optim import make_optimizer


class Small(PretrainEncoder):
    """Build the small encoder of the recorded run: Linear, ReLU, and a last part `fc` (three layers with `mlp`)."""

    def __init__(self, c: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.l1 = nn.Linear(c["in"], c["h"])
        last = nn.Linear(c["h"], c["dim"])
        self.fc = nn.Sequential(nn.Linear(c["h"], c["h"]), nn.ReLU(), last) if c["mlp"] else last

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.fc(self.l1(image).relu())
        return embedding


def built(oracle: Oracle, c: dict[str, Any]) -> ContrastiveStep:
    count = c["G"]
    turns = torch.arange(count) * (2 * math.pi / count)
    centers = torch.stack([turns.cos(), turns.sin(), torch.zeros(count)], 1)
    config = PretextConfig(
        geo=ClustersConfig(k=count),
        projection=c["dim"],
        mlp=c["mlp"],
        queue=c["K"],
        momentum=c["m"],
        temperature=c["T"],
        loss=c["loss"],
        alpha=float(c["alpha"]),
        # Without the geometric schedule, the reference never leaves alpha, whatever alpha_low says.
        alpha_end=float(c["alpha_low"] if c["ml_cpc_alpha_geo"] else c["alpha"]),
        alpha_schedule="geometric" if c["ml_cpc_alpha_geo"] else "linear",
    )
    step = ContrastiveStep(Small(c), config, centers, seed=0)
    load(step.networks["query"], oracle, "init/encoder_q.")
    load(step.momentum.network, oracle, "init/encoder_k.")
    load(step.networks["geo"], oracle, "init_geo/")
    step.queue.keys.copy_(torch.from_numpy(oracle["init/queue"]).T)
    step.queue.pointer.copy_(torch.from_numpy(oracle["init/queue_ptr"]))
    return step


def load(module: nn.Module, oracle: Oracle, prefix: str) -> None:
    for name, parameter in module.named_parameters():
        parameter.data.copy_(torch.from_numpy(oracle[f"{prefix}{name}"]))


def pairs(oracle: Oracle, it: int, c: dict[str, Any]) -> Pairs:
    """Make the pairs of iteration `it`. Each query's place is the center of its recorded cluster."""
    longitude = torch.from_numpy(oracle["in_geo"][it]) * (360.0 / c["G"])
    metadata = torch.full((len(longitude), 4), torch.nan)
    metadata[:, 0], metadata[:, 1] = 0.0, (longitude + 180) % 360 - 180
    query, key = (torch.from_numpy(oracle[name][it]) for name in ("in_q", "in_k"))
    return Pairs(query, key, metadata, torch.zeros(len(query), dtype=torch.bool))


def epoch_of(c: dict[str, Any], it: int) -> float:
    """Return the epoch of a step: the file has one number for all steps, or one for each step."""
    return float(c["epoch"][it] if isinstance(c["epoch"], list) else c["epoch"])


def alpha_of(c: dict[str, Any], it: int) -> float:
    """Return the weight of positives in the reference: constant, or geometric from alpha to alpha_low."""
    if c["loss"] != "ml_cpc":
        return 1.0
    if not c["ml_cpc_alpha_geo"]:
        return float(c["alpha"])
    left = 1 - epoch_of(c, it) / c["epochs"]
    return math.exp((math.log(c["alpha"]) - math.log(c["alpha_low"])) * left + math.log(c["alpha_low"]))


def check_moco_geo(oracle: Oracle) -> None:
    c = oracle.json("config")
    step = built(oracle, c)
    settings = SgdConfig(lr=c["lr"], momentum=c["sgd_momentum"], weight_decay=c["weight_decay"], decayed="all")
    optimizer = make_optimizer(step.networks, settings)
    seen: dict[str, torch.Tensor] = {}
    step.networks["query"].register_forward_hook(lambda _, __, out: seen.update(embeddings=out))

    def watched(*arguments: Any) -> torch.Tensor:
        seen["logits"] = similarities(*arguments)
        return seen["logits"]

    for it in range(len(oracle["in_q"])):
        optimizer.zero_grad()
        with patch.object(contrastive, "similarities", watched):
            # The recorded schedule counts epochs, and a part of an epoch is no whole number.
            output = step(pairs(oracle, it, c), Progress(epoch_of(c, it), c["epochs"]))  # type: ignore[arg-type]
        output.loss.backward()
        optimizer.step()
        step.after_optimizer(torch.tensor(False))
        compare(oracle, it, c, step=step, seen=seen, logs=output.logs)
    for ours, theirs in ((step.networks["query"], "q"), (step.momentum.network, "k")):
        for name, parameter in ours.named_parameters():
            oracle.expect(f"final/encoder_{theirs}.{name}", parameter)
    for name, parameter in step.networks["geo"].named_parameters():
        oracle.expect(f"final_geo/{name}", parameter)
    oracle.expect("final/queue", step.queue.keys.T)
    oracle.expect("final/queue_ptr", step.queue.pointer, exact=True)


def compare(
    oracle: Oracle,
    it: int,
    c: dict[str, Any],
    *,
    step: ContrastiveStep,
    seen: dict[str, torch.Tensor],
    logs: dict[str, torch.Tensor],
) -> None:
    oracle.expect("out_embeddings", seen["embeddings"], it)
    oracle.expect("out_logits", seen["logits"], it)
    oracle.expect("out_labels", torch.zeros(c["N"]), it, exact=True)
    oracle.expect("out_contrastive_loss", logs["contrast"], it)
    oracle.expect("out_criterion_raw", logs["contrast"] * alpha_of(c, it), it)
    oracle.expect("out_geo_loss", logs["geo"], it)
    oracle.expect("out_total_loss", logs["loss"], it)
    oracle.expect("state_queue", step.queue.keys.T, it)
    oracle.expect("state_queue_ptr", step.queue.pointer, it, exact=True)
    last = dict(step.momentum.network.named_parameters())
    name = "fc.2.weight" if c["mlp"] else "fc.weight"
    oracle.expect("state_k_fc", last[name], it)
