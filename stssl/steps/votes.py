"""Let nearby patches vote on pseudo-labels: the last predictions of a patch's neighbors become its prior.

Land cover is spatially autocorrelated: neighbors often share a class, and neighbors seldom share a confident mistake.
The labeler's probabilities p of a patch become, up to a factor,

    p * (votes / prior)^weight,    votes = sum of exp(-distance / reach) * p of each neighbor + PSEUDO * prior.

The p of a neighbor is the labeler's last prediction on its weak view, without votes, or its label if it is labeled. The
prior is the mean of these over all patches that have one. A patch never votes for itself, and the results of votes are
not stored, so that a mistake can spread only through what the network learns. Only training patches vote, and only on
pseudo-labels: the student learns nothing about places from votes.

The stored predictions begin with the labels, at the first step that learns from unlabeled patches, and are complete
after one pass over the unlabeled patches. They are part of checkpoints: 4 bytes for each patch, group and choice.
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
"""Mean radius of the Earth."""
PSEUDO = 0.5
"""Weight of the prior in the votes, as a number of neighbors at distance 0."""
LEAST = 1e-6
"""Weight in the prior of a choice that was never predicted, as a number of patches; it keeps logarithms finite."""


class NoVotesConfig(Config):
    """Configure pseudo-labels without votes."""

    name: Literal["none"] = "none"


class VotesConfig(Config):
    """Configure votes on pseudo-labels.

    Attributes:
        count: Number of nearest patches that vote.
        reach_km: Distance in km at which a vote counts 1/e of one at distance 0.
        weight: Exponent of the votes in the pseudo-label's probabilities; 0 would be none.
    """

    name: Literal["votes"] = "votes"
    count: Annotated[Positive, Domain(4, 64, log=True)] = 32
    reach_km: Annotated[float, Field(gt=0), Domain(0.5, 50.0, log=True)] = 4.0
    weight: Annotated[float, Field(gt=0), Domain(0.25, 2.0)] = 1.0


AnyVotesConfig = NoVotesConfig | VotesConfig


class Votes(nn.Module):
    """Store the labeler's last probabilities of every unlabeled patch, and let neighbors vote on pseudo-labels."""

    near: Tensor
    share: Tensor
    last_probabilities: Tensor
    fixed: Tensor

    def __init__(self, config: VotesConfig, metadata: Tensor, targets: Tensor, choices: int) -> None:
        """Find the neighbors of all patches, and store the labels that are known.

        Args:
            config: Number of neighbors, reach and weight of votes.
            metadata: [N, 4] metadata of the unlabeled stream's patches.
            targets: [N, G] choice ids of the labeled patches, `IGNORED` for all others.
            choices: K, the number of choices in each decision.
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
        """Store the labeler's probabilities on weak views; call it once in each step, with the global batch's rows."""
        # A patch that stands in the batch twice: the last row counts, since the order of writes to one place of a
        # tensor is not defined. Logits that are all 0 were not finite (`Gathering` replaces NaN): nothing is stored.
        index, order = outputs.index.sort(stable=True)
        newest = torch.searchsorted(index, index, right=True) - 1
        logits = outputs.labeler[View.UNLABELED_WEAK][order][newest]
        keep = self.fixed[index][..., None] | (logits == 0).all(-1, keepdim=True)
        self.last_probabilities[index] = torch.where(keep, self.last_probabilities[index], logits.softmax(-1))

    def with_votes(self, outputs: LabelerOutputs) -> LabelerOutputs:
        """Return labeler outputs whose logits [B, G, K] of weak views are changed by the neighbors' votes."""
        prior = self.last_probabilities.sum(0).clamp_min(LEAST)
        prior = prior / prior.sum(-1, keepdim=True)
        share = self.share[outputs.index][..., None, None]
        # A product and a sum, not a matrix product, which autocast would compute in bf16.
        votes = (share * self.last_probabilities[self.near[outputs.index]]).sum(1) + PSEUDO * prior
        shift = (votes / votes.sum(-1, keepdim=True)).log() - prior.log()
        logits = outputs.labeler[View.UNLABELED_WEAK] + self.weight * shift
        return replace(outputs, labeler={**outputs.labeler, View.UNLABELED_WEAK: logits})


def nearest_places(metadata: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest other patches of each patch.

    Args:
        metadata: [N, 4] metadata of the patches.
        count: Number of neighbors to find.

    Returns:
        Positions and distances in km, each [N, count], or fewer columns if there are fewer places. Patches without a
        place have neighbors at an infinite distance, and are no patch's neighbor.
    """
    from scipy.spatial import KDTree

    points = on_sphere(metadata).numpy()
    known = np.flatnonzero(~np.isnan(points).any(1))
    near = torch.zeros(len(points), min(count, max(len(known) - 1, 0)), dtype=torch.int64)
    distance = torch.full(near.shape, torch.inf)
    if near.shape[1]:
        chords, found = KDTree(points[known]).query(points[known], near.shape[1] + 1)
        # Each patch finds itself too, but not always first: other patches may lie at exactly its place.
        own = found == np.arange(len(known))[:, None]
        own[~own.any(1), -1] = True
        keep = ~own
        near[known] = torch.from_numpy(known[found[keep].reshape(len(known), -1)])
        arcs = 2 * EARTH_KM * np.arcsin(np.clip(chords[keep].reshape(len(known), -1) / 2, 0, 1))
        distance[known] = torch.from_numpy(arcs).float()
    return near, distance
