"""Momentum contrast: a query must find its key among many.

He et al., CVPR 2020 (arXiv:1911.05722) with MoCo-v2's projection (arXiv:2003.04297), and the multi-label CPC variant of
its loss (Song and Ermon, NeurIPS 2020, arXiv:2007.09852), all positives of the global batch in one softmax.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from stssl.base.config import Config, Domain, Positive
from stssl.base.distributed import gather_rows, sum_over_ranks, world_size
from stssl.contrastive.geography import GeoConfig, NoGeoConfig


class PretextConfig(Config):
    """Configure contrastive learning: queue, temperature, momentum.

    `temporal` takes the key from another acquisition of the same place. `loss: ml_cpc` moves its weight of positives
    from `alpha` to `alpha_end`, linearly or geometrically.
    """

    temporal: bool = False
    geo: Annotated[GeoConfig, Field(discriminator="name")] = NoGeoConfig()
    contrast_weight: Annotated[float, Field(ge=0)] = 1.0
    projection: Positive = 128
    mlp: bool = True
    queue: Positive = 65_536
    momentum: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    temperature: Annotated[float, Field(gt=0), Domain(0.01, 0.5, log=True)] = 0.02
    loss: Annotated[Literal["cpc", "ml_cpc"], Domain(choices=("cpc", "ml_cpc"))] = "cpc"
    alpha: Annotated[float, Field(gt=0)] = 1.0
    alpha_end: Annotated[float, Field(gt=0)] = 1.0
    alpha_schedule: Literal["linear", "geometric"] = "linear"

    @model_validator(mode="after")
    def _possible(self) -> "PretextConfig":
        if max(self.alpha, self.alpha_end) >= self.queue + 1:
            raise ValueError(f"alpha and alpha_end must be below queue + 1, which is {self.queue + 1}")
        return self

    def alpha_at(self, fraction: float) -> float:
        """Weight of positives when a share of the steps is done."""
        if self.alpha_schedule == "geometric":
            return float(self.alpha * (self.alpha_end / self.alpha) ** fraction)
        return self.alpha + (self.alpha_end - self.alpha) * fraction


class Queue(nn.Module):
    """The last keys of all ranks, newest over oldest; the same on every rank, and part of every checkpoint."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        """Start with `size` random unit vectors of `width` numbers."""
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor, bad: Tensor | None = None) -> None:
        """Take in the global batch's keys [n, width]; of more than fit, the last ones stay; where `bad`, none."""
        size = len(self.keys)
        keys, skipped = keys[-size:], max(0, len(keys) - size)
        places = (self.pointer + skipped + torch.arange(len(keys), device=keys.device)) % size
        fresh = keys.to(self.keys.dtype)
        self.keys.index_copy_(0, places, fresh if bad is None else torch.where(bad, self.keys[places], fresh))
        self.pointer.copy_((self.pointer + skipped + len(keys)) % size)


def similarities(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """[n, 1 + K] the query's likeness to its key (first) and to the queue, over the temperature.

    Args:
        query: [n, width], unit vectors.
        key: [n, width], unit vectors.
        queue: [K, width], unit vectors.
        temperature: The smaller, the more the nearest negatives count.
    """
    return torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature


def info_nce(logits: Tensor, rows: Tensor) -> Tensor:
    """InfoNCE of this rank's rows, scaled so that the mean over ranks is the global batch's mean.

    Args:
        logits: [n, 1 + K] of `similarities`.
        rows: Number of rows of the global batch.
    """
    return (torch.logsumexp(logits, 1) - logits[:, 0]).sum() * world_size() / rows


def multilabel_cpc(logits: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """One softmax over all positives and negatives of the global batch, against 1/N at each positive.

    Args:
        logits: [n, 1 + K] of `similarities`.
        rows: N, rows of the global batch.
        alpha: Weight of positives; negatives have (K + 1 - alpha) / K.
    """
    negatives = logits.shape[1] - 1
    beta = (negatives + 1 - alpha) / negatives
    shift = logits.new_full((logits.shape[1],), math.log(beta))
    shift[0] = math.log(alpha)
    weighted = logits + shift
    most = _largest(weighted.detach().max())
    total = most + sum_over_ranks((weighted.detach() - most).exp().sum()).log()
    # Each rank differentiates its own part of the normalizer; the value is the global one.
    own = (weighted - total).exp().sum()
    normalizer = total + world_size() * (own - own.detach())
    positives = weighted[:, 0].sum() * world_size() / rows
    return (normalizer - torch.log(rows) - positives) / alpha


def _largest(value: Tensor) -> Tensor:
    return gather_rows(value[None], [1] * world_size()).max()
