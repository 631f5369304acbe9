"""Describe a pretraining run as a typed tree, and tell which kind of run a recipe file describes."""

from typing import Annotated, ClassVar

from pydantic import Field

from stssl.base.config import BatchSize, Config, Positive, Tree, merge
from stssl.base.json_types import ConfigTree
from stssl.contrastive.moco import PretextConfig
from stssl.contrastive.views import PretrainViewsConfig
from stssl.recipes.optimizers import OptimizerConfig, SgdConfig
from stssl.recipes.recipe import SMOKE, Recipe, RunRecipe


class PairBatchConfig(Config):
    """Set the global batch size, in pairs of views.

    Attributes:
        size: Pairs of a step, over all workers.
    """

    size: BatchSize = 256


class KnnConfig(Config):
    """Configure the k-NN classification of frozen features that is logged at each validation.

    Attributes:
        k: Number of neighbors that vote.
        bank: Number of training patches among which they are found.
        temperature: Temperature of the votes' weights exp(similarity / temperature); lower trusts the nearest more.
    """

    k: Positive = 20
    bank: Positive = 5_000
    temperature: Annotated[float, Field(gt=0)] = 0.07


class PretrainRecipe(RunRecipe):
    """Describe a pretraining run: momentum contrast over all training patches, without a label.

    Attributes:
        model: Backbone that is pretrained.
        pretext: Momentum contrast, its queue, and the geographic task.
        views: Strength of the views.
        batch: Global batch size.
        optimizer: Optimizer, by default SGD.
        knn: Classification of frozen features at each validation.
    """

    what: ClassVar[str] = "a pretraining run"
    scored_by: ClassVar[str] = "stssl probe"
    smoke: ClassVar[Tree] = merge(
        SMOKE, {"batch": {"size": 8}, "pretext": {"queue": 32, "alpha": 1.0, "alpha_end": 1.0}}
    )
    optimizer_name: ClassVar[str] = "sgd"
    others: ClassVar[dict[str, str]] = {"search": "sweep", "algorithm": "train"}
    renamed: ClassVar[dict[str, str]] = {"neighbours": "knn"}

    pretext: PretextConfig = PretextConfig()
    views: PretrainViewsConfig = PretrainViewsConfig()
    batch: PairBatchConfig = PairBatchConfig()
    optimizer: OptimizerConfig = SgdConfig()
    knn: KnnConfig = KnnConfig()

    @property
    def least_rows(self) -> tuple[str, int]:
        """Return `batch.size` and its value."""
        return "batch.size", self.batch.size


def kind_of(tree: ConfigTree) -> type[RunRecipe]:
    """Choose the recipe class of a tree: one with the key `pretext` is a pretraining recipe."""
    return PretrainRecipe if "pretext" in tree else Recipe
