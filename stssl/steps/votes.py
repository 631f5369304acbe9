"""Let nearby patches vote on pseudo-labels: the last predictions for a patch's neighbors become its prior.

Neighbors often have the same land cover, and networks seldom make the same confident mistake on them. The labeler is
the network that makes the pseudo-labels. Votes change its probabilities p of a patch to the following, before these are
normalized:

    p * (votes / prior)^weight,    votes = sum of exp(-distance / reach) * p of each neighbor + PSEUDO * prior.

For a labeled neighbor, p is its label. For another neighbor, p is the labeler's last prediction on its weak view,
without votes. The prior is the mean p of all patches that have a stored p. A patch never votes for itself. The results
of votes are not stored, so a mistake can spread only through what the network learns. Only training patches vote, and
only on pseudo-labels: the student learns nothing about places from votes.

At the start of a training, only the labels are stored. The stored predictions are complete after one pass over the
unlabeled patches. They are part of checkpoints: 2 bytes for each patch, decision and choice.
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
    """Set how many nearby patches vote on a patch's pseudo-label, and how strongly.

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
    """Store the last predicted probabilities of each patch, and let nearby patches vote on pseudo-labels with them.

    A single-label patch has one decision with one choice for each class. A multi-label patch has one decision for each
    class, with the choices "absent" and "present".
    """

    near: Tensor
    share: Tensor
    last_probabilities: Tensor
    total: Tensor
    fixed: Tensor

    def __init__(self, config: VotesConfig, metadata: Tensor, targets: Tensor, choices: int) -> None:
        """Find the nearest patches of each patch, and store the known labels as probabilities of 0 and 1.

        Args:
            config: How many nearby patches vote, and how strongly.
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
        # Use half precision: votes need no more digits, and with many patches this table is most of a checkpoint.
        self.register_buffer("last_probabilities", (last_probabilities * known[..., None]).half())
        # Store the sum over patches too: to add up half a million patches took most of a step's time. It is double
        # precision and part of checkpoints: a sum computed anew after a resume would have other last digits.
        self.register_buffer("total", self.last_probabilities.double().sum(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        """Load the state of a checkpoint. If an older release wrote it, compute the sum over patches that it lacks.

        Args:
            state_dict: State of all modules by name. The missing sum is added to it.
            prefix: Start of the names of this module's state.
            options: Further arguments of the same method of `nn.Module`.
        """
        stored = state_dict.get(f"{prefix}last_probabilities")
        if isinstance(stored, Tensor):
            state_dict.setdefault(f"{prefix}total", stored.half().double().sum(0))
        super()._load_from_state_dict(state_dict, prefix, *options)

    def observe(self, outputs: LabelerOutputs) -> None:
        """Store the predicted probabilities of unlabeled patches, for later votes. Keep known labels as they are.

        Args:
            outputs: Logits from which pseudo-labels are made, for the global batch. Call this once for each step.
        """
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
        """Return a copy of `outputs` with the votes of nearby patches added to the logits of unlabeled weak views.

        Args:
            outputs: Logits from which pseudo-labels are made.
        """
        prior = self.total.float().clamp_min(LEAST)
        prior = prior / prior.sum(-1, keepdim=True)
        share = self.share[outputs.index][..., None, None]
        # Write the matrix product as a product and a sum: autocast would compute a matrix product in bf16.
        votes = (share * self.last_probabilities[self.near[outputs.index]].float()).sum(1) + PSEUDO * prior
        shift = (votes / votes.sum(-1, keepdim=True)).log() - prior.log()
        logits = outputs.labeler[View.UNLABELED_WEAK] + self.weight * shift
        return replace(outputs, labeler={**outputs.labeler, View.UNLABELED_WEAK: logits})


def nearest_places(metadata: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find for each patch the other patches nearest to it on the Earth. All ranks call this together.

    Args:
        metadata: [patches, 4] places and dates of the patches; NaN if missing.
        count: Number of neighbors to find.

    Returns:
        Row numbers of the neighbors in `metadata` and their distances in km, each [patches, count]. The results have
        fewer columns if too few patches have a place. A patch without a place gets neighbors at infinite distance, and
        is never a neighbor of another patch with a place.
    """
    from scipy.spatial import KDTree

    points = on_sphere(metadata).numpy()
    known = np.flatnonzero(~np.isnan(points).any(1))
    near = torch.zeros(len(points), min(count, max(len(known) - 1, 0)), dtype=torch.int64)
    distance = torch.full(near.shape, torch.inf)
    if near.shape[1]:
        # Let each rank find the neighbors of only a share of the patches, because the search takes most of the time.
        own_rows = points[known][rows_of(len(known), rank(), world_size())]
        parts = KDTree(points[known]).query(own_rows, near.shape[1] + 1)
        chords, found = (gather_rows(torch.from_numpy(part).to(exchange_device())).cpu().numpy() for part in parts)
        # The search also finds each patch itself, not always first, since other patches may lie at the same place.
        # Leave the patch out: it must not vote for itself.
        own = found == np.arange(len(known))[:, None]
        own[~own.any(1), -1] = True
        keep = ~own
        near[known] = torch.from_numpy(known[found[keep].reshape(len(known), -1)])
        arcs = 2 * EARTH_KM * np.arcsin(np.clip(chords[keep].reshape(len(known), -1) / 2, 0, 1))
        distance[known] = torch.from_numpy(arcs).float()
    return near, distance
