"""The run as one typed tree: what a recipe file may say, its defaults, and the run's identity."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from stssl.algorithms import AlgorithmConfig
from stssl.augment import AugmentConfig
from stssl.config import Config, Domain, Tree, apply_overrides, expand_variables, load_tree, merge, validate
from stssl.data.splits import LabelsConfig, SplitConfig
from stssl.models import EncoderConfig, InjectionConfig
from stssl.steps.teacher_student import LossConfig

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PLACEMENT = ("launch", "logging", "name")
"""Sections that say where and how a run is carried out, not what it computes."""


class DataConfig(Config):
    """Which patches, bands and labels."""

    store: str
    split: SplitConfig = "official"
    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("B04", "B03", "B02")
    labels: str = "labels_43"
    exclude: tuple[str, ...] = ()
    scale: Literal["sigmas", "bytes"] = "sigmas"
    cache: Literal["none", "host", "device"] = "none"


class ModelConfig(Config):
    """Networks, and how metadata enters them."""

    backbone: str
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    image_size: Positive = 128
    weights: str = "none"
    metadata: Literal["none", "teacher", "direct"] = "none"
    encoder: EncoderConfig = Field(default_factory=lambda: _default(EncoderConfig, "raw"), discriminator="name")
    injection: InjectionConfig = Field(default_factory=lambda: _default(InjectionConfig, "token"), discriminator="name")


class BatchConfig(Config):
    """Global batch sizes: `labeled` patches and `unlabeled_ratio` times as many unlabeled ones a step."""

    labeled: Positive = 64
    unlabeled_ratio: Annotated[int, Field(ge=0)] = 7
    micro: Positive | None = None


class OptimizerConfig(Config):
    """AdamW; `clip` bounds each network's gradient norm."""

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0), Domain(1e-5, 1e-2, log=True)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0), Domain(1e-5, 1e-1, log=True)] = 5e-4
    clip: Annotated[float, Field(gt=0)] | None = None


class ScheduleConfig(Config):
    """How long, in steps; `patience` steps without a better validation score end the run."""

    steps: Positive = 64_000
    warmup: Annotated[int, Field(ge=0)] = 0
    supervised_start: Annotated[int, Field(ge=0)] = 0
    patience: Positive | None = None
    evaluate_every: Positive = 2_000


class EmaConfig(Config):
    """Exponential moving average of the evaluated weights."""

    decay: Annotated[float, Field(ge=0, lt=1), Domain(0.99, 0.9999)] = 0.999


class EvaluationConfig(Config):
    """Passes over a split: patches a batch, at most `limit` patches, batches that re-estimate BatchNorm."""

    batch: Positive = 256
    limit: Positive | None = None
    batchnorm_batches: Annotated[int, Field(ge=0)] = 20


class ComputeConfig(Config):
    """Arithmetic of a step; changes results by rounding only."""

    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Positive | None = None


class LaunchConfig(Config):
    """Where a run is carried out. `workers: 0` trains in this process; `[2, 8]` lets Ray grow and shrink the group."""

    workers: Annotated[int, Field(ge=0)] | tuple[Positive, Positive] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    storage: str = "runs"
    max_failures: Annotated[int, Field(ge=-1)] = 3
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    address: str | None = None
    collective_timeout_s: Positive = 1800


class LoggingConfig(Config):
    """A row of metrics every so many steps."""

    every: Positive = 50
    tensorboard: bool = True


class Recipe(Config):
    """One training run."""

    name: str
    data: DataConfig
    labels: LabelsConfig = LabelsConfig()
    model: ModelConfig
    algorithm: Annotated[AlgorithmConfig, Field(discriminator="name")]
    loss: LossConfig = LossConfig()
    batch: BatchConfig = BatchConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    launch: LaunchConfig = LaunchConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.schedule.warmup >= self.schedule.steps:
            raise ValueError("schedule.warmup must be smaller than schedule.steps")
        workers = self.launch.workers
        smallest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if smallest > most:
            raise ValueError(f"launch.workers: [{smallest}, {most}] must be [least, most]")
        if self.batch.labeled < most:
            raise ValueError(
                f"batch.labeled {self.batch.labeled} is smaller than launch.workers {most}: no row for each"
            )
        return self

    def tree(self) -> Tree:
        """The recipe as plain values, every default written out."""
        tree: Tree = json.loads(self.model_dump_json())
        return tree

    def identity(self) -> Tree:
        """What the run computes: the tree without the sections that only say where and how."""
        tree = self.tree()
        for section in PLACEMENT:
            tree.pop(section)
        tree["data"].pop("cache")
        return tree

    def hash(self) -> str:
        """Short name of the identity."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def yaml(self) -> str:
        """The resolved recipe as a file that `load_recipe` reads back."""
        return yaml.safe_dump(self.tree(), sort_keys=False)


def _default(union: Any, name: str) -> Any:
    """The part called `name` of a union, with its defaults."""
    from stssl.config import config_types, part_name

    return next(part for part in config_types(union) if part_name(part) == name)()


SMOKE: Tree = {
    "model": {"weights": "none"},
    "batch": {"labeled": 4, "unlabeled_ratio": 1, "micro": None},
    "schedule": {"steps": 4, "warmup": 0, "supervised_start": 0, "evaluate_every": 2, "patience": None},
    "evaluation": {"batch": 8, "limit": 16, "batchnorm_batches": 1},
    "compute": {"precision": "fp32"},
    "launch": {"workers": 0, "gpus_per_worker": 0, "address": None},
    "logging": {"every": 1, "tensorboard": False},
}
"""What `--smoke` lays over any recipe: seconds on a laptop, no Ray, no hub."""


def load_recipe(path: str | Path, overrides: Iterable[str] = (), smoke: bool = False) -> Recipe:
    """Read a recipe file with its bases, lay overrides over it, and check it.

    The name defaults to the file's (with its folder) and the seed; a smoke run's ends in `-smoke`.

    Raises:
        ConfigError: Names the file, the wrong keys and what is allowed.
    """
    tree = apply_overrides(load_tree(path), overrides)
    if smoke:
        tree = merge(tree, SMOKE)
    file = Path(path).resolve()
    named = tree.get("name") or f"{file.parent.name}-{file.stem}-s{tree.get('seed', 0)}"
    tree["name"] = named if not smoke else f"{named}-smoke"
    return validate(Recipe, expand_variables(tree, str(path)), str(path))
