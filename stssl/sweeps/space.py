"""Define the search space: dotted recipe keys, their domains, and when each key exists."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from stssl.base.config import Domain, Tree, merge, nested, validate
from stssl.base.errors import ConfigError
from stssl.recipes.recipe import Recipe

Values = dict[str, Any]
"""Dotted key to value."""
MOST_POINTS = 10_000
"""Of a grid; each is a training run."""


@dataclass(frozen=True)
class Gate:
    """A condition: `key` has one of `values`."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Axis:
    """One dimension of the space.

    Attributes:
        key: Dotted recipe key.
        name: Of the Optuna parameter: the key, with the part's name where domains differ between parts.
        domain: Where values come from.
        integer: Whether they are whole numbers.
        gates: All must hold for the key to exist.
    """

    key: str
    name: str
    domain: Domain
    integer: bool
    gates: tuple[Gate, ...]

    def exists(self, values: Mapping[str, Any]) -> bool:
        """True if the key exists when earlier keys have `values`."""
        return all(values.get(gate.key) in gate.values for gate in self.gates)

    def contains(self, value: Any) -> bool:
        """True if a value lies in the domain."""
        domain = self.domain
        if domain.choices:
            numbers = (int, float)  # 1 is 1.0, but True is neither
            return any(
                value == choice and (type(value) is type(choice) or {type(value), type(choice)} == {*numbers})
                for choice in domain.choices
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.integer and value != int(value)):
            return False
        return bool(domain.low <= value <= domain.high)  # type: ignore[operator]

    def encode(self, value: Any) -> Any:
        """A value as Optuna stores it: lists and parts as JSON text."""
        return json.dumps(value, sort_keys=True) if isinstance(value, list | tuple | dict) else value

    def suggest(self, trial: Any) -> Any:
        """Draw a value in an Optuna trial."""
        domain = self.domain
        if domain.choices:
            codes = [self.encode(choice) for choice in domain.choices]
            return domain.choices[codes.index(trial.suggest_categorical(self.name, codes))]
        low, high = domain.low or 0, domain.high or 0
        if self.integer:
            return trial.suggest_int(self.name, int(low), int(high), log=domain.log, step=int(domain.step or 1))
        return trial.suggest_float(self.name, low, high, log=domain.log, step=domain.step)

    def listed(self) -> tuple[Any, ...]:
        """All values, for a grid.

        Raises:
            ConfigError: There are infinitely many, or too many.
        """
        domain, low, high = self.domain, self.domain.low or 0, self.domain.high or 0
        if domain.choices:
            return domain.choices
        if not self.integer and domain.step is None:
            raise ConfigError(f"search.{self.key}: a grid needs a list of values, or a range with a step")
        step = domain.step or 1
        if (high - low) / step >= MOST_POINTS:
            raise ConfigError(f"search.{self.key}: a grid takes at most {MOST_POINTS:,} values; make step larger")
        values = [low + i * step for i in range(math.floor((high - low) / step + 1e-9) + 1)]
        return tuple(int(value) if self.integer else value for value in values)

    def words(self) -> str:
        """The domain for people."""
        if self.domain.choices:
            return ", ".join(str(choice) for choice in self.domain.choices)
        return f"{self.domain.low:g} to {self.domain.high:g}" + (" (log)" if self.domain.log else "")


@dataclass(frozen=True)
class Space:
    """All dimensions, parents before what depends on them, over a base recipe."""

    base: Recipe
    axes: tuple[Axis, ...]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The base recipe with some values.

        Raises:
            ConfigError: They do not go together.
        """
        tree = self.base.tree()
        for key, value in values.items():
            tree = merge(tree, nested(key, value))
        return validate(Recipe, tree, ", ".join(f"{key}={value}" for key, value in values.items()))

    def draw(self, trial: Any) -> Values:
        """Draw all keys that exist in an Optuna trial; keys that it has already keep their values."""
        values = self._fixed()
        for axis in self.axes:
            if axis.exists(values):
                values[axis.key] = axis.suggest(trial)
        return self._searched(values)

    def values(self, params: Mapping[str, Any]) -> Values:
        """Dotted keys and values of a trial's Optuna parameters."""
        found: Values = {}
        for axis in self.axes:
            if axis.name in params:
                code = params[axis.name]
                known = {axis.encode(choice): choice for choice in axis.domain.choices}
                found[axis.key] = known.get(code, code)
        return found

    def point(self, given: Mapping[str, Any], source: str = "points") -> Values:
        """Optuna parameters of a point; keys left out have the base recipe's values where the domain has them.

        Raises:
            ConfigError: A key is not searched, does not exist here, or its value is outside of its domain.
        """
        searched = {axis.key for axis in self.axes}
        for key in given:
            if key not in searched:
                raise ConfigError(f"{source}: {key} is not under search. {did_you_mean(key, searched)}")
        values, params = self._fixed(), Values()
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

    def grid(self) -> list[Values]:
        """Optuna parameters of every combination that can be.

        Raises:
            ConfigError: A domain is a range without a step, or there are too many combinations.
        """
        points: dict[str, Values] = {}
        lists = [axis.listed() for axis in self.axes]
        if math.prod(map(len, lists)) > MOST_POINTS:
            keys = ", ".join(axis.key for axis in self.axes)
            raise ConfigError(f"search: a grid over {keys} has more than {MOST_POINTS:,} points; list fewer values")
        for combination in product(*lists):
            values, params = self._fixed(), Values()
            for axis, value in zip(self.axes, combination, strict=True):
                if axis.exists(values):
                    values[axis.key] = value
                    params[axis.name] = axis.encode(value)
            points.setdefault(json.dumps(params), params)
        return list(points.values())

    def identity(self) -> Tree:
        """Return what two starts must share for their trials to belong to one study."""
        axes = {
            axis.name: [
                list(axis.domain.choices) or [axis.domain.low, axis.domain.high, axis.domain.log, axis.domain.step],
                [[gate.key, list(gate.values)] for gate in axis.gates],
            ]
            for axis in self.axes
        }
        tree: Tree = json.loads(json.dumps({"search": axes, "recipe": self.base.identity()}))
        return tree

    def _fixed(self) -> Values:
        """The base recipe's values of keys that gates ask for and that are not searched."""
        searched = {axis.key for axis in self.axes}
        asked = {gate.key for axis in self.axes for gate in axis.gates} - searched
        return {key: self._own(key, {}) for key in asked}

    def _searched(self, values: Values) -> Values:
        searched = {axis.key for axis in self.axes}
        return {key: value for key, value in values.items() if key in searched}

    def _own(self, key: str, values: Values) -> Any:
        node: Any = self.recipe(values).tree()
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Advice for a wrong key."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(known))}."
