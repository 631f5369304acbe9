"""Score a network's features by a k-NN classifier, which predicts a patch from the labels of its nearest neighbors."""

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
from stssl.scoring.metrics import score_once

Features = Callable[[Tensor], Tensor]
"""Function that takes images [n, bands, height, width] and returns features [n, width]."""


@torch.no_grad()
def features_of_rows(features: Features, data: PixelData, pixels: PixelScaler, rows: Ints, batch: int) -> Tensor:
    """Compute a network's features of some patches. All ranks (training processes) must call this together.

    Each rank computes the features of a share of the patches, and gets those of all.

    Args:
        features: The network, as a function that takes images and returns features.
        data: Open data: the reader of pixels.
        pixels: Module that scales stored bands to images.
        rows: [n] row numbers of the patches in the store.
        batch: Number of patches in a batch.

    Returns:
        [n, width] features, on the device of `pixels`.
    """
    own = rows[rows_of(len(rows), rank(), world_size())]
    parts = [features(image).float() for image, _ in batches(data, pixels, own, batch)]
    # A rank without patches must still take part in the exchange, with a tensor [0, width]: predict one patch, because
    # only the result shows the width.
    if not parts:
        parts = [features(next(iter(batches(data, pixels, rows[:1], 1)))[0]).float()[:0]]
    return gather_rows(torch.cat(parts))


def vote(query: Tensor, bank: Tensor, targets: Tensor, space: LabelSpace, *, k: int, temperature: float) -> Tensor:
    """Predict the classes of patches from the labels of their k nearest neighbors among other patches.

    A neighbor's label counts with the weight exp(cosine / temperature), where the cosine compares the features.

    This is the k-NN classifier of Wu et al., CVPR 2018 (arXiv:1805.01978).

    Args:
        query: [n, width] features of the patches to predict.
        bank: [m, width] features of m patches with known labels.
        targets: Labels of these m patches: [m, 1] class ids (single-label), or [m, classes] zeros and ones
            (multi-label); `IGNORED` if unknown.
        space: Classes of the task, and whether it is single-label or multi-label.
        k: Number of neighbors that vote.
        temperature: Divisor of the cosines. With a smaller value, the nearest neighbor counts more.

    Returns:
        [n, classes] logits of all classes as float64.
    """
    known = targets != IGNORED
    choices = functional.one_hot(targets.clamp_min(0).long(), space.choices).float() * known[..., None]
    bank, found = functional.normalize(bank, dim=1), []
    for chunk in torch.split(functional.normalize(query, dim=1), 1024):
        likeness, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        weight = ((likeness - likeness[:, :1]) / temperature).exp()
        votes = torch.einsum("nk,nkgw->ngw", weight, choices[nearest])
        found.append(votes / votes.sum(-1, keepdim=True).clamp_min(1e-12))
    # Add a small number, because log(0) is not finite. A clamp would make all small votes equal, but scores such as
    # average precision need their order.
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
    """Score a network's features by k-NN: predict patches of a part of the data from their nearest training patches.

    All ranks (training processes) must call this together.

    Args:
        features: The network, as a function that takes images and returns features.
        data: Open data: the reader of pixels and the split.
        pixels: Module that scales stored bands to images.
        labels: Classes of the task, and labels of all patches of the store: [rows, 1] class ids (single-label), or
            [rows, classes] zeros and ones (multi-label); `IGNORED` if unknown.
        part: `validation` or `test`.
        bank: Largest number of training patches that may be neighbors.
        k: Number of neighbors that vote.
        temperature: Divisor of the cosines. With a smaller value, the nearest neighbor counts more.
        batch: Number of patches in a batch.
        limit: Largest number of patches of the part to score; None scores all patches.

    Returns:
        Scores by name. Empty if the part or the training part has no patch with a known label.
    """
    space, targets = labels
    known = (targets != IGNORED).any(1).numpy()
    train, asked = (rows[known[rows]] for rows in (data.split.train, data.split.part(part)))
    if not len(train) or not len(asked):
        return {}
    train, asked = spread(train, bank), spread(asked, limit)
    own, others = (features_of_rows(features, data, pixels, rows, batch) for rows in (asked, train))
    chosen = targets[torch.from_numpy(train)].to(own.device)
    with torch.autocast(own.device.type, enabled=False):  # in bf16, many cosines would round to the same value
        logits = vote(own, others, chosen, space, k=k, temperature=temperature).cpu()
    return score_once(logits, targets[torch.from_numpy(asked)], space, own.device).scores
