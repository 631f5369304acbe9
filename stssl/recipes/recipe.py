"""Describe a run as one typed tree: the keys of a recipe file, their defaults, and the run's identity."""

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
    BatchSize,
    Config,
    Domain,
    ImageSize,
    Positive,
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
from stssl.base.json_types import JsonObject
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
"""Sections that say where and how a run happens. Results do not depend on them, and the run's identity omits them."""
CACHES = ("cache", "cache_dir", "cache_bytes")
"""Keys of `data` that say where pixels are kept. Results do not depend on them either."""
MetadataUse = Literal["none", "teacher", "direct"]
"""Networks that see metadata: none of them, the teacher alone, or the one network that is trained."""


class DataConfig(Config):
    """Choose patches, bands and labels.

    Attributes:
        store: Path or URL of the Zarr store.
        split: How patches are divided into training, validation and test.
        bands: Names of the bands, in the order of the images' channels.
        labels: Name of the store's label set.
        exclude: Columns of the store; patches that are marked in one of them are left out of all parts.
        scale: `sigmas` subtracts each band's mean and divides by its deviation, `bytes` divides 8-bit bands by 255.
        cache: Memory that holds decoded pixels: `host`, `device`, or `none` to read them from the store each time.
        cache_dir: Folder on each node for shards of a store in an object store (`s3://...`); None chooses one.
        cache_bytes: Largest size of that folder.
        shuffle_shards: Number of such shards whose patches are mixed; 0 delivers one shard after the other.
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


class BackboneConfig(Config):
    """Configure a backbone.

    Attributes:
        backbone: Name of a timm model.
        backbone_args: Further arguments of the model's constructor.
        image_size: Side of its square images in pixels; patches of other sizes are resized.
        weights: Initial weights: `none` (random), `imagenet`, `file:PATH`, or `run:NAME` of a finished run.
    """

    backbone: str
    backbone_args: JsonObject = Field(default_factory=dict)
    image_size: ImageSize = 128
    weights: Weights = "none"


class ModelConfig(BackboneConfig):
    """Configure the networks of a training run, and how metadata enters them.

    Attributes:
        metadata: Networks that see metadata. `teacher` trains a second network that sees it and makes pseudo-labels.
        encoder: How place and date become numbers.
        injection: Where these numbers enter the network.
    """

    metadata: MetadataUse = "none"
    encoder: EncoderConfig = Field(default_factory=lambda: _default(EncoderConfig, "raw"), discriminator="name")
    injection: InjectionConfig = Field(default_factory=lambda: _default(InjectionConfig, "token"), discriminator="name")


class BatchConfig(Config):
    """Set the global batch sizes.

    Attributes:
        labeled: Labeled patches in a step, over all ranks.
        unlabeled_ratio: Unlabeled patches for each labeled one.
        micro: Most labeled patches that a rank passes through the networks at once; a larger share of the batch is
            divided into micro-batches. None never divides.
    """

    labeled: BatchSize = 64
    unlabeled_ratio: Annotated[int, Field(ge=0, le=1024)] = 7
    micro: Positive | None = None


class EmaConfig(Config):
    """Configure the exponential moving average of weights that is evaluated and shipped.

    Attributes:
        decay: Share of the old average that each step keeps.
    """

    decay: Annotated[float, Field(ge=0, lt=1), Domain(0.99, 0.9999)] = 0.999


class EvaluationConfig(Config):
    """Configure how networks are scored on a part of the split.

    Attributes:
        batch: Patches in a batch.
        limit: Most patches that a validation scores; None scores all.
        batchnorm_batches: Training batches from which BatchNorm statistics of averaged weights are estimated.
    """

    batch: Positive = 256
    limit: Positive | None = None
    batchnorm_batches: Annotated[int, Field(ge=0)] = 20


class ComputeConfig(Config):
    """Configure how a step computes; results change by rounding only.

    Attributes:
        precision: Floating-point format of the networks' arithmetic; weights are always fp32.
        threads: CPU threads of each process; None leaves PyTorch's default.
        compile: True to let torch.compile fuse the networks' blocks.
        nonfinite_steps: Steps that may be left out because their gradients are not finite; more of them end the run.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Threads | None = None
    compile: bool = False
    nonfinite_steps: Annotated[int, Field(ge=0)] = 10


class LaunchConfig(Config):
    """Place a run on machines.

    Attributes:
        workers: Ray workers, one rank each. 0 trains in this process without Ray; `[2, 8]` lets Ray resize the group.
        gpus_per_worker: GPUs of each worker.
        cpus_per_worker: CPUs of each worker.
        storage: Folder of all runs, which all nodes must see.
        max_failures: Times that Ray restarts failed workers; -1 is without end.
        placement: Ray's placement strategy for workers on nodes.
        address: Address of the Ray cluster; None starts Ray on this machine.
        collective_timeout_s: Seconds after which ranks that wait for each other give up.
        elastic_interval_s: Seconds between Ray's looks for nodes that a group of changing size could use.
        nodes_timeout_s: Seconds that a cluster which adds nodes by itself may take to bring those that lack.
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
    """Configure where metrics are written, besides `metrics.jsonl` in the run's folder.

    Attributes:
        every: Steps whose means make one row.
        tensorboard: True to write TensorBoard event files.
        mlflow: Tracking URI of MLflow (needs `pip install 'stssl[mlflow]'`); None writes none.
    """

    every: Positive = 50
    tensorboard: bool = True
    mlflow: Tracking | None = None


def _default(union: object, name: str) -> Any:
    """Build the member called `name` of a union of configurations, with its defaults."""
    return next(part for part in config_types(union) if part_name(part) == name)()


class RunRecipe(Config):
    """Describe what all kinds of runs share.

    Attributes:
        what: Name of the kind in messages.
        scored_by: Command that scores such a run.
        smoke: Values that `--smoke` lays over a recipe, so that it runs for seconds on a laptop without Ray and hub.
        optimizer_name: Optimizer of a recipe that names none.
        others: Keys that only files of other commands have, and the command.
        renamed: Keys of release 0.1 and their present names.
        name: Name of the run and of its folder.
        data: Patches, bands and labels.
        model: Backbone and initial weights.
        optimizer: Optimizer and its peak learning rate.
        schedule: Length of training.
        evaluation: How networks are scored.
        compute: Precision and threads.
        launch: Workers and storage.
        logging: Where metrics are written.
        seed: Seed of everything random but the drawn labels.
    """

    what: ClassVar[str]
    scored_by: ClassVar[str]
    smoke: ClassVar[Tree]
    optimizer_name: ClassVar[str] = "adamw"
    others: ClassVar[dict[str, str]] = {"search": "sweep"}

    name: Name
    data: DataConfig
    model: BackboneConfig
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    launch: LaunchConfig = LaunchConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: Seed = 0

    @classmethod
    def smoked(cls, tree: Tree) -> Tree:
        """Return a recipe's tree with the values of `--smoke` laid over it."""
        return merge(tree, cls.smoke)

    @property
    @abstractmethod
    def least_rows(self) -> tuple[str, int]:
        """Return key and size of the smallest stream of a global batch; there can be no more ranks than its rows."""

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
        """Make the default storage absolute, and the run that weights come from, which is looked for there."""
        if info.context == ELSEWHERE:
            return self
        storage = absolute(self.launch.storage)
        weights = started_from(self.model.weights, storage)
        if (storage, weights) == (self.launch.storage, self.model.weights):
            return self
        parts = {
            "launch": self.launch.model_copy(update={"storage": storage}),
            "model": self.model.model_copy(update={"weights": weights}),
        }
        return self.model_copy(update=parts)

    def tree(self) -> Tree:
        """Return the recipe as plain values, with every default written out."""
        tree: Tree = json.loads(self.model_dump_json())
        return tree

    def identity(self) -> Tree:
        """Return the part of the tree that decides results, without the sections on where and how to run."""
        return identity_of(self.tree())

    def hash(self) -> str:
        """Return 12 hexadecimal digits that identify what the run computes."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def yaml(self) -> str:
        """Return the resolved recipe as the text of a recipe file."""
        return dump_yaml(self.tree())


def identity_of(tree: Tree) -> Tree:
    """Return the part of a resolved recipe's tree that decides results.

    It takes plain values rather than a `RunRecipe`, so that a file of another version can be compared, too.
    """
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
"""Values that `--smoke` lays over any recipe."""


class Recipe(RunRecipe):
    """Describe a teacher-student run.

    Attributes:
        labels: Which training patches keep their label.
        model: Networks.
        algorithm: Semi-supervised algorithm.
        votes: Spatial neighbors' votes on pseudo-labels.
        loss: Weights of the losses.
        batch: Global batch sizes.
        augment: Strength of weak and strong views.
        ema: Average of weights.
    """

    what: ClassVar[str] = "a training run"
    scored_by: ClassVar[str] = "stssl evaluate"
    others: ClassVar[dict[str, str]] = {"search": "sweep", "pretext": "pretrain"}
    renamed: ClassVar[dict[str, str]] = {"neighbours": "votes"}
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
        """Return the tree with the values of `--smoke`, and those that let the algorithm learn in four steps."""
        algorithm = tree.get("algorithm")
        kind = ALGORITHMS.get(str(algorithm.get("name"))) if isinstance(algorithm, dict) else None
        return super().smoked(merge(tree, {"algorithm": kind.smoke}) if kind and kind.smoke else tree)

    @property
    def least_rows(self) -> tuple[str, int]:
        """Return `batch.labeled` and its value."""
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
        if ALGORITHMS[name].views and not self.batch.unlabeled_ratio:
            raise ValueError(f"batch.unlabeled_ratio: 0 leaves nothing for algorithm {name}; give 1 or more")
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = (), smoke: bool = False) -> Recipe:
    """Read the recipe of a training run.

    Args:
        path: Recipe file.
        overrides: Changes as `dotted.key=value`, with values in YAML.
        smoke: True to shrink the run to seconds.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong; says what is allowed.
    """
    return load_as(Recipe, path, overrides, smoke)


def load_as(
    kind: type[R], path: str | Path, overrides: Iterable[str] = (), smoke: bool = False, absolute: bool = True
) -> R:
    """Read a recipe file with the files that it builds on, lay overrides over it, and check it.

    Without `name` the run is named after folder and name of the file and the seed. A smoke run's name ends in `-smoke`.

    Args:
        kind: Class of the recipe.
        path: Recipe file.
        overrides: Changes as `dotted.key=value`, with values in YAML.
        smoke: True to shrink the run to seconds.
        absolute: True to make paths absolute; False for a recipe that more values will be laid over.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong; names the file, the keys and what is allowed.
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
