"""Pretrain backbones without labels: contrastive learning with pairs of one place, and a geographic pretext task.

The method is geography-aware self-supervised learning (Ayush et al., ICCV 2021, arXiv:2011.09980).
`stssl/recipes/pretraining.py` defines the recipe of a pretraining run. `stssl/training/contrastive_task.py` defines its
task.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.contrastive.geography import ClustersConfig, NoGeoConfig, cluster_places, known_places
    from stssl.contrastive.moco import PretextConfig
    from stssl.contrastive.pairs import PairLoader, PairSource, RawPairs
    from stssl.contrastive.positives import Positives
    from stssl.contrastive.step import ContrastiveStep, Pairs, PretrainEncoder
    from stssl.contrastive.views import PretrainViewsConfig, apply_pretrain_view

__all__ = [
    "ClustersConfig",
    "ContrastiveStep",
    "NoGeoConfig",
    "PairLoader",
    "PairSource",
    "Pairs",
    "Positives",
    "PretextConfig",
    "PretrainEncoder",
    "PretrainViewsConfig",
    "RawPairs",
    "apply_pretrain_view",
    "cluster_places",
    "known_places",
]

_MODULES = {
    "geography": ("ClustersConfig", "NoGeoConfig", "cluster_places", "known_places"),
    "moco": ("PretextConfig",),
    "pairs": ("PairLoader", "PairSource", "RawPairs"),
    "positives": ("Positives",),
    "step": ("ContrastiveStep", "Pairs", "PretrainEncoder"),
    "views": ("PretrainViewsConfig", "apply_pretrain_view"),
}

__getattr__ = lazy_names(__name__, _MODULES)
