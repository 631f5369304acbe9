"""Define the keys of a sweep file."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
from stssl.base.paths import Folder, Study, SweepName
from stssl.recipes.recipe import Recipe, load_as

Say = Callable[[str], None]
"""Print one line of progress."""
Mode = Literal["max", "min"]
LOWER_IS_BETTER = ("loss", "calibration_error")


class RangeConfig(Config):
    """Values between `low` and `high`, both included; `log` draws magnitudes evenly, `step` only every so much."""

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
    """Successive halving: at `grace`, `grace * reduction`, ... steps the best 1/`reduction` of trials there go on."""

    name: Literal["asha"] = "asha"
    grace: Positive | None = None
    reduction: Annotated[int, Field(ge=2)] = 3


class MedianConfig(Config):
    """Stops a trial whose best score is worse than the median of the others' at the same step."""

    name: Literal["median"] = "median"
    grace: Annotated[int, Field(ge=0)] | None = None
    startup: Positive = 4


class NoSchedulerConfig(Config):
    """Every trial goes to its end."""

    name: Literal["none"] = "none"


class TpeConfig(Config):
    """Tree-structured Parzen estimators; the first `startup` trials are random."""

    name: Literal["tpe"] = "tpe"
    startup: Positive = 8


class GpConfig(Config):
    """Gaussian processes; the first `startup` trials are random."""

    name: Literal["gp"] = "gp"
    startup: Positive = 8


class Nsga2Config(Config):
    """NSGA-II, for several metrics; `population` trials a generation."""

    name: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 16


class RandomConfig(Config):
    """Independent draws."""

    name: Literal["random"] = "random"


class GridConfig(Config):
    """Every combination of the values that can be."""

    name: Literal["grid"] = "grid"


SchedulerConfig = Annotated[AshaConfig | MedianConfig | NoSchedulerConfig, Field(discriminator="name")]
SamplerConfig = Annotated[TpeConfig | GpConfig | Nsga2Config | RandomConfig | GridConfig, Field(discriminator="name")]


class SweepConfig(Config):
    """One sweep.

    Attributes:
        name: Of its folder and study; the file's name unless given.
        recipe: Base recipe, relative to the sweep file.
        change: Keys of the recipe that every trial has otherwise.
        metric: Validation score of a trial's best checkpoint, or several (then trials are compared by dominance).
        mode: Whether larger or smaller is better, for each metric; None knows it for `stssl`'s own scores.
        trials: How many, failed and stopped ones included.
        hours: Time after which no trial goes on; the same command with more hours continues.
        scheduler: Which trials are stopped early.
        sampler: How values are chosen.
        seed: Of the sampler.
        points: What is tried first; keys left out have the recipe's values.
        search: Dotted recipe keys: null or `auto` takes the domain of the recipe's type, a list or a range replaces it.
        concurrent: Trials at a time; None takes as many as there are resources for.
        storage: Folder that keeps the sweep, seen by all machines.
        study: Optuna storage: None for SQLite in the sweep's folder, `postgresql://...`, or `journal:FILE`.
    """

    name: SweepName
    recipe: str
    change: dict[str, Any] = Field(default_factory=dict)
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "score"
    mode: Mode | tuple[Mode, ...] | None = None
    trials: Positive
    hours: Annotated[float, Field(gt=0)] | None = None
    scheduler: SchedulerConfig = AshaConfig()
    sampler: SamplerConfig = TpeConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    points: tuple[dict[str, Any], ...] = ({},)
    search: Annotated[dict[str, Literal["auto"] | RangeConfig | list[Any] | None], Field(min_length=1)]
    concurrent: Positive | None = None
    storage: Folder = Field("sweeps", validate_default=True)
    study: Study | None = None

    @field_validator("search", mode="before")
    @classmethod
    def _forms(cls, search: Any) -> Any:
        """Check that a searched key has one of three forms; a union would complain of each form."""
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
        """Names of the scores that are searched for."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def modes(self) -> tuple[Mode, ...]:
        """`max` or `min` for each metric."""
        if self.mode is None:
            return tuple("min" if name in LOWER_IS_BETTER else "max" for name in self.metrics)
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    @property
    def folder(self) -> Path:
        """Return the absolute folder that keeps everything of the sweep."""
        return Path(self.storage) / self.name


@dataclass(frozen=True)
class Sweep:
    """A sweep file together with its base recipe."""

    config: SweepConfig
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Return the absolute folder that keeps everything of the sweep."""
        return self.config.folder


def load_sweep(path: str | Path, overrides: Iterable[str] = (), here: bool = True) -> Sweep:
    """Read a sweep file (which may have a `base:`) and its recipe.

    Args:
        path: The file.
        overrides: `key=value` changes to the sweep file; `change.KEY=value` ones to the recipe.
        here: Whether this machine carries it out; if not, variables (`${NAME}`) and relative paths stay as they are.

    Raises:
        ConfigError: Names the file, the wrong keys and what is allowed.
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
    """Read the recipe that a sweep file names; what is wrong with it is told with the sweep file."""
    try:
        if here:
            return load_as(Recipe, source, absolute=False)
        return validate(Recipe, {"name": source.stem, **load_tree(source)}, str(source), absolute=False)
    except ConfigError as error:
        raise ConfigError(f"{path}: recipe: {error}") from None


def _unexpanded(tree: Tree, source: str) -> Tree:
    return tree


def _tree(change: Tree, source: str) -> Tree:
    """`change` as a tree; its keys may be dotted."""
    tree: Tree = {}
    for key, value in change.items():
        if not key:
            raise ConfigError(f"{source}: change has an empty key")
        tree = merge(tree, nested(key, value))
    return tree
