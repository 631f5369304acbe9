"""Configure the optimizer, its learning rate and the length of training."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from stssl.base.config import Config, Domain, Positive


class AdamWConfig(Config):
    """Configure AdamW (arXiv:1711.05101).

    Attributes:
        name: Always `adamw`.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices and kernels.
        clip: Largest gradient norm of each network; None clips nothing.
    """

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0), Domain(1e-5, 1e-2, log=True)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-5, 1e-1, log=True)] = 5e-4
    clip: Annotated[float, Field(gt=0)] | None = None


class SgdConfig(Config):
    """Configure stochastic gradient descent with momentum.

    Attributes:
        name: Always `sgd`.
        lr: Peak learning rate.
        momentum: Share of the old direction that each step keeps.
        weight_decay: L2 penalty on matrices and kernels.
        clip: Largest gradient norm of each network; None clips nothing.
    """

    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0), Domain(1e-3, 1.0, log=True)] = 0.03
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-6, 1e-2, log=True)] = 1e-4
    clip: Annotated[float, Field(gt=0)] | None = None


def _optimizer_name(given: object) -> object:
    # An `optimizer` part without a name is AdamW's: overrides such as optimizer.lr=0.001 need not name it.
    return given.get("name", "adamw") if isinstance(given, dict) else getattr(given, "name", None)


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")] | Annotated[SgdConfig, Tag("sgd")], Discriminator(_optimizer_name)
]
"""Any optimizer; a part without a `name` is AdamW's."""


class ScheduleConfig(Config):
    """Set the length of training and the learning rate's course; all numbers are steps.

    Attributes:
        steps: Length of the run.
        warmup: Steps in which the learning rate rises linearly from 0.
        supervised_start: Steps that learn from labels alone.
        patience: Steps without a better validation score after which the run ends; None never ends it early.
        evaluate_every: Steps between validations, each of which writes a checkpoint.
        decay: `fixmatch` ends at a fifth of the rate (cos(7 pi t / (16 T))), `cosine` at 0.
    """

    steps: Positive = 64_000
    warmup: Annotated[int, Field(ge=0)] = 0
    supervised_start: Annotated[int, Field(ge=0)] = 0
    patience: Positive | None = None
    evaluate_every: Positive = 2_000
    decay: Literal["fixmatch", "cosine"] = "fixmatch"
