"""The step of pretraining: query, momentum encoder, keys, queue, and the geographic pretext.

Order in a step: queries; the momentum encoder moves toward the query's present weights; keys; losses against the queue
as it was; after the optimizer's step the keys of all ranks enter the queue.
"""

from collections.abc import Callable
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
from stssl.models.ema import Ema, batchnorms
from stssl.steps.base import StepOutput, TrainingStep


@dataclass(frozen=True)
class Pairs:
    """This rank's rows of a global batch.

    Attributes:
        query: [n, bands, h, w], normalized.
        key: [n, bands, h, w], another view, of another acquisition where there is one.
        metadata: [n, 4] of the queries.
        true_pairs: [n] whether the key is another acquisition.
    """

    query: Tensor
    key: Tensor
    metadata: Tensor
    true_pairs: Tensor


class PretrainEncoder(nn.Module):
    """A backbone, and a projection of its pooled features to the space where keys are compared."""

    def __init__(self, backbone: nn.Module, width: int, projection: int, mlp: bool) -> None:
        """Project features of `width` numbers to `projection`, through a hidden layer where `mlp`."""
        super().__init__()
        hidden: list[nn.Module] = [nn.Linear(width, width), nn.ReLU()] if mlp else []
        self.backbone, self.project = backbone, nn.Sequential(*hidden, nn.Linear(width, projection))

    def features(self, image: Tensor) -> Tensor:
        """[n, width] pooled features."""
        backbone: Callable[..., Tensor] = self.backbone.forward_head  # type: ignore[assignment]
        return backbone(self.backbone.forward_features(image), pre_logits=True)  # type: ignore[operator]

    def forward(self, image: Tensor) -> Tensor:
        """[n, projection], not normalized."""
        projected: Tensor = self.project(self.features(image))
        return projected


class GeoHead(nn.Module):
    """Predicts a place, or its cluster, from the query's projection before it is normalized."""

    centers: Tensor

    def __init__(self, config: GeoConfig, projection: int, centers: Tensor | None) -> None:
        """Predict as `config` says; `centers` [k, 3] of clusters."""
        super().__init__()
        self.config = config
        self.register_buffer("centers", torch.zeros(0, 3) if centers is None else centers)
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(projection, 3 if centers is None else len(centers)))

    def forward(self, embedding: Tensor, metadata: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, scaled so that the mean over ranks is the mean over the global batch's known places; and logs."""
        said = self.layers(embedding)
        if isinstance(self.config, ClustersConfig):
            target = nearest_cluster(metadata, self.centers)
            errors = functional.cross_entropy(said.float(), target, ignore_index=-1, reduction="none")
            known = target >= 0
            right = ((said.argmax(1) == target) & known).sum()
        else:
            place = on_sphere(metadata).to(said.device)
            known = ~place.isnan().any(1)
            likeness = functional.cosine_similarity(said.float(), place.nan_to_num(), dim=1)
            errors, right = torch.where(known, 1 - likeness, 0.0), torch.where(known, likeness, 0.0).sum()
        count = sum_over_ranks(known.sum().float()).clamp_min(1) / world_size()
        return errors.sum() / count, {"geo_right": right / count}


class ContrastiveStep(TrainingStep):
    """Owns query and momentum encoder, queue and geographic head; `forward` is one step's loss."""

    def __init__(self, encoder: PretrainEncoder, config: PretextConfig, centers: Tensor | None, seed: int) -> None:
        """Put the parts together; the momentum encoder starts as a copy.

        Args:
            encoder: Of queries.
            config: Of the pretext.
            centers: [k, 3] of the places' clusters, where the pretext needs them.
            seed: Of the shuffling of keys over ranks.
        """
        super().__init__()
        self.config, self.seed = config, seed
        trained: dict[str, nn.Module] = {"query": encoder}
        if not isinstance(config.geo, NoGeoConfig):
            trained["geo"] = GeoHead(config.geo, config.projection, centers)
        self.networks = nn.ModuleDict(trained)
        self.momentum = Ema(encoder, config.momentum)
        self.momentum.network.train()
        self.queue = Queue(config.queue, config.projection)
        self.shuffles = bool(batchnorms(encoder))
        self._fresh: Tensor | None = None
        self._counts: dict[int, list[int]] = {}

    def train(self, mode: bool = True) -> "ContrastiveStep":
        """The momentum encoder is in training mode whenever the query encoder is, as its BatchNorm must see batches."""
        super().train(mode)
        self.momentum.network.train(mode)
        return self

    def forward(self, batch: Pairs, progress: Progress) -> StepOutput:
        """Loss of this rank's rows, scaled so that the mean over ranks is the global batch's."""
        embedding = self.networks["query"](batch.query).float()
        key = self._keys(batch, progress)
        # In bf16 near neighbors among keys and places would be one and the same.
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
        """Take this step's keys into the queue; in the place of those of a step gone wrong the oldest stay."""
        if self._fresh is not None:
            self.queue.push(self._fresh, bad)
            self._fresh = None

    def _row_counts(self, rows: Tensor) -> list[int]:
        """Gather how many rows each rank has; batch sizes never change, so ranks exchange this once."""
        if len(rows) not in self._counts:
            self._counts[len(rows)] = row_counts(rows)
        return self._counts[len(rows)]

    @torch.no_grad()
    def _keys(self, batch: Pairs, progress: Progress) -> Tensor:
        """[n, projection] unit vectors of this rank's keys, by the momentum encoder after it has moved."""
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
