"""Define momentum contrast (MoCo): the queue of keys, and the losses by which a query finds its own key among them.

See He et al., CVPR 2020 (arXiv:1911.05722). The projection is that of MoCo-v2 (arXiv:2003.04297). The loss can also be
multi-label CPC (Song and Ermon, NeurIPS 2020, arXiv:2007.09852): one softmax over all pairs of the global batch.

In shapes, `queries` is the number of queries on this rank, `keys` the number of keys in the queue, and `width` the size
of a query or key.
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
    """Define the settings of contrastive pretraining.

    Attributes:
        temporal: Take the key from an image of the same place at another time, if the training patches have one.
        geo: Geographic pretext task.
        contrast_weight: Weight of the contrastive loss.
        projection: Size of queries and keys.
        mlp: Use a hidden layer in the projection.
        queue: Number of keys that the queue holds.
        momentum: Share of the old weights that the momentum encoder keeps in a step.
        temperature: Divisor of cosines in the softmax. With a smaller value, the nearest negatives count more.
        loss: `cpc` (InfoNCE) or `ml_cpc` (multi-label CPC).
        alpha: Weight of positives in `ml_cpc` at the first step.
        alpha_end: Weight of positives in `ml_cpc` at the last step.
        alpha_schedule: How the weight moves from `alpha` to `alpha_end`.
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
        """Return the weight of positive pairs in the loss `ml_cpc` after the share `fraction` (0..1) of all steps."""
        if self.alpha_schedule == "geometric":
            return float(self.alpha * (self.alpha_end / self.alpha) ** fraction)
        return self.alpha + (self.alpha_end - self.alpha) * fraction


class Queue(nn.Module):
    """Hold the newest keys (projected images) of all ranks. They are the negatives of the contrastive loss.

    New keys replace the oldest. The queue is equal on all ranks (training processes), and is part of checkpoints.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        """Create the queue, filled with `size` random unit vectors of `width` numbers."""
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor, bad: Tensor | None = None) -> None:
        """Replace the oldest keys of the queue by new keys, in place.

        Args:
            keys: [new keys, width] keys of the global batch. If they do not all fit into the queue, only the last
                enter.
            bad: Scalar tensor. If it is true (the step was skipped), the old keys stay. None means false.
        """
        size = len(self.keys)
        keys, skipped = keys[-size:], max(0, len(keys) - size)
        places = (self.pointer + skipped + torch.arange(len(keys), device=keys.device)) % size
        fresh = keys.to(self.keys.dtype)
        self.keys.index_copy_(0, places, fresh if bad is None else torch.where(bad, self.keys[places], fresh))
        self.pointer.copy_((self.pointer + skipped + len(keys)) % size)


def similarities(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the contrastive logits: cosines of each query with its own key and with all keys of the queue, scaled.

    Args:
        query: [queries, width] queries as unit vectors.
        key: [queries, width] key of each query, as unit vectors.
        queue: [keys, width] keys of the queue, as unit vectors.
        temperature: Divisor of the cosines. With a smaller value, the nearest negatives count more.

    Returns:
        [queries, 1 + keys] logits. The first column belongs to the query's own key.
    """
    return torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / temperature


def info_nce(logits: Tensor, rows: Tensor) -> Tensor:
    """Return the InfoNCE loss of this rank's queries: the cross-entropy with which each query finds its own key.

    Args:
        logits: [queries, 1 + keys] scaled cosines of each query with its own key (first) and the keys of the queue.
        rows: Number of queries in the global batch (on all ranks), as a scalar tensor.

    Returns:
        The loss of this rank, a scalar. Its mean over ranks is the loss of the global batch.
    """
    return (torch.logsumexp(logits, 1) - logits[:, 0]).sum() * world_size() / rows


def multilabel_cpc(logits: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """Return the loss multi-label CPC: the cross-entropy of one softmax over all pairs of the global batch.

    The target is 1/N for each of the N positive pairs, and 0 for all other pairs.

    Args:
        logits: [queries, 1 + keys] scaled cosines of each query with its own key (first) and the keys of the queue.
        rows: Number of queries in the global batch (on all ranks), N, as a scalar tensor.
        alpha: Weight of positives. With K keys in the queue, negatives have the weight (K + 1 - alpha) / K.

    Returns:
        The loss of this rank, a scalar. Its mean over ranks is the loss of the global batch.
    """
    negatives = logits.shape[1] - 1
    beta = (negatives + 1 - alpha) / negatives
    shift = logits.new_full((logits.shape[1],), math.log(beta))
    shift[0] = math.log(alpha)
    weighted = logits + shift
    most = _largest(weighted.detach().max())
    total = most + sum_over_ranks((weighted.detach() - most).exp().sum()).log()
    # The normalizer has the value of all ranks, but only the gradients of this rank's pairs, since DDP adds the
    # gradients of the other ranks.
    own = (weighted - total).exp().sum()
    normalizer = total + world_size() * (own - own.detach())
    positives = weighted[:, 0].sum() * world_size() / rows
    return (normalizer - torch.log(rows) - positives) / alpha


def _largest(value: Tensor) -> Tensor:
    return gather_rows(value[None], [1] * world_size()).max()
