"""The run as one typed tree: what a recipe file may say, its defaults, and the run's identity."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationInfo, model_validator

from stssl.algorithms import ALGORITHMS, AlgorithmConfig
from stssl.base.config import (
    MOST_ROWS,
    Config,
    Domain,
    ImageSize,
    Positive,
    Rows,
    Seed,
    Threads,
    Tree,
    apply_overrides,
    config_types,
    expand_variables,
    load_tree,
    merge,
    part_name,
    validate,
)
from stssl.base.errors import ConfigError
from stssl.base.paths import (
    ELSEWHERE,
    ColumnName,
    Folder,
    Location,
    Name,
    StorePlace,
    Tracking,
    Weights,
    absolute,
    stable_weights,
    started_from,
)
from stssl.base.yaml_text import dump_yaml
from stssl.data.augment import AugmentConfig
from stssl.data.draws import LabelsConfig
from stssl.data.splits import SplitConfig
from stssl.models import EncoderConfig, InjectionConfig
from stssl.recipes.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from stssl.steps.teacher_student import LossConfig
from stssl.steps.votes import AnyVotesConfig, NoVotesConfig

PLACEMENT = ("launch", "logging", "name")
"""Sections that say where and how a run is carried out, not what it computes."""
CACHES = ("cache", "cache_dir", "cache_bytes")
"""Keys of `data` that say where pixels are kept, not which."""


class DataConfig(Config):
    """Choose patches, bands and labels.

    `cache` holds decoded pixels in memory. Stores in an object store (`s3://...`) are fetched in shards through a cache
    of `cache_bytes` in the folder `cache_dir` of each node, and `shuffle_shards` of them are mixed.
    """

    store: StorePlace
    split: SplitConfig = "official"
    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("B04", "B03", "B02")
    labels: str = "labels_43"
    exclude: tuple[ColumnName, ...] = ()
    scale: Literal["sigmas", "bytes"] = "sigmas"
    cache: Literal["none", "host", "device"] = "none"
    cache_dir: Location | None = None
    cache_bytes: Positive = 50_000_000_000
    shuffle_shards: Annotated[int, Field(ge=0)] = 8


class ModelConfig(Config):
    """Networks, and how metadata enters them."""

    backbone: str
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    image_size: ImageSize = 128
    weights: Weights = "none"
    metadata: Literal["none", "teacher", "direct"] = "none"
    encoder: EncoderConfig = Field(default_factory=lambda: _default(EncoderConfig, "raw"), discriminator="name")
    injection: InjectionConfig = Field(default_factory=lambda: _default(InjectionConfig, "token"), discriminator="name")


class BatchConfig(Config):
    """Global batch sizes: `labeled` patches and `unlabeled_ratio` times as many unlabeled ones a step.

    A rank with more than `micro` labeled patches takes them, and its unlabeled ones, in parts of at most that many.
    """

    labeled: Rows = 64
    unlabeled_ratio: Annotated[int, Field(ge=0, le=1024)] = 7
    micro: Positive | None = None


class EmaConfig(Config):
    """Exponential moving average of the evaluated weights."""

    decay: Annotated[float, Field(ge=0, lt=1), Domain(0.99, 0.9999)] = 0.999


class EvaluationConfig(Config):
    """Passes over a split: patches a batch, at most `limit` patches, batches that re-estimate BatchNorm."""

    batch: Positive = 256
    limit: Positive | None = None
    batchnorm_batches: Annotated[int, Field(ge=0)] = 20


class ComputeConfig(Config):
    """Arithmetic of a step; changes results by rounding only.

    `compile` lets torch.compile fuse the networks' blocks. A step whose gradients are not finite is left out and
    written down; more than `nonfinite_steps` of them end the run.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Threads | None = None
    compile: bool = False
    nonfinite_steps: Annotated[int, Field(ge=0)] = 10


class LaunchConfig(Config):
    """Place a run on machines. `workers: 0` trains in this process; `[2, 8]` lets Ray resize the group.

    `nodes_timeout_s` is how long a cluster that adds nodes by itself may take to bring those that lack.
    """

    workers: Annotated[int, Field(ge=0)] | tuple[Positive, Positive] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    storage: Folder = "runs"
    max_failures: Annotated[int, Field(ge=-1)] = 3
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    address: str | None = None
    collective_timeout_s: Positive = 1800
    elastic_interval_s: Positive = 60
    nodes_timeout_s: Annotated[int, Field(ge=0)] = 0


class LoggingConfig(Config):
    """A row of metrics every so many steps, to JSONL, and where wanted to TensorBoard and MLflow.

    `mlflow` is a tracking URI (needs `pip install 'stssl[mlflow]'`).
    """

    every: Positive = 50
    tensorboard: bool = True
    mlflow: Tracking | None = None


def _default(union: Any, name: str) -> Any:
    """The part called `name` of a union, with its defaults."""
    return next(part for part in config_types(union) if part_name(part) == name)()


class RunRecipe(Config):
    """Describe what all kinds of runs share.

    Attributes:
        what: The kind, in messages.
        scored_by: The command that scores such a run.
        smoke: What `--smoke` lays over a recipe: seconds on a laptop, no Ray, no hub.
        optimizer_name: The optimizer of a recipe that names none.
        others: Keys that only files of other commands have, and the command.
    """

    what: ClassVar[str]
    scored_by: ClassVar[str]
    smoke: ClassVar[Tree]
    optimizer_name: ClassVar[str] = "adamw"
    others: ClassVar[dict[str, str]] = {"search": "sweep"}

    name: Name
    data: DataConfig
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    launch: LaunchConfig = LaunchConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: Seed = 0

    @classmethod
    def smoked(cls, tree: Tree) -> Tree:
        """A recipe's tree with `--smoke` laid over it."""
        return merge(tree, cls.smoke)

    @property
    @abstractmethod
    def least_rows(self) -> tuple[str, int]:
        """The key and the size of the smallest stream of a global batch: each rank needs a row of it."""

    @model_validator(mode="after")
    def _possible(self) -> "RunRecipe":
        if self.schedule.warmup >= self.schedule.steps:
            raise ValueError("schedule.warmup must be smaller than schedule.steps")
        workers = self.launch.workers
        smallest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if smallest > most:
            raise ValueError(f"launch.workers: [{smallest}, {most}] must be [least, most]")
        key, rows = self.least_rows
        if rows < most:
            raise ValueError(f"{key} {rows} is smaller than launch.workers {most}: no row for each")
        return self

    @model_validator(mode="after")
    def _settled(self, info: ValidationInfo) -> "RunRecipe":
        """The same with the storage's default and the run to start from absolute, which follows from the storage."""
        if info.context == ELSEWHERE:
            return self
        own: Any = self
        storage = absolute(self.launch.storage)
        weights = started_from(own.model.weights, storage)
        if (storage, weights) == (self.launch.storage, own.model.weights):
            return self
        parts = {
            "launch": self.launch.model_copy(update={"storage": storage}),
            "model": own.model.model_copy(update={"weights": weights}),
        }
        return self.model_copy(update=parts)

    def tree(self) -> Tree:
        """The recipe as plain values, every default written out."""
        tree: Tree = json.loads(self.model_dump_json())
        return tree

    def identity(self) -> Tree:
        """Return the part of the tree that decides results, without the sections on where and how to run."""
        return identity_of(self.tree())

    def hash(self) -> str:
        """Short name of the identity."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def yaml(self) -> str:
        """The resolved recipe as a file that can be loaded again."""
        return dump_yaml(self.tree())


def identity_of(tree: Tree) -> Tree:
    """A resolved recipe's tree without what only says where and how; also of a file that an earlier version wrote."""
    kept = {key: value for key, value in tree.items() if key not in PLACEMENT}
    data, model, launch = (tree.get(key) for key in ("data", "model", "launch"))
    if isinstance(data, dict):
        kept["data"] = {key: value for key, value in data.items() if key not in CACHES}
    if isinstance(model, dict) and isinstance(launch, dict):
        names = str(model.get("weights", "none")), str(launch.get("storage", "runs"))
        kept["model"] = model | {"weights": stable_weights(*names)}
    return kept


R = TypeVar("R", bound=RunRecipe)

SMOKE: Tree = {
    "model": {"weights": "none"},
    "schedule": {"steps": 4, "warmup": 0, "evaluate_every": 2, "patience": None},
    "evaluation": {"batch": 8, "limit": 16, "batchnorm_batches": 1},
    "compute": {"precision": "fp32", "compile": False},
    "launch": {"workers": 0, "gpus_per_worker": 0, "address": None},
    "logging": {"every": 1, "tensorboard": False, "mlflow": None},
}
"""What `--smoke` lays over any recipe."""


class Recipe(RunRecipe):
    """One teacher-student run."""

    what: ClassVar[str] = "a training run"
    scored_by: ClassVar[str] = "stssl evaluate"
    others: ClassVar[dict[str, str]] = {"search": "sweep", "pretext": "pretrain"}
    smoke: ClassVar[Tree] = merge(
        SMOKE,
        {"batch": {"labeled": 4, "unlabeled_ratio": 1, "micro": None}, "schedule": {"supervised_start": 0}},
    )

    labels: LabelsConfig = LabelsConfig()
    model: ModelConfig
    algorithm: Annotated[AlgorithmConfig, Field(discriminator="name")]
    votes: Annotated[AnyVotesConfig, Field(discriminator="name")] = NoVotesConfig()
    loss: LossConfig = LossConfig()
    batch: BatchConfig = BatchConfig()
    augment: AugmentConfig = AugmentConfig()
    ema: EmaConfig = EmaConfig()

    @classmethod
    def smoked(cls, tree: Tree) -> Tree:
        """The same, with what the algorithm needs to match anything in four steps."""
        algorithm = tree.get("algorithm")
        kind = ALGORITHMS.get(str(algorithm.get("name"))) if isinstance(algorithm, dict) else None
        return super().smoked(merge(tree, {"algorithm": kind.smoke}) if kind and kind.smoke else tree)

    @property
    def least_rows(self) -> tuple[str, int]:
        """The labeled rows."""
        return "batch.labeled", self.batch.labeled

    @model_validator(mode="after")
    def _unlabeled(self) -> "Recipe":
        rows = self.batch.labeled * self.batch.unlabeled_ratio
        if rows > MOST_ROWS:
            raise ValueError(
                f"batch.labeled {self.batch.labeled} times batch.unlabeled_ratio {self.batch.unlabeled_ratio} are "
                f"{rows:,} unlabeled patches a step, more than {MOST_ROWS:,}: lower one of them"
            )
        name = self.algorithm.name
        if name != "supervised" and not self.batch.unlabeled_ratio:
            raise ValueError(f"batch.unlabeled_ratio: 0 leaves nothing for algorithm {name}; give 1 or more")
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = (), smoke: bool = False) -> Recipe:
    """Read a training recipe; see `load_as`.

    Args:
        path: Recipe file.
        overrides: `dotted.key=value` words.
        smoke: True to shrink the run to seconds.
    """
    return load_as(Recipe, path, overrides, smoke)


def load_as(
    kind: type[R], path: str | Path, overrides: Iterable[str] = (), smoke: bool = False, absolute: bool = True
) -> R:
    """Read a recipe file with its bases, lay overrides over it, and check it.

    The name defaults to the file's (with its folder) and the seed; a smoke run's ends in `-smoke`.

    Args:
        kind: Of run.
        path: The file.
        overrides: `key=value` changes.
        smoke: Whether to shrink it.
        absolute: Whether paths become absolute; without that the recipe is for laying more over it.

    Raises:
        ConfigError: Names the file, the wrong keys and what is allowed.
    """
    tree = load_tree(path)
    for key, command in kind.others.items():
        if key in tree:
            raise ConfigError(f"{path} has the key {key}: it is a file for `stssl {command}`")
    tree = apply_overrides(merge({"optimizer": {"name": kind.optimizer_name}}, tree), overrides)
    if smoke:
        tree = kind.smoked(tree)
    file = Path(path).resolve()
    named = tree.get("name") or f"{file.parent.name}-{file.stem}-s{tree.get('seed', 0)}"
    tree["name"] = named if not smoke else f"{named}-smoke"
    return validate(kind, expand_variables(tree, str(path)), str(path), absolute)
