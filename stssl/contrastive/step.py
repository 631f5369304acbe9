"""Take one step of contrastive pretraining, with a momentum encoder, a queue of keys and a geographic pretext task.

A step has four parts:

1. The query encoder computes the queries.
2. The momentum encoder moves toward the query encoder and computes the keys.
3. The losses compare each query with its key and with all keys of the queue.
4. After the optimizer's step, the keys of all ranks enter the queue.

In shapes, n is the number of pairs on this rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stssl.base.batch import Progress
from stssl.base.distributed import gather_rows, rank, row_counts, rows_of, sum_over_ranks, world_size
from stssl.base.randomness import RandomStream, permutation
from stssl.base.sphere import on_sphere
from stssl.contrastive.geography import ClustersConfig, GeoConfig, NoGeoConfig, nearest_cluster
from stssl.contrastive.moco import PretextConfig, Queue, info_nce, multilabel_cpc, similarities
from stssl.models.backbones import Backbone
from stssl.models.ema import Ema, batchnorms
from stssl.steps.base import StepOutput, TrainingStep


@dataclass(frozen=True)
class Pairs:
    """Hold this rank's part of a global batch: pairs of augmented images (views).

    Attributes:
        query: [n, bands, height, width] first images, normalized.
        key: [n, bands, height, width] second images: of the partner if there is one, otherwise of the same patch.
        metadata: [n, 4] places and dates of the queries.
        true_pairs: [n] booleans: true if the key shows a partner, false if it shows the patch itself.
    """

    query: Tensor
    key: Tensor
    metadata: Tensor
    true_pairs: Tensor


class PretrainEncoder(nn.Module):
    """Compute features of images with a backbone, and project them to the vectors that contrastive losses compare."""

    backbone: Backbone

    def __init__(self, backbone: Backbone, width: int, projection: int, mlp: bool) -> None:
        """Join a backbone and a new projection (layers that make the compared vectors).

        Args:
            backbone: Backbone to train.
            width: Size of the backbone's pooled features.
            projection: Size of the projected vectors.
            mlp: True to use a hidden layer in the projection.
        """
        super().__init__()
        hidden: list[nn.Module] = [nn.Linear(width, width), nn.ReLU()] if mlp else []
        self.backbone, self.project = backbone, nn.Sequential(*hidden, nn.Linear(width, projection))

    def features(self, image: Tensor) -> Tensor:
        """Return the backbone's features [n, width] of images [n, bands, height, width], pooled over each image."""
        return self.backbone.forward_head(self.backbone.forward_features(image), pre_logits=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return the projected vectors [n, projection] of images [n, bands, height, width], not scaled to length 1."""
        projected: Tensor = self.project(self.features(image))
        return projected


class GeoHead(nn.Module):
    """Predict an image's place, or the cluster of its place, from the image's vector, and compute the loss."""

    centers: Tensor

    def __init__(self, config: GeoConfig, projection: int, centers: Tensor | None) -> None:
        """Create the layers that predict place or cluster.

        Args:
            config: Settings of the geographic pretext task.
            projection: Size of the images' projected vectors.
            centers: [k, 3] centers of the k clusters as unit vectors; None to predict the place itself.
        """
        super().__init__()
        self.config = config
        self.register_buffer("centers", torch.zeros(0, 3) if centers is None else centers)
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(projection, 3 if centers is None else len(centers)))

    def forward(self, embedding: Tensor, metadata: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the geographic pretext task, and values to log.

        Args:
            embedding: [n, projection] projected vectors of the queries.
            metadata: [n, 4] places and dates of the queries; NaN if missing.

        Returns:
            The loss and the values to log. The mean of the loss over ranks is its mean over all patches with a known
            place in the global batch. The value `geo_right` is the share of right clusters, or the mean cosine with the
            true place.
        """
        predicted = self.layers(embedding)
        if isinstance(self.config, ClustersConfig):
            target = nearest_cluster(metadata, self.centers)
            errors = functional.cross_entropy(predicted.float(), target, ignore_index=-1, reduction="none")
            known = target >= 0
            right = ((predicted.argmax(1) == target) & known).sum()
        else:
            place = on_sphere(metadata).to(predicted.device)
            known = ~place.isnan().any(1)
            likeness = functional.cosine_similarity(predicted.float(), place.nan_to_num(), dim=1)
            errors, right = torch.where(known, 1 - likeness, 0.0), torch.where(known, likeness, 0.0).sum()
        count = sum_over_ranks(known.sum().float()).clamp_min(1) / world_size()
        return errors.sum() / count, {"geo_right": right / count}


class ContrastiveStep(TrainingStep):
    """Compute the loss of a pretraining step.

    An object has both encoders, the queue of keys and the geographic head.
    """

    def __init__(self, encoder: PretrainEncoder, config: PretextConfig, centers: Tensor | None, seed: int) -> None:
        """Create the queue and the geographic head, and copy the query encoder as the momentum encoder.

        Args:
            encoder: Encoder of queries.
            config: Settings of contrastive pretraining.
            centers: [k, 3] centers of the clusters of places; None if the pretext task uses no clusters.
            seed: Seed that shuffles keys over ranks.
        """
        super().__init__()
        self.config, self.seed = config, seed
        trained: dict[str, nn.Module] = {"query": encoder}
        if not isinstance(config.geo, NoGeoConfig):
            trained["geo"] = GeoHead(config.geo, config.projection, centers)
        self.networks = nn.ModuleDict(trained)
        self.momentum = Ema(encoder, config.momentum)
        self.momentum.network.train()
        # Shuffle keys only if BatchNorm exists: no other layer lets one row of a batch influence another (see `_keys`).
        self.queue = Queue(config.queue, config.projection)
        self.shuffles = bool(batchnorms(encoder))
        self._fresh: Tensor | None = None
        self._counts: dict[int, list[int]] = {}

    def train(self, mode: bool = True) -> "ContrastiveStep":
        """Put both encoders into training or evaluation mode, and return this step."""
        super().train(mode)
        # `Ema` keeps its network in evaluation mode. But MoCo's key encoder must normalize by the batch, as the query
        # encoder does.
        self.momentum.network.train(mode)
        return self

    def forward(self, batch: Pairs, progress: Progress) -> StepOutput:
        """Return the loss of this rank's pairs, and values to log. The mean over ranks is the loss of the global batch.

        Args:
            batch: This rank's pairs of images.
            progress: Current step.
        """
        embedding = self.networks["query"](batch.query).float()
        key = self._keys(batch, progress)
        # Compute the losses without bf16: with its 8 bits of precision, similar keys and near places would look equal.
        with torch.autocast(embedding.device.type, enabled=False):
            return self._losses(embedding, key, batch, progress)

    def _losses(self, embedding: Tensor, key: Tensor, batch: Pairs, progress: Progress) -> StepOutput:
        query = functional.normalize(embedding, dim=1)
        logits = similarities(query, key, self.queue.keys, self.config.temperature)
        rows = sum_over_ranks(torch.full((), float(len(logits)), device=logits.device))
        if self.config.loss == "cpc":
            contrast = info_nce(logits, rows)
        else:
            contrast = multilabel_cpc(logits, rows, self.config.alpha_at(progress.fraction))
        self._fresh = gather_rows(key, self._row_counts(key))
        share = world_size() / rows
        found = (logits.detach().argmax(1) == 0).sum() * share
        logs = {"contrast": contrast.detach(), "key_found": found, "true_pairs": batch.true_pairs.sum() * share}
        total = self.config.contrast_weight * contrast
        if "geo" in self.networks:
            geo, more = self.networks["geo"](embedding, batch.metadata)
            weight = getattr(self.config.geo, "weight", 1.0)
            total = total + weight * geo
            logs |= {"geo": geo.detach(), **more}
        return StepOutput(total, logs | {"loss": total.detach()})

    def after_optimizer(self, bad: Tensor) -> None:
        """Add the keys of all ranks to the queue after the optimizer's step, in place.

        Args:
            bad: Scalar tensor: true if the optimizer's step was skipped. Then the queue stays as it is.
        """
        if self._fresh is not None:
            self.queue.push(self._fresh, bad)
            self._fresh = None

    def _row_counts(self, rows: Tensor) -> list[int]:
        """Return how many pairs each rank has, rank 0 first.

        The ranks exchange these numbers only once, since they are the same in each step.

        Args:
            rows: Tensor with one row for each pair of this rank.
        """
        if len(rows) not in self._counts:
            self._counts[len(rows)] = row_counts(rows)
        return self._counts[len(rows)]

    @torch.no_grad()
    def _keys(self, batch: Pairs, progress: Progress) -> Tensor:
        """Update the momentum encoder in place, and return this rank's keys from it: unit vectors [n, projection].

        If the encoder has BatchNorm, shuffle the key images over ranks first. Otherwise, a rank's queries and
        their keys would be normalized with similar statistics. These would tell which key belongs to a query, and the
        network would not need to look at the image (He et al., section 3.3).

        Args:
            batch: This rank's pairs of images.
            progress: Current step. Its number decides the shuffle.
        """
        self.momentum.update_parameters(self.networks["query"])
        if world_size() == 1 or not self.shuffles:
            return functional.normalize(self.momentum.network(batch.key).float(), dim=1)
        counts = self._row_counts(batch.key)
        images = gather_rows(batch.key, counts)
        order = torch.from_numpy(permutation(len(images), self.seed, RandomStream.KEY_SHUFFLE, progress.step).copy())
        order = order.to(images.device, non_blocking=True)
        shares = [rows_of(len(images), number, world_size()) for number in range(world_size())]
        own = functional.normalize(self.momentum.network(images[order[shares[rank()]]]).float(), dim=1)
        keys = gather_rows(own, [share.stop - share.start for share in shares])
        back = torch.empty_like(keys)
        back[order] = keys
        return back[sum(counts[: rank()]) :][: len(batch.key)]
