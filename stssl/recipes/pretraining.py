"""Define the settings of a pretraining run, and tell recipes of pretraining from those of training."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stssl.base.config import BatchSize, Config, Positive, Threads, Tree, merge
from stssl.base.json_types import ConfigTree
from stssl.contrastive.moco import PretextConfig
from stssl.contrastive.views import PretrainViewsConfig
from stssl.recipes.optimizers import OptimizerConfig, SgdConfig
from stssl.recipes.recipe import SMOKE, Recipe, RunRecipe


class PairBatchConfig(Config):
    """Set the batch size of pretraining, in pairs.

    A pair is two augmented patches of one place, or one patch that is augmented twice.

    Attributes:
        size: Number of pairs in a step, summed over all ranks (training processes).
    """

    size: BatchSize = 256


class KnnConfig(Config):
    """Configure the k-NN check of pretraining. Each validation classifies patches by their nearest neighbors.

    The check compares the features of the frozen backbone, and logs the scores.

    Attributes:
        k: Number of nearest neighbors for each patch.
        bank: Number of training patches to search for neighbors.
        temperature: A neighbor has the weight exp(similarity / temperature). A lower value favors the nearest ones.
    """

    k: Positive = 20
    bank: Positive = 5_000
    temperature: Annotated[float, Field(gt=0)] = 0.07


class ProbeConfig(Config):
    """Set how `stssl probe` trains and scores. Pretraining itself does not use it.

    Attributes:
        lr: Learning rate of the linear layer. With standardized features it is divided by their number.
        features: `standardized` subtracts the training part's mean and divides by its standard deviation. `raw` uses
            the features unchanged.
        epochs: Number of epochs of the linear layer.
        batch: Number of patches in one step of the linear layer.
        k: Number of neighbors that vote in k-NN.
        temperature: Divisor of similarities before neighbors vote. A smaller value favors the nearest neighbors.
        fine_tune_lr: Learning rate of fine-tuning.
        fine_tune_steps: Number of steps of fine-tuning.
        threads: Number of CPU threads; None for torch's default.
    """

    lr: Annotated[float, Field(gt=0)] = 30.0
    features: Literal["standardized", "raw"] = "standardized"
    epochs: Positive = 100
    batch: Positive = 256
    k: Positive = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    fine_tune_lr: Annotated[float, Field(gt=0)] = 1e-3
    fine_tune_steps: Positive = 2_000
    threads: Threads | None = None


class PretrainRecipe(RunRecipe):
    """Describe a pretraining run: momentum contrast (MoCo) on all training patches, without labels.

    Attributes:
        model: Backbone to pretrain.
        pretext: Momentum contrast, its queue, and the geographic task.
        views: Strength of the views.
        batch: Global batch size.
        optimizer: Optimizer; the default is SGD.
        knn: Scores of frozen features at each validation.
        probe: How `stssl probe` scores the finished run.
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
    probe: ProbeConfig = ProbeConfig()

    @property
    def least_rows(self) -> tuple[str, int]:
        """Return the recipe key of the batch size, `batch.size`, and its value.

        A run cannot have more ranks (training processes) than this value.
        """
        return "batch.size", self.batch.size


def kind_of(tree: ConfigTree) -> type[RunRecipe]:
    """Return the settings class for a recipe file: `PretrainRecipe` if the file has the key `pretext`, else `Recipe`.

    `tree` has the file's contents as a nested dict.
    """
    return PretrainRecipe if "pretext" in tree else Recipe
