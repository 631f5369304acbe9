"""Define the search space of a sweep: recipe keys, their allowed values, and conditions under which each key exists."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from stssl.base.config import Domain, Tree, merge, nested, validate
from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonMapping, JsonObject, JsonValue
from stssl.recipes.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import Trial

TrialValues = JsonObject
"""Recipe keys with dots, such as `optimizer.lr`, and their values."""
Scalar = str | int | float | bool | None
"""Types of values that Optuna can store for a choice."""
MOST_POINTS = 10_000
"""Largest number of points of a grid. Each point is a training run."""


@dataclass(frozen=True)
class Gate:
    """Define a condition of a searched key: it exists only if another key (`key`) has one of the values in `values`."""

    key: str
    values: tuple[JsonValue, ...]


@dataclass(frozen=True)
class Axis:
    """Describe one dimension of the search space: a recipe key and its allowed values.

    Attributes:
        key: Dotted recipe key.
        name: Name of the Optuna parameter: the key, followed by `@KIND` (such as the name of an algorithm) if the
            domain depends on the kind of a section.
        domain: Values that a trial may have.
        integer: True if values are whole numbers.
        gates: Conditions on other keys. The key exists if all of them hold.
    """

    key: str
    name: str
    domain: Domain
    integer: bool
    gates: tuple[Gate, ...]

    def exists(self, values: JsonMapping) -> bool:
        """Return True if this key exists in a recipe, given the recipe's values of other keys, by dotted key."""
        return all(values.get(gate.key) in gate.values for gate in self.gates)

    def contains(self, value: JsonValue) -> bool:
        """Return True if a value lies in this key's domain. The numbers 1 and 1.0 are the same, but True is not 1."""
        domain = self.domain
        if domain.choices:
            numbers = (int, float)  # compare types, too: in Python, True == 1
            return any(
                value == choice and (type(value) is type(choice) or {type(value), type(choice)} == {*numbers})
                for choice in domain.choices
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.integer and value != int(value)):
            return False
        return domain.low is not None and domain.high is not None and domain.low <= value <= domain.high

    def encode(self, value: JsonValue | tuple[JsonValue, ...]) -> Scalar:
        """Return a value of this key in a form that Optuna can store: lists and mappings become JSON text."""
        return json.dumps(value, sort_keys=True) if isinstance(value, list | tuple | dict) else value

    def suggest(self, trial: "Trial") -> JsonValue:
        """Let Optuna choose a value of this key for a trial, and return it. `trial` is Optuna's object of the trial."""
        domain = self.domain
        if domain.choices:
            codes = [self.encode(choice) for choice in domain.choices]
            drawn: JsonValue = domain.choices[codes.index(trial.suggest_categorical(self.name, codes))]
            return drawn
        low, high = domain.low or 0, domain.high or 0
        if self.integer:
            return trial.suggest_int(self.name, int(low), int(high), log=domain.log, step=int(domain.step or 1))
        return trial.suggest_float(self.name, low, high, log=domain.log, step=domain.step)

    def listed(self) -> tuple[JsonValue, ...]:
        """Return all values in this key's domain, for a grid search.

        Raises:
            ConfigError: The domain has infinitely many values, or more than a grid may have.
        """
        domain, low, high = self.domain, self.domain.low or 0, self.domain.high or 0
        if domain.choices:
            return domain.choices
        if not self.integer and domain.step is None:
            raise ConfigError(f"search.{self.key}: a grid needs a list of values, or a range with a step")
        step = domain.step or 1
        if (high - low) / step >= MOST_POINTS:
            raise ConfigError(f"search.{self.key}: a grid takes at most {MOST_POINTS:,} values; make step larger")
        # Add a little: from 0.1 to 0.3 by 0.1 must be three values, but (0.3 - 0.1) / 0.1 is 1.9999999999999998.
        values = [low + i * step for i in range(math.floor((high - low) / step + 1e-9) + 1)]
        return tuple(int(value) if self.integer else value for value in values)

    def words(self) -> str:
        """Return this key's allowed values as text for error messages, such as `0.1 to 1`."""
        if self.domain.choices:
            return ", ".join(str(choice) for choice in self.domain.choices)
        return f"{self.domain.low:g} to {self.domain.high:g}" + (" (log)" if self.domain.log else "")


@dataclass(frozen=True)
class Space:
    """Describe a search: its base recipe, and one or more dimensions (`axes`) for each searched key.

    Each key comes after the keys that decide if it exists.
    """

    base: Recipe
    axes: tuple[Axis, ...]

    def recipe(self, values: JsonMapping) -> Recipe:
        """Return a copy of the base recipe with some values changed. `values` has the new values by dotted key.

        Raises:
            ConfigError: The recipe refuses a value, or the values do not fit together.
        """
        tree = self.base.tree()
        for key, value in values.items():
            tree = merge(tree, nested(key, value))
        return validate(Recipe, tree, ", ".join(f"{key}={value}" for key, value in values.items()))

    def draw(self, trial: "Trial") -> TrialValues:
        """Let Optuna choose a trial's values of the searched keys. A resumed trial gets its old values again.

        Args:
            trial: Optuna's object of the trial.

        Returns:
            Values by dotted recipe key, without keys that do not exist together with the trial's other values.
        """
        values = self._fixed()
        for axis in self.axes:
            if axis.exists(values):
                values[axis.key] = axis.suggest(trial)
        return self._searched(values)

    def values(self, params: Mapping[str, Any]) -> TrialValues:
        """Convert a trial's stored values to values of recipe keys, and return these by dotted key.

        `params` has the values as Optuna stored them, by the name of the search dimension.
        """
        found: TrialValues = {}
        for axis in self.axes:
            if axis.name in params:
                code = params[axis.name]
                known = {axis.encode(choice): choice for choice in axis.domain.choices}
                found[axis.key] = known.get(code, code)
        return found

    def point(self, given: JsonMapping, source: str = "points") -> TrialValues:
        """Convert a point (values that the sweep file wants to be tried first) to the form that Optuna stores.

        A searched key that the point leaves out gets the base recipe's value. If this value lies outside of the key's
        domain, the key stays out, so Optuna chooses its value.

        Args:
            given: Dotted keys and values of the point.
            source: Name of the point in error messages.

        Returns:
            Stored values by the name of the search dimension.

        Raises:
            ConfigError: A key is not searched, its value lies outside of its domain, or it does not exist with the
                point's other values.
        """
        searched = {axis.key for axis in self.axes}
        for key in given:
            if key not in searched:
                raise ConfigError(f"{source}: {key} is not under search. {did_you_mean(key, searched)}")
        values, params = self._fixed(), TrialValues()
        for axis in self.axes:
            if not axis.exists(values):
                continue
            value = given[axis.key] if axis.key in given else self._own(axis.key, self._searched(values))
            if axis.contains(value):
                values[axis.key] = value
                params[axis.name] = axis.encode(value)
            elif axis.key in given:
                raise ConfigError(f"{source}: {axis.key}={value} lies outside of its domain: {axis.words()}")
        for key in given.keys() - values.keys():
            raise ConfigError(f"{source}: {key} does not exist with the other values of that point")
        return params

    def grid(self) -> list[TrialValues]:
        """Return all combinations of the searched keys' values for a grid search.

        Each combination has values in the form that Optuna stores, by the name of the search dimension. Keys that do
        not exist together with its other values are left out.

        Raises:
            ConfigError: A domain is a range without a step, or the grid has too many combinations.
        """
        points: dict[str, TrialValues] = {}
        lists = [axis.listed() for axis in self.axes]
        if math.prod(map(len, lists)) > MOST_POINTS:
            keys = ", ".join(axis.key for axis in self.axes)
            raise ConfigError(f"search: a grid over {keys} has more than {MOST_POINTS:,} points; list fewer values")
        for combination in product(*lists):
            values, params = self._fixed(), TrialValues()
            for axis, value in zip(self.axes, combination, strict=True):
                if axis.exists(values):
                    values[axis.key] = value
                    params[axis.name] = axis.encode(value)
            # Two combinations are the same point if they differ only in keys that do not exist in them.
            points.setdefault(json.dumps(params), params)
        return list(points.values())

    def identity(self) -> Tree:
        """Return what must stay equal when a sweep resumes, to compare it with the record in the study.

        This is a nested dict: `search` has the allowed values and conditions of each search dimension, and `recipe` has
        the keys of the base recipe that decide results.
        """
        axes = {
            axis.name: [
                list(axis.domain.choices) or [axis.domain.low, axis.domain.high, axis.domain.log, axis.domain.step],
                [[gate.key, list(gate.values)] for gate in axis.gates],
            ]
            for axis in self.axes
        }
        # Convert through JSON, which turns tuples into lists: the study stores JSON, and both must compare as equal.
        tree: Tree = json.loads(json.dumps({"search": axes, "recipe": self.base.identity()}))
        return tree

    def _fixed(self) -> TrialValues:
        """Return the base recipe's values of keys that are not searched, but on which searched keys depend.

        The result is a dict from dotted key to value.
        """
        searched = {axis.key for axis in self.axes}
        named = {gate.key for axis in self.axes for gate in axis.gates} - searched
        return {key: self._own(key, {}) for key in named}

    def _searched(self, values: TrialValues) -> TrialValues:
        searched = {axis.key for axis in self.axes}
        return {key: value for key, value in values.items() if key in searched}

    def _own(self, key: str, values: TrialValues) -> JsonValue:
        node: JsonValue = self.recipe(values).tree()
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return advice for an error message about a wrong key: the most similar known key, or all known keys.

    Args:
        key: The wrong key.
        known: Keys that exist.
    """
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}."
