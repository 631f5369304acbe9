"""A pretraining run as a typed tree, and which kind of run a recipe file describes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from stssl.base.config import Config, ImageSize, Positive, Rows, Tree, merge
from stssl.base.paths import Weights
from stssl.contrastive.moco import PretextConfig
from stssl.contrastive.views import PretrainViewsConfig
from stssl.recipes.optimizers import OptimizerConfig, SgdConfig
from stssl.recipes.recipe import SMOKE, Recipe, RunRecipe


class EncoderModelConfig(Config):
    """The backbone that is pretrained."""

    backbone: str
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    image_size: ImageSize = 128
    weights: Weights = "none"


class PairBatchConfig(Config):
    """Pairs of a global batch."""

    size: Rows = 256


class KnnConfig(Config):
    """The early signal: k-NN on frozen features, from `bank` training patches; `temperature` weighs votes."""

    k: Positive = 20
    bank: Positive = 5_000
    temperature: Annotated[float, Field(gt=0)] = 0.07


class PretrainRecipe(RunRecipe):
    """One pretraining run: momentum contrast over all training patches, without a label."""

    what: ClassVar[str] = "a pretraining run"
    scored_by: ClassVar[str] = "stssl probe"
    smoke: ClassVar[Tree] = merge(
        SMOKE, {"batch": {"size": 8}, "pretext": {"queue": 32, "alpha": 1.0, "alpha_end": 1.0}}
    )
    optimizer_name: ClassVar[str] = "sgd"
    others: ClassVar[dict[str, str]] = {"search": "sweep", "algorithm": "train"}

    model: EncoderModelConfig
    pretext: PretextConfig = PretextConfig()
    views: PretrainViewsConfig = PretrainViewsConfig()
    batch: PairBatchConfig = PairBatchConfig()
    optimizer: OptimizerConfig = SgdConfig()
    knn: KnnConfig = KnnConfig()

    @property
    def least_rows(self) -> tuple[str, int]:
        """The pairs."""
        return "batch.size", self.batch.size


def kind_of(tree: Mapping[str, Any]) -> type[RunRecipe]:
    """Choose the recipe class of a tree: one with the key `pretext` is a pretraining recipe."""
    return PretrainRecipe if "pretext" in tree else Recipe
