"""Frozen features of a store's patches, and what their nearest neighbors say: the early signal of pretraining."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import gather_rows, rank, rows_of, world_size
from stssl.base.labels import LabelSpace
from stssl.data.views import PixelScaler
from stssl.recipes.run_data import PixelData
from stssl.scoring.evaluation import batches, spread
from stssl.scoring.metrics import score

Features = Callable[[Tensor], Tensor]
"""Images [n, C, h, w] to features [n, width]."""


@torch.no_grad()
def embed(features: Features, data: PixelData, pixels: PixelScaler, rows: Ints, batch: int) -> Tensor:
    """Compute features of all rows on every rank, on the device; each rank computes its block.

    Args:
        features: Function of images to features.
        data: Store and reader.
        pixels: Scales stored bands to images.
        rows: [n] store rows.
        batch: Rows at a time.

    Returns:
        [n, width] features.
    """
    own = rows[rows_of(len(rows), rank(), world_size())]
    parts = [features(image).float() for image, _ in batches(data, pixels, own, batch)]
    if not parts:  # fewer rows than ranks: one row tells the width
        parts = [features(next(iter(batches(data, pixels, rows[:1], 1)))[0]).float()[:0]]
    return gather_rows(torch.cat(parts))


def vote(query: Tensor, bank: Tensor, targets: Tensor, space: LabelSpace, *, k: int, temperature: float) -> Tensor:
    """[n, C] logits from the nearest neighbors' labels, weighted by exp(cosine / temperature).

    As in Wu et al., CVPR 2018 (arXiv:1805.01978).

    Args:
        query: [n, width] features.
        bank: [m, width] features of patches with known labels.
        targets: [m, G] their choice ids, `IGNORED` where unknown.
        space: The kind of task.
        k: Neighbors that vote.
        temperature: The smaller, the more the nearest one counts.
    """
    known = targets != IGNORED
    choices = functional.one_hot(targets.clamp_min(0).long(), space.choices).float() * known[..., None]
    bank, found = functional.normalize(bank, dim=1), []
    for chunk in torch.split(functional.normalize(query, dim=1), 1024):
        likeness, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        weight = ((likeness - likeness[:, :1]) / temperature).exp()
        votes = torch.einsum("nk,nkgw->ngw", weight, choices[nearest])
        found.append(votes / votes.sum(-1, keepdim=True).clamp_min(1e-12))
    # Added and not clamped, in float64: near-unanimous neighbors stay ranked by what little the others say.
    return space.ungrouped((torch.cat(found).double() + 1e-6).log())


def knn_scores(
    features: Features,
    data: PixelData,
    pixels: PixelScaler,
    labels: tuple[LabelSpace, Tensor],
    part: str,
    *,
    bank: int,
    k: int,
    temperature: float,
    batch: int,
    limit: int | None,
) -> dict[str, float]:
    """Score k-NN on a part of the split; ranks call this together.

    There are none where no patch of one of the two parts has a known label.

    Args:
        features: Function of images to features.
        data: Store, split and reader.
        pixels: Scales stored bands to images.
        labels: Classes, and [N, G] choice ids of all store rows.
        part: `validation` or `test`.
        bank: At most this many training patches as neighbors.
        k: Neighbors that vote.
        temperature: The smaller, the more the nearest neighbor counts.
        batch: Rows at a time.
        limit: At most this many patches of the part; None takes all.
    """
    space, targets = labels
    known = (targets != IGNORED).any(1).numpy()
    train, asked = (rows[known[rows]] for rows in (data.split.train, data.split.part(part)))
    if not len(train) or not len(asked):
        return {}
    train, asked = spread(train, bank), spread(asked, limit)
    own, others = (embed(features, data, pixels, rows, batch) for rows in (asked, train))
    chosen = targets[torch.from_numpy(train)].to(own.device)
    with torch.autocast(own.device.type, enabled=False):  # in bf16 many neighbors would be equally near
        logits = vote(own, others, chosen, space, k=k, temperature=temperature).cpu()
    scores, _ = score(logits, targets[torch.from_numpy(asked)], space)
    return scores
