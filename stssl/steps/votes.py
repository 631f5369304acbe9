"""Let nearby patches vote on pseudo-labels: the last predictions for a patch's neighbors become its prior.

Neighbors often have the same land cover, and they seldom have the same confident mistake. Votes change the labeler's
probabilities p of a patch to the following, before they are normalized:

    p * (votes / prior)^weight,    votes = sum of exp(-distance / reach) * p of each neighbor + PSEUDO * prior.

For a labeled neighbor, p is its label. For another neighbor, p is the labeler's last prediction on its weak view,
without votes. The prior is the mean p of all patches that have a stored p. A patch never votes for itself. The results
of votes are not stored, so a mistake can spread only through what the network learns. Only training patches vote, and
only on pseudo-labels: the student learns nothing about places from votes.

At the first step that learns from unlabeled patches, only the labels are stored. The stored predictions are complete
after one pass over the unlabeled patches. They are part of checkpoints: 2 bytes for each patch, decision and choice.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms import LabelerOutputs
from stssl.base.batch import IGNORED, View
from stssl.base.config import Config, Domain, Positive
from stssl.base.distributed import exchange_device, gather_rows, rank, rows_of, world_size
from stssl.base.sphere import on_sphere

EARTH_KM = 6371.0
"""Mean radius of the Earth in km, to turn angles between places into distances."""
PSEUDO = 0.5
"""Weight of the prior (the mean prediction) among the votes of neighbors. One neighbor at distance 0 has weight 1."""
LEAST = 1e-6
"""Lower bound for a choice's sum of probabilities in the prior. It keeps the logarithm of a prior of 0 finite."""


class NoVotesConfig(Config):
    """Turn votes off: nearby patches do not change pseudo-labels."""

    name: Literal["none"] = "none"


class VotesConfig(Config):
    """Define how strongly nearby patches vote on a patch's pseudo-label.

    Attributes:
        count: Number of nearest patches that vote.
        reach_km: Distance in km at which a vote counts 1/e of a vote at distance 0.
        weight: Exponent of votes / prior. A larger weight makes votes stronger; 0 would switch them off.
    """

    name: Literal["votes"] = "votes"
    count: Annotated[Positive, Domain(4, 64, log=True)] = 32
    reach_km: Annotated[float, Field(gt=0), Domain(0.5, 50.0, log=True)] = 4.0
    weight: Annotated[float, Field(gt=0), Domain(0.25, 2.0)] = 1.0


AnyVotesConfig = NoVotesConfig | VotesConfig


class Votes(nn.Module):
    """Store the labeler's last probabilities for each patch, and let neighbors vote on pseudo-labels.

    A single-label patch has one decision with one choice for each class. A multi-label patch has one decision for each
    class, with the choices "absent" and "present".
    """

    near: Tensor
    share: Tensor
    last_probabilities: Tensor
    total: Tensor
    fixed: Tensor

    def __init__(self, config: VotesConfig, metadata: Tensor, targets: Tensor, choices: int) -> None:
        """Find the neighbors of all patches, and store the labels that are known.

        Args:
            config: Number of neighbors, reach and weight of votes.
            metadata: [patches, 4] places and dates of the patches in the unlabeled stream.
            targets: [patches, decisions] choice ids of the labeled patches; `IGNORED` for all other patches.
            choices: Number of choices in each decision.
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
        # Use half precision: votes need no more digits, and this table is most of a checkpoint with many patches.
        self.register_buffer("last_probabilities", (last_probabilities * known[..., None]).half())
        # Store the sum over patches too: adding up half a million patches took most of a step's time. It is double
        # precision and part of checkpoints: a sum from other additions would have other last digits after a resume.
        self.register_buffer("total", self.last_probabilities.double().sum(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        """Load the state of a checkpoint. If an older release wrote it, compute the sum that it lacks."""
        stored = state_dict.get(f"{prefix}last_probabilities")
        if isinstance(stored, Tensor):
            state_dict.setdefault(f"{prefix}total", stored.half().double().sum(0))
        super()._load_from_state_dict(state_dict, prefix, *options)

    def observe(self, outputs: LabelerOutputs) -> None:
        """Store the labeler's probabilities on weak views. Call this once a step, with all rows of the global batch."""
        # If a patch is in the batch twice, use its last row: torch does not define which of two writes to one index
        # wins. Skip logits that are all 0: they were NaN before `Gathering` replaced them.
        index, order = outputs.index.sort(stable=True)
        newest = torch.searchsorted(index, index, right=True) - 1
        logits = outputs.labeler[View.UNLABELED_WEAK][order][newest]
        keep = self.fixed[index][..., None] | (logits == 0).all(-1, keepdim=True)
        old = self.last_probabilities[index]
        new = torch.where(keep, old, logits.softmax(-1).half())
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        self.total += torch.where(first[:, None, None], new.double() - old.double(), 0.0).sum(0)
        self.last_probabilities[index] = new

    def with_votes(self, outputs: LabelerOutputs) -> LabelerOutputs:
        """Add the votes of nearby patches to the logits of weak views, and return the changed outputs."""
        prior = self.total.float().clamp_min(LEAST)
        prior = prior / prior.sum(-1, keepdim=True)
        share = self.share[outputs.index][..., None, None]
        # Use a product and a sum: autocast would compute a matrix product in bf16.
        votes = (share * self.last_probabilities[self.near[outputs.index]].float()).sum(1) + PSEUDO * prior
        shift = (votes / votes.sum(-1, keepdim=True)).log() - prior.log()
        logits = outputs.labeler[View.UNLABELED_WEAK] + self.weight * shift
        return replace(outputs, labeler={**outputs.labeler, View.UNLABELED_WEAK: logits})


def nearest_places(metadata: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest other patches of each patch on the Earth. All ranks call this together.

    Args:
        metadata: [patches, 4] places and dates of the patches.
        count: Number of neighbors to find.

    Returns:
        Positions of the neighbors in `metadata` and their distances in km, each [patches, count]. The results have
        fewer columns if too few patches have a place. A patch without a place gets neighbors at infinite distance, and
        is never a neighbor of another patch.
    """
    from scipy.spatial import KDTree

    points = on_sphere(metadata).numpy()
    known = np.flatnonzero(~np.isnan(points).any(1))
    near = torch.zeros(len(points), min(count, max(len(known) - 1, 0)), dtype=torch.int64)
    distance = torch.full(near.shape, torch.inf)
    if near.shape[1]:
        # The search takes most of the time, so each rank finds the neighbors of a share of the patches.
        own_rows = points[known][rows_of(len(known), rank(), world_size())]
        parts = KDTree(points[known]).query(own_rows, near.shape[1] + 1)
        chords, found = (gather_rows(torch.from_numpy(part).to(exchange_device())).cpu().numpy() for part in parts)
        # Each patch finds itself too, and not always first: other patches may lie at the same place. Leave it out.
        own = found == np.arange(len(known))[:, None]
        own[~own.any(1), -1] = True
        keep = ~own
        near[known] = torch.from_numpy(known[found[keep].reshape(len(known), -1)])
        arcs = 2 * EARTH_KM * np.arcsin(np.clip(chords[keep].reshape(len(known), -1) / 2, 0, 1))
        distance[known] = torch.from_numpy(arcs).float()
    return near, distance
