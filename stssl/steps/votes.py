"""Pseudo-labels from pixels and place together: what patches nearby were taken for, as a prior of each patch.

Land cover is spatially autocorrelated: neighbors often share a class, and a confident mistake of one patch is seldom
its neighbors' as well. The labeler's probabilities p of a patch become, up to a factor,

    p * (votes / prior)^weight,    votes = sum of exp(-distance / reach) * p of each neighbor + PSEUDO * prior,

where the neighbors' p are what the labeler last said of their weak views, without any votes (of labeled patches: the
label), and the prior is the mean over all patches that it has spoken of. A patch never votes for itself, and votes are
not remembered, so that a mistake can spread only by way of what the network learns. Only training patches vote, and
only on pseudo-labels: votes give the student no place.

The memory starts with the labels alone, at the first step that learns from unlabeled patches, and is full one pass over
them later. It is part of checkpoints: 4 bytes a patch, group and way.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms import LabelerOutputs
from stssl.base.batch import IGNORED, View
from stssl.base.config import Config, Domain, Positive
from stssl.base.sphere import on_sphere

EARTH_KM = 6371.0
PSEUDO = 0.5
"""Neighbors at no distance that the prior counts for."""
LEAST = 1e-6
"""What a way that was never said counts for, as a number of patches."""


class NoVotesConfig(Config):
    """Pseudo-labels are the labeler's alone."""

    name: Literal["none"] = "none"


class VotesConfig(Config):
    """Set how many neighbors vote on a pseudo-label, the distance where a vote counts 1/e, and the votes' weight."""

    name: Literal["votes"] = "votes"
    count: Annotated[Positive, Domain(4, 64, log=True)] = 32
    reach_km: Annotated[float, Field(gt=0), Domain(0.5, 50.0, log=True)] = 4.0
    weight: Annotated[float, Field(gt=0), Domain(0.25, 2.0)] = 1.0


AnyVotesConfig = NoVotesConfig | VotesConfig


class Votes(nn.Module):
    """Remembers what the labeler said of every unlabeled patch, and lets neighbors vote."""

    near: Tensor
    share: Tensor
    last_probabilities: Tensor
    fixed: Tensor

    def __init__(self, config: VotesConfig, metadata: Tensor, targets: Tensor, choices: int) -> None:
        """Find the neighbors.

        Args:
            config: How many, how far, how much.
            metadata: [N, 4] of the unlabeled stream's patches.
            targets: [N, G] choice ids that the run may know, `IGNORED` elsewhere.
            choices: K.
        """
        super().__init__()
        self.weight = config.weight
        near, distance = nearest_places(metadata, config.count)
        share = torch.exp(-distance / config.reach_km).float()
        known = targets != IGNORED
        last_probabilities = torch.zeros(*targets.shape, choices).scatter_(
            -1, targets.clamp_min(0).long()[..., None], 1.0
        )
        self.register_buffer("near", near, persistent=False)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("fixed", known, persistent=False)
        self.register_buffer("last_probabilities", last_probabilities * known[..., None])

    def observe(self, outputs: LabelerOutputs) -> None:
        """Remember what the labeler says of weak views, once a step, from the rows of the whole global batch.

        Of a patch that stands in it twice, the last counts. Logits that are all 0 come from a step gone wrong: nothing
        was said.
        """
        index, order = outputs.index.sort(stable=True)
        newest = torch.searchsorted(index, index, right=True) - 1
        logits = outputs.labeler[View.UNLABELED_WEAK][order][newest]
        keep = self.fixed[index][..., None] | (logits == 0).all(-1, keepdim=True)
        self.last_probabilities[index] = torch.where(keep, self.last_probabilities[index], logits.softmax(-1))

    def with_votes(self, outputs: LabelerOutputs) -> LabelerOutputs:
        """The same with the labeler's logits [B, G, K] of weak views as their neighbors' votes change them."""
        prior = self.last_probabilities.sum(0).clamp_min(LEAST)
        prior = prior / prior.sum(-1, keepdim=True)
        share = self.share[outputs.index][..., None, None]
        # Not as a product of matrices, which autocast would take in bf16.
        votes = (share * self.last_probabilities[self.near[outputs.index]]).sum(1) + PSEUDO * prior
        shift = (votes / votes.sum(-1, keepdim=True)).log() - prior.log()
        logits = outputs.labeler[View.UNLABELED_WEAK] + self.weight * shift
        return replace(outputs, labeler={**outputs.labeler, View.UNLABELED_WEAK: logits})


def nearest_places(metadata: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions and distances in km, each [N, count] (fewer where there are fewer places), of the nearest others.

    Patches without a place have neighbors at an infinite distance, and are nobody's.
    """
    from scipy.spatial import KDTree

    points = on_sphere(metadata).numpy()
    known = np.flatnonzero(~np.isnan(points).any(1))
    near = torch.zeros(len(points), min(count, max(len(known) - 1, 0)), dtype=torch.int64)
    distance = torch.full(near.shape, torch.inf)
    if near.shape[1]:
        chords, found = KDTree(points[known]).query(points[known], near.shape[1] + 1)
        # A patch itself comes first but among others at the very same place.
        own = found == np.arange(len(known))[:, None]
        own[~own.any(1), -1] = True
        keep = ~own
        near[known] = torch.from_numpy(known[found[keep].reshape(len(known), -1)])
        arcs = 2 * EARTH_KM * np.arcsin(np.clip(chords[keep].reshape(len(known), -1) / 2, 0, 1))
        distance[known] = torch.from_numpy(arcs).float()
    return near, distance
