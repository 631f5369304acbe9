"""Define the keys of a sweep file (YAML that describes a search for good recipe values), and read sweep files."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stssl.base.config import (
    Config,
    Positive,
    Tree,
    apply_overrides,
    expand_variables,
    flatten,
    load_tree,
    merge,
    nested,
    validate,
)
from stssl.base.errors import ConfigError, shown
from stssl.base.json_types import JsonMapping, JsonValue
from stssl.base.paths import Folder, Study, SweepName, below
from stssl.recipes.recipe import Recipe, load_as
from stssl.scoring.metrics import LOWER_IS_BETTER
from stssl.sweeps.sweep_place import SweepPlace

Say = Callable[[str], None]
"""Type of a function that shows one line of progress to the user."""
Mode = Literal["max", "min"]


class RangeConfig(Config):
    """Define a range from which a search draws values.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: True to draw values evenly on a logarithmic scale.
        step: Distance between two values, starting at `low`; None allows every value.
    """

    low: float
    high: float
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "RangeConfig":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be smaller than high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        steps = (self.high - self.low) / (self.step or (self.high - self.low))
        if not math.isfinite(steps):
            raise ValueError(f"low {self.low:g} and high {self.high:g} are too far apart, or the step is too small")
        if abs(steps - round(steps)) > 1e-9 * steps:
            raise ValueError(f"steps of {self.step:g} from low {self.low:g} do not come to high {self.high:g}")
        return self


class AshaConfig(Config):
    """Stop bad trials early by successive halving (ASHA, Li et al., MLSys 2020, arXiv:1810.05934).

    Attributes:
        grace: Training step at which bad trials are first stopped, then again at `grace * reduction`,
            `grace * reduction**2`, ... None takes 1/`reduction**2` of all steps, but not before the first validation.
        reduction: At each of these steps, the best 1/`reduction` of the trials that reached it continue.
    """

    name: Literal["asha"] = "asha"
    grace: Positive | None = None
    reduction: Annotated[int, Field(ge=2)] = 3


class MedianConfig(Config):
    """Stop a trial early if its best score is worse than the median of the other trials at the same step.

    Attributes:
        grace: Number of first steps in which no trial is stopped; None for the steps before the first validation.
        startup: Number of trials that must be trained to their end before a trial can be stopped.
    """

    name: Literal["median"] = "median"
    grace: Annotated[int, Field(ge=0)] | None = None
    startup: Positive = 4


class NoSchedulerConfig(Config):
    """Train every trial to its end."""

    name: Literal["none"] = "none"


class TpeConfig(Config):
    """Define the settings of tree-structured Parzen estimators (TPE), which choose the recipe values of trials.

    Attributes:
        startup: Number of first trials that get random values.
    """

    name: Literal["tpe"] = "tpe"
    startup: Positive = 8


class GpConfig(Config):
    """Define the settings of Gaussian processes, which choose the recipe values of trials.

    Attributes:
        startup: Number of first trials that get random values.
    """

    name: Literal["gp"] = "gp"
    startup: Positive = 8


class Nsga2Config(Config):
    """Choose the values of trials by the genetic algorithm NSGA-II, which can improve several metrics at once.

    Attributes:
        population: Number of trials in a generation.
    """

    name: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 16


class RandomConfig(Config):
    """Define random search: it chooses the values of each trial at random, independently of earlier trials."""

    name: Literal["random"] = "random"


class GridConfig(Config):
    """Train one trial with each possible combination of the searched keys' values."""

    name: Literal["grid"] = "grid"


SchedulerConfig = Annotated[AshaConfig | MedianConfig | NoSchedulerConfig, Field(discriminator="name")]
SamplerConfig = Annotated[TpeConfig | GpConfig | Nsga2Config | RandomConfig | GridConfig, Field(discriminator="name")]


class SweepConfig(Config):
    """Define the keys of a sweep file, which describes a search for good values of recipe keys.

    Attributes:
        name: Name of the sweep's folder and study. The default is the name of the file.
        recipe: Path of the base recipe, relative to the sweep file.
        change: Dotted recipe keys to change in the base recipe for all trials, and their values.
        metric: Validation score of a trial's best checkpoint, or several scores (trials are compared by dominance).
        mode: `max` or `min` for each metric; None chooses by the name of the score.
        trials: Number of trials, including failed and stopped ones.
        hours: Hours after which all trials stop. The same command with more hours continues them.
        scheduler: Rule that stops trials early.
        sampler: Method that chooses the values of each trial.
        seed: Seed of the sampler.
        points: Trials to train first, each as keys and values. A key that is left out has the base recipe's value.
        search: Dotted recipe keys. null or `auto` takes the domain of the recipe's type; a list or a range replaces it.
        concurrent: Number of trials at the same time; None for as many as the resources allow.
        keep: Number of best trials whose checkpoints are kept; `all` keeps all. Running trials keep theirs.
        storage: Folder of sweeps, which all machines must see, or a URL such as `s3://BUCKET/sweeps`.
        study: Optuna storage: None for SQLite in the sweep's folder, `postgresql://...`, or `journal:FILE`.
    """

    name: SweepName
    recipe: str
    change: dict[str, JsonValue] = Field(default_factory=dict)
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "score"
    mode: Mode | tuple[Mode, ...] | None = None
    trials: Positive
    hours: Annotated[float, Field(gt=0)] | None = None
    scheduler: SchedulerConfig = AshaConfig()
    sampler: SamplerConfig = TpeConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    points: tuple[dict[str, JsonValue], ...] = ({},)
    search: Annotated[dict[str, Literal["auto"] | RangeConfig | list[JsonValue] | None], Field(min_length=1)]
    concurrent: Positive | None = None
    keep: Positive | Literal["all"] = 5
    storage: Folder = Field("sweeps", validate_default=True)
    study: Study | None = None

    @field_validator("search", mode="before")
    @classmethod
    def _forms(cls, search: object) -> object:
        """Check that each entry under `search` is null or `auto`, a list, or a range. Return `search` unchanged.

        Without this check, Pydantic raises an error that is hard to read.

        Raises:
            ValueError: An entry has another form. The message says which forms are allowed.
        """
        if not isinstance(search, dict):
            raise ValueError("give recipe keys and where their values come from, such as {optimizer.lr: auto}")
        for key, value in search.items():
            if isinstance(value, dict) and not value.keys() & RangeConfig.model_fields.keys():
                inner, last = next(flatten(value, f"{key}."), (f"{key}.KEY", "auto"))
                raise ValueError(f"write the whole key in one: 'search={{{inner}: {json.dumps(last)}}}'")
            if isinstance(value, dict) and (unknown := value.keys() - RangeConfig.model_fields.keys()):
                raise ValueError(f"{key}: a range has low, high, log and step, not {shown(', '.join(sorted(unknown)))}")
            if not isinstance(value, dict | list) and value not in (None, "auto"):
                forms = "auto, a list of values such as [0.5, 0.9], or a range such as {low: 0.1, high: 1.0}"
                raise ValueError(f"{key}: give {forms}, not {shown(value)}")
        return search

    @model_validator(mode="after")
    def _possible(self) -> "SweepConfig":
        if len(self.modes) != len(self.metrics):
            raise ValueError(f"mode must have one entry for each of the {len(self.metrics)} metrics")
        if len(self.metrics) > 1 and self.scheduler.name != "none":
            raise ValueError("several metrics cannot be compared in mid-run: use scheduler: {name: none}")
        if len(self.metrics) > 1 and self.sampler.name == "gp" and len(self.metrics) > 3:
            raise ValueError("sampler gp takes at most 3 metrics: use nsga2 or tpe")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metric names one score twice")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of the scores that the sweep tries to improve, as a tuple even for one score."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Return `max` or `min` for each metric: whether the sweep looks for its largest or its smallest value."""
        if self.mode is None:
            return tuple("min" if name in LOWER_IS_BETTER else "max" for name in self.metrics)
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    @property
    def place(self) -> str:
        """Return the absolute path or the URL of the sweep's folder."""
        return below(self.storage, self.name)

    @property
    def folder(self) -> Path:
        """Return the absolute path of the sweep's folder. If `place` is a URL, it is this process's local copy."""
        return SweepPlace(self.place).folder


@dataclass(frozen=True)
class Sweep:
    """Combine a sweep file's keys (`config`) and its base recipe, in which the keys under `change` are changed."""

    config: SweepConfig
    recipe: Recipe

    @property
    def place(self) -> str:
        """Return the absolute path or the URL of the sweep's folder."""
        return self.config.place

    @property
    def folder(self) -> Path:
        """Return the absolute path of the sweep's folder. If `place` is a URL, it is this process's local copy."""
        return self.config.folder


def load_sweep(path: str | Path, overrides: Iterable[str] = (), here: bool = True) -> Sweep:
    """Read a sweep file and its base recipe. With the key `base:`, the file extends another sweep file.

    Args:
        path: The sweep file.
        overrides: Changes to the sweep file, each as `key=value`. `change.KEY=value` changes the recipe's key KEY.
        here: True if this machine runs the sweep. If False, variables (`${NAME}`) and relative paths stay unchanged.

    Returns:
        Keys of the sweep file, and the base recipe with the keys under `change` changed.

    Raises:
        ConfigError: A file is missing or wrong. The message names the file, the keys, and what is allowed.
    """
    tree = apply_overrides(load_tree(path), overrides)
    if "search" not in tree and tree.keys() & {"algorithm", "pretext", "model", "data"}:
        command = "pretrain" if "pretext" in tree else "train"
        raise ConfigError(f"{path} has no key search: it is a recipe, for `stssl {command}`")
    file = Path(path).resolve()
    expanded = expand_variables if here else _unexpanded
    config = validate(SweepConfig, expanded({"name": file.stem, **tree}, str(path)), str(path), here)
    recipe = _base_recipe(file.parent / config.recipe, str(path), here)
    changed = merge(recipe.tree(), _tree(config.change, str(path)))
    return Sweep(config, validate(Recipe, expanded(changed, str(path)), f"{path}: change", here))


def _base_recipe(source: Path, path: str, here: bool) -> Recipe:
    """Read and return the base recipe of a sweep.

    Args:
        source: File of the base recipe.
        path: The sweep file, which error messages also name.
        here: True if this machine runs the sweep. If False, variables (`${NAME}`) and relative paths stay unchanged.

    Raises:
        ConfigError: The file is missing or wrong.
    """
    try:
        if here:
            return load_as(Recipe, source, absolute=False)
        return validate(Recipe, {"name": source.stem, **load_tree(source)}, str(source), absolute=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: recipe: {error}") from None


def _unexpanded(tree: Tree, source: str) -> Tree:
    return tree


def _tree(change: JsonMapping, source: str) -> Tree:
    """Return the entries under `change`, whose keys have dots (`optimizer.lr`), as nested dicts.

    Raise a `ConfigError` for an empty key. It names the sweep file, `source`.
    """
    tree: Tree = {}
    for key, value in change.items():
        if not key:
            raise ConfigError(f"{source}: change has an empty key")
        tree = merge(tree, nested(key, value))
    return tree
