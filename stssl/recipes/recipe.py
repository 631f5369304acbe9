"""Describe a run as one typed tree: the keys of a recipe file, their defaults, and the run's identity."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field, ValidationInfo, model_validator

from stssl.algorithms import ALGORITHMS, AlgorithmConfig
from stssl.base.config import (
    MOST_ROWS,
    Config,
    Seed,
    Tree,
    apply_overrides,
    expand_variables,
    load_tree,
    merge,
    validate,
)
from stssl.base.errors import ConfigError
from stssl.base.paths import (
    ELSEWHERE,
    Name,
    absolute,
    stable_weights,
    started_from,
)
from stssl.base.yaml_text import dump_yaml
from stssl.data.augment import AugmentConfig
from stssl.data.draws import LabelsConfig
from stssl.recipes.optimizers import AdamWConfig, OptimizerConfig, ScheduleConfig
from stssl.recipes.sections import (
    BackboneConfig,
    BatchConfig,
    ComputeConfig,
    DataConfig,
    EmaConfig,
    EvaluationConfig,
    LaunchConfig,
    LoggingConfig,
    ModelConfig,
)
from stssl.steps.teacher_student import LossConfig
from stssl.steps.votes import AnyVotesConfig, NoVotesConfig

PLACEMENT = ("launch", "logging", "name")
"""Sections that say where and how a run happens. Results do not depend on them, and the run's identity omits them."""
CACHES = ("cache", "cache_dir", "cache_bytes")
"""Keys of `data` that say where pixels are kept. Results do not depend on them either."""


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
        # A rank without rows would take no part in the sums over ranks, for which the others wait.
        key, rows = self.least_rows
        if rows < most:
            raise ValueError(f"{key} {rows} is smaller than launch.workers {most}: no row for each")
        return self

    @model_validator(mode="after")
    def _settled(self, info: ValidationInfo) -> "RunRecipe":
        """Make paths absolute that validators of single keys cannot: the default storage, and runs that lie in it."""
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
        # By way of JSON, so that it has lists where fields have tuples, as a recipe file has.
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
