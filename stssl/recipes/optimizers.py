"""Configure optimizers, learning rates and the length of training."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from stssl.base.config import Config, Domain, Positive


class AdamWConfig(Config):
    """AdamW; `clip` bounds each network's gradient norm."""

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0), Domain(1e-5, 1e-2, log=True)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-5, 1e-1, log=True)] = 5e-4
    clip: Annotated[float, Field(gt=0)] | None = None


class SgdConfig(Config):
    """SGD with momentum; `clip` bounds each network's gradient norm."""

    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0), Domain(1e-3, 1.0, log=True)] = 0.03
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-6, 1e-2, log=True)] = 1e-4
    clip: Annotated[float, Field(gt=0)] | None = None


def _optimizer_name(given: Any) -> Any:
    return given.get("name", "adamw") if isinstance(given, dict) else getattr(given, "name", None)


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")] | Annotated[SgdConfig, Tag("sgd")], Discriminator(_optimizer_name)
]
"""One without a `name` is AdamW's."""


class ScheduleConfig(Config):
    """Set the length of training in steps; `patience` steps without a better validation score end the run.

    `decay: fixmatch` ends at a fifth of the rate (cos(7 pi t / (16 T))), `cosine` at 0.
    """

    steps: Positive = 64_000
    warmup: Annotated[int, Field(ge=0)] = 0
    supervised_start: Annotated[int, Field(ge=0)] = 0
    patience: Positive | None = None
    evaluate_every: Positive = 2_000
    decay: Literal["fixmatch", "cosine"] = "fixmatch"
