"""Define the settings of a run: the keys of a recipe file, their defaults, and which of them decide results."""

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterable
from importlib.metadata import distributions
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
    load_with,
    merge,
    validate,
)
from stssl.base.errors import ConfigError
from stssl.base.logs import LOG
from stssl.base.paths import (
    ELSEWHERE,
    Name,
    folder,
    stable_weights,
    started_from,
)
from stssl.base.yaml_text import dump_yaml
from stssl.data.augment import AugmentConfig
from stssl.data.draws import LabelsConfig
from stssl.models.published import where_published
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

PLACEMENT = ("launch", "logging", "name", "probe")
"""Sections on where and how a run happens, and how it is probed. A run's identity leaves them out."""
CACHES = ("cache", "cache_dir", "cache_bytes", "threads")
"""Keys of `data` on where pixels are kept and how they are read. Results do not depend on them either."""
SAVING = ("checkpoint_every",)
"""Keys of `schedule` on when checkpoints are written. Results do not depend on them either."""


class RunRecipe(Config):
    """Define the keys that recipes for training and for pretraining share.

    Attributes:
        what: Name of the kind of run in messages.
        scored_by: Command that scores runs of this kind.
        smoke: Values of `--smoke`. With them a run takes seconds on a laptop, without Ray and without downloads.
        optimizer_name: Optimizer of a recipe without `optimizer.name`.
        others: Keys that only files for other commands have, and the command of each key, for error messages.
        renamed: Keys of release 0.1, and their present names.
        name: Name of the run and of its folder.
        data: Patches, bands and labels.
        model: Backbone and initial weights.
        optimizer: Optimizer and its peak learning rate.
        schedule: Length of training.
        evaluation: How to score networks.
        compute: Precision and threads.
        launch: Workers and storage.
        logging: Where to write metrics.
        seed: Seed of all random choices except the drawn labels.
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
        """Return a recipe's keys and values, shrunk to a run of seconds as `--smoke` asks.

        Keep `model.weights` if the weights lie on this disk. Else leave them out, and log a warning.

        Args:
            tree: Contents of the recipe file as a nested dict; not changed.
        """
        model = tree.get("model")
        kept = isinstance(model, dict) and _lie_here(model.get("weights", "none"))
        return merge(tree, cls.smoke) if kept else merge(tree, merge(cls.smoke, NO_WEIGHTS))

    @property
    @abstractmethod
    def least_rows(self) -> tuple[str, int]:
        """Return the recipe key of the smallest batch size, and its value.

        A run cannot have more ranks (training processes) than this.
        """

    @model_validator(mode="after")
    def _possible(self) -> "RunRecipe":
        if self.schedule.warmup >= self.schedule.steps:
            raise ValueError(
                f"schedule.warmup {self.schedule.warmup} must be smaller than schedule.steps {self.schedule.steps}: "
                f"give both, such as schedule.steps={self.schedule.steps} schedule.warmup={self.schedule.steps // 10}"
            )
        if self.schedule.patience is not None and self.evaluation.checkpoint == "last":
            raise ValueError(
                "schedule.patience needs a best checkpoint: set it to null, or evaluation.checkpoint to best"
            )
        if self.schedule.head_steps >= self.schedule.steps:
            raise ValueError(
                "schedule.head_steps must be smaller than schedule.steps: after it the backbone learns too"
            )
        workers = self.launch.workers
        smallest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if smallest > most:
            raise ValueError(f"launch.workers: [{smallest}, {most}] must be [least, most]")
        # Each rank (training process) needs at least one patch of a batch: a rank without patches would not join sums
        # over ranks, and the other ranks would wait for it forever.
        key, rows = self.least_rows
        if rows < most:
            raise ValueError(f"{key} {rows} is smaller than launch.workers {most}: no row for each")
        return self

    @model_validator(mode="after")
    def _settled(self, info: ValidationInfo) -> "RunRecipe":
        """Return the recipe with an absolute path of the storage folder.

        If its weights come from another run (`run:NAME`), they get an absolute path in this folder, too. If the recipe
        must keep its paths as they are written, return it unchanged.
        """
        if info.context == ELSEWHERE:
            return self
        storage = folder(self.launch.storage)
        weights = started_from(self.model.weights, storage)
        if (storage, weights) == (self.launch.storage, self.model.weights):
            return self
        parts = {
            "launch": self.launch.model_copy(update={"storage": storage}),
            "model": self.model.model_copy(update={"weights": weights}),
        }
        return self.model_copy(update=parts)

    def tree(self) -> Tree:
        """Return the recipe's keys and values as a nested dict of lists and plain values, including all defaults."""
        # Go through JSON, because it turns tuples into lists: a recipe file has only lists.
        tree: Tree = json.loads(self.model_dump_json())
        return tree

    def identity(self) -> Tree:
        """Return those keys and values of the recipe that decide results, as a nested dict.

        Leave out keys on where and how to run.
        """
        return identity_of(self.tree())

    def hash(self) -> str:
        """Return 12 hexadecimal digits that are equal for two recipes if all keys that decide results are equal."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=6).hexdigest()

    def yaml(self) -> str:
        """Return the recipe as the text of a recipe file, including all defaults."""
        return dump_yaml(self.tree())


def identity_of(tree: Tree) -> Tree:
    """Return those keys and values of a recipe that decide results. Leave out keys on where and how to run.

    Args:
        tree: Recipe as a nested dict of plain values, and no `RunRecipe`, so that it may also come from another version
            of this program.
    """
    kept = {key: value for key, value in tree.items() if key not in PLACEMENT}
    model, launch = tree.get("model"), tree.get("launch")
    for section, without in (("data", CACHES), ("schedule", SAVING)):
        if isinstance(keys := tree.get(section), dict):
            kept[section] = {key: value for key, value in keys.items() if key not in without}
    if isinstance(model, dict) and isinstance(launch, dict):
        names = str(model.get("weights", "none")), str(launch.get("storage", "runs"))
        kept["model"] = model | {"weights": stable_weights(*names)}
    return kept


R = TypeVar("R", bound=RunRecipe)

SMOKE: Tree = {
    "schedule": {"steps": 4, "warmup": 0, "head_steps": 0, "evaluate_every": 2, "patience": None},
    "evaluation": {"batch": 8, "limit": 16, "batchnorm_batches": 1},
    "compute": {"precision": "fp32", "compile": False},
    "launch": {"workers": 0, "gpus_per_worker": 0, "address": None},
    "logging": {"every": 1, "tensorboard": False, "mlflow": None},
}
"""Values of `--smoke` for all kinds of recipes. They replace the values of the recipe."""
NO_WEIGHTS: Tree = {"model": {"weights": "none"}}
"""Further values of `--smoke`, for recipes with weights that do not lie on this disk."""


def _lie_here(weights: object) -> bool:
    """Return True if the weights that `model.weights` names need no download: none at all, or weights on this disk.

    Otherwise, log a warning that `--smoke` leaves the weights out.

    Args:
        weights: Value of `model.weights`. A value that is no text counts as on this disk.
    """
    if not isinstance(weights, str) or weights == "none":
        return True  # leave a value that is no text in the recipe, whose check then reports it
    why = _absent(weights)
    if why:
        LOG.warning("--smoke leaves out model.weights=%s (%s): the network starts from random weights", weights, why)
    return not why


def _absent(weights: str) -> str:
    """Return a few words that say why weights are not on this disk; an empty text if they may be there.

    Args:
        weights: Value of `model.weights`, such as `file:PATH`. For `run:NAME`, the folder of the run is not looked for.
    """
    kind, _, place = weights.partition(":")
    unset = [name for name in re.findall(r"\$\{(\w+)\}", place) if name not in os.environ]
    if unset:
        return f"{unset[0]} is not set"
    if kind == "file" and not Path(os.path.expandvars(place)).expanduser().exists():
        return "there is no such file"
    if kind == "package" and not list(distributions(name=place)):
        return "the package is not installed"
    return "" if kind in ("file", "package", "run") else "it may need a download"


class Recipe(RunRecipe):
    """Define all settings of a training run: data, networks, semi-supervised algorithm, optimizer and more.

    Attributes:
        labels: Which training patches keep their label.
        model: Networks, and how metadata enters them.
        algorithm: Semi-supervised algorithm.
        votes: Votes of spatial neighbors, which change pseudo-labels.
        loss: Weights of the losses.
        batch: Global batch sizes.
        augment: Strength of weak and strong views.
        ema: Exponential moving average of weights.
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
        """Return a training recipe's keys and values, shrunk to a run of seconds as `--smoke` asks.

        Also lower the algorithm's thresholds, so that it learns from unlabeled patches within four steps.

        Args:
            tree: Contents of the recipe file as a nested dict; not changed.
        """
        algorithm = tree.get("algorithm")
        kind = ALGORITHMS.get(str(algorithm.get("name"))) if isinstance(algorithm, dict) else None
        return super().smoked(merge(tree, {"algorithm": kind.smoke}) if kind and kind.smoke else tree)

    @property
    def least_rows(self) -> tuple[str, int]:
        """Return the recipe key of the labeled batch size, `batch.labeled`, and its value.

        A run cannot have more ranks (training processes) than this value.
        """
        return "batch.labeled", self.batch.labeled

    @model_validator(mode="after")
    def _learnable(self) -> "Recipe":
        model, optimizer = self.model, self.optimizer
        if model.head == "weights" and not model.weights.startswith(("run:", "file:")):
            raise ValueError(
                f"model.head: weights needs the head of a student: give model.weights=run:NAME, not {model.weights}"
            )
        idle = {
            "optimizer.backbone_factor": optimizer.backbone_factor is not None,
            "optimizer.layer_decay": optimizer.layer_decay != 1,
            "schedule.head_steps": self.schedule.head_steps > 0,
        }
        if model.freeze and any(idle.values()):
            keys = ", ".join(key for key, given in idle.items() if given)
            raise ValueError(f"model.freeze: a frozen backbone never learns, so leave out {keys}")
        return self

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


def load_training_recipe(path: str | Path, overrides: Iterable[str] = (), smoke: bool = False) -> Recipe:
    """Read the recipe of a training run from a file, and return it with absolute paths.

    Args:
        path: Recipe file.
        overrides: Changes to the file, each of the form `dotted.key=value`, with the value in YAML.
        smoke: True to shrink the run to seconds.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong. The message says what is allowed.
    """
    return load_as(Recipe, path, overrides, smoke)


def load_as(
    kind: type[R], path: str | Path, overrides: Iterable[str] = (), smoke: bool = False, absolute: bool = True
) -> R:
    """Read a recipe file and its base files, apply overrides, check the result, and return it as a recipe.

    If the recipe has no `name`, the name is made from the file's folder, the file's name and the seed. The name of a
    smoke run ends in `-smoke`.

    Args:
        kind: Class of the recipe.
        path: Recipe file.
        overrides: Changes to the file, each of the form `dotted.key=value`, with the value in YAML. `base=FILE` takes
            another base file.
        smoke: True to shrink the run to seconds.
        absolute: True to make paths absolute. Use False if more overrides will follow.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong. The message names the file, the keys and what is
            allowed.
    """
    tree, overrides = load_with(path, overrides)
    for key, command in kind.others.items():
        if key in tree:
            raise ConfigError(f"{path} has the key {key}: it is a file for `stssl {command}`")
    tree = apply_overrides(merge({"optimizer": {"name": kind.optimizer_name}}, tree), overrides)
    if smoke:
        tree = kind.smoked(tree)
    file = Path(path).resolve()
    named = tree.get("name") or f"{file.parent.name}-{file.stem}-s{tree.get('seed', 0)}"
    tree["name"] = named if not smoke else f"{named}-smoke"
    return validate(kind, expand_variables(tree, str(path), where_published), str(path), absolute, overrides)
