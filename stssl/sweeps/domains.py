"""Turn the recipe keys of a sweep file into dimensions of a search. The types of keys say which values are allowed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import UnionType
from typing import Annotated, Literal, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from stssl.algorithms import ALGORITHMS
from stssl.base.config import Config, Domain, config_types, part_name
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonValue
from stssl.models import check_fit
from stssl.models.injection import InjectionBase
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import ModelConfig
from stssl.sweeps.space import Axis, Gate, Space, did_you_mean
from stssl.sweeps.spec import RangeConfig, SweepConfig

IDLE: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "model.encoder": (("model.metadata", ("none",)), ("model.injection.name", ("none",))),
    "model.injection": (("model.metadata", ("none",)),),
    "loss.distillation": (("model.metadata", ("none", "direct")), ("loss.distance", ("none",))),
    "loss.distance": (("model.metadata", ("none", "direct")),),
    "loss.temperature": (
        ("model.metadata", ("none", "direct")),
        ("loss.distance", ("mse", "mae", "cosine", "none")),
    ),
}
"""Recipe keys that may have no effect: for each, other keys, and the values of these keys that make it useless."""

for _key in sorted({key for kind in ALGORITHMS.values() for key in kind.unused_keys()}):
    _names = tuple(name for name, kind in ALGORITHMS.items() if _key in kind.unused_keys())
    IDLE[_key] = (("algorithm.name", _names),)

FIRST = ("model.metadata", "model.injection.name", "loss.distance")
"""Keys to draw first, because other keys exist only with some of their values."""


@dataclass(frozen=True)
class Found:
    """Describe a recipe key as one settings class defines it.

    Several settings classes, such as those of two algorithms, may have the same key.

    Attributes:
        domain: Values that the key's type allows; None if the type sets no bounds.
        integer: True if values are whole numbers.
        gates: Conditions on other keys. A trial has the key of this class only if all conditions hold.
    """

    domain: Domain | None
    integer: bool = False
    gates: tuple[Gate, ...] = ()


def build_space(config: SweepConfig, recipe: Recipe, source: str = "search") -> Space:
    """Build the search space: find each searched key's allowed values, and the conditions under which it exists.

    Args:
        config: Contents of the sweep file.
        recipe: Base recipe of the sweep.
        source: Name of the sweep file's section in error messages.

    Returns:
        The search space over the base recipe.

    Raises:
        ConfigError: A key does not exist or has no domain, or the recipe refuses a value of its domain.
    """
    finder = _Finder(config, recipe, source)
    order = sorted(config.search, key=lambda key: (*(key != one for one in FIRST), not key.endswith(".name")))
    axes = tuple(axis for key in order for axis in finder.axes(key))
    space = Space(recipe, axes)
    for axis in axes:
        _try(space, axis, source)
    return space


class _Finder:
    """Find the allowed values and conditions of searched keys in the type annotations of the recipe's classes."""

    def __init__(self, config: SweepConfig, recipe: Recipe, source: str) -> None:
        self.search, self.recipe, self.tree, self.source = config.search, recipe, recipe.tree(), source

    def axes(self, key: str) -> list[Axis]:
        """Return the search dimensions of a recipe key: its allowed values, and the conditions under which it exists.

        Several kinds of a recipe section, such as several algorithms, may have the key. If all kinds allow the same
        values, return one dimension. Otherwise, return one dimension for each kind.

        Raises:
            ConfigError: The key does not exist, has no effect, or needs a list or a range in the sweep file.
        """
        found = [replace(one, domain=self._domain(key, one)) for one in self._look_up(key)]
        domains = [one.domain or Domain() for one in found]
        awake = tuple(self._awake(key))
        if all(domain == domains[0] for domain in domains):
            gates = found[0].gates
            if gates:
                names = tuple(name for one in found for name in one.gates[-1].values)
                gates = (*gates[:-1], Gate(gates[-1].key, names))
            return [Axis(key, key, domains[0], found[0].integer, (*gates, *awake))]
        return [
            Axis(key, f"{key}@{one.gates[-1].values[0]}", domain, one.integer, (*one.gates, *awake))
            for one, domain in zip(found, domains, strict=True)
        ]

    def _domain(self, key: str, found: Found) -> Domain:
        given = self.search[key]
        if isinstance(given, list):
            if not given:
                raise ConfigError(f"{self.source}.{key}: the list of values is empty")
            return Domain(choices=tuple(float(v) if self._needs_float(v, found) else v for v in given))
        if isinstance(given, RangeConfig):
            if found.integer and not all(float(end or 0).is_integer() for end in (given.low, given.high, given.step)):
                raise ConfigError(f"{self.source}.{key} is a whole number: so must be low, high and step")
            return Domain(given.low, given.high, given.log, step=given.step)
        if found.domain is None:
            raise ConfigError(
                f"{self.source}.{key}: the recipe's type gives it no domain. Give a list of values, or a range "
                "{low: ..., high: ...}."
            )
        return found.domain

    def _needs_float(self, value: object, found: Found) -> TypeGuard[int]:
        """Return True if `value` is a whole number, but must become a float, because the key takes floats.

        Args:
            value: One of the values that the sweep file lists for the key.
            found: Definition of the key.
        """
        ranged = found.domain is not None and found.domain.low is not None
        return ranged and not found.integer and isinstance(value, int) and not isinstance(value, bool)

    def _look_up(self, key: str) -> list[Found]:
        parts = key.split(".")
        places: list[tuple[type[Config], tuple[Gate, ...]]] = [(Recipe, ())]
        for depth, part in enumerate(parts):
            here, last = ".".join(parts[: depth + 1]), depth == len(parts) - 1
            fields = [(place.model_fields[part], gates) for place, gates in places if part in place.model_fields]
            if not fields:
                raise ConfigError(self._unknown(here, part, [place for place, _ in places], ".".join(parts[:depth])))
            if last:
                return [_found(field, gates) for field, gates in fields]
            if get_origin(fields[0][0].annotation) is dict:
                return [Found(None, gates=fields[0][1])]
            union = [part for field, _ in fields for part in config_types(field.annotation)]
            if not union:
                raise ConfigError(f"{self.source}.{key}: {here} is a single value and has no keys of its own")
            if parts[depth + 1 :] == ["name"] and len(union) > 1:
                return [Found(Domain(choices=self._names(here, union)), gates=fields[0][1])]
            places = self._chosen(here, union, fields[0][1])
        raise ConfigError(f"{self.source}: the key '{key}' is empty")

    def _names(self, prefix: str, union: list[type[Config]]) -> tuple[str, ...]:
        """Return the names of all kinds of a recipe section, such as the names of all algorithms.

        Leave out injection sites (places where metadata enters a network) that the recipe's backbone does not have.

        Args:
            prefix: Dotted key of the section, such as `algorithm`.
            union: Settings classes of the section, one for each kind.
        """
        names = tuple(name for name in map(part_name, union) if name)
        if prefix != "model.injection":
            return names
        return tuple(name for name, part in zip(names, union, strict=True) if self._fits(part))

    def _fits(self, site: type[Config]) -> bool:
        try:
            injection = site()
            if isinstance(injection, InjectionBase):
                check_site(self.recipe.model, injection)
        except (ConfigError, DataError):
            return False
        return True

    def _chosen(
        self, prefix: str, union: list[type[Config]], gates: tuple[Gate, ...]
    ) -> list[tuple[type[Config], tuple[Gate, ...]]]:
        """Find the kinds of a recipe section (such as algorithms) that trials may have.

        If the section's name is searched, a kind exists only in trials with its name. Otherwise, only the base recipe's
        kind exists, if the recipe names one.

        Args:
            prefix: Dotted key of the section, such as `algorithm`.
            union: Settings classes of the section, one for each kind.
            gates: Conditions under which the section itself exists.

        Returns:
            A tuple for each kind: its settings class, and the conditions under which a trial has it.
        """
        if len(union) == 1:
            return [(union[0], gates)]
        by_name = {part_name(part): part for part in union}
        key = f"{prefix}.name"
        if key not in self.search:
            name = self._own(key)
            chosen = by_name.get(name) if isinstance(name, str) else None
            return [(chosen, gates)] if chosen else [(part, gates) for part in union]
        given = self.search[key]
        names = given if isinstance(given, list) else self._names(prefix, union)
        known = [name for name in names if isinstance(name, str) and name in by_name]
        return [(by_name[name], (*gates, Gate(key, (name,)))) for name in known]

    def _own(self, key: str) -> object:
        node: object = self.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _awake(self, key: str) -> Iterator[Gate]:
        """Yield the conditions on other searched keys under which a key has an effect.

        For example, `model.injection.name` changes nothing if `model.metadata` is `none`. `IDLE` lists these cases.

        Raises:
            ConfigError: The key has no effect in any trial.
        """
        for prefix, conditions in IDLE.items():
            if key != prefix and not key.startswith(f"{prefix}."):
                continue
            for other, idle in conditions:
                if other == key:  # true for `model.injection.name`: the existence of a key cannot depend on itself
                    continue
                if other in self.search:
                    choices = self.axes(other)[0].domain.choices
                    awake = tuple(choice for choice in choices if choice not in idle)
                    if not awake:
                        raise ConfigError(
                            f"{self.source}.{key} changes nothing with any {other} under search "
                            f"({', '.join(map(str, choices))}). Leave it out, or search {other} more widely."
                        )
                    yield Gate(other, awake)
                elif self._own(other) in idle:
                    raise ConfigError(
                        f"{self.source}.{key} changes nothing while {other} is {self._own(other)}. Set {other} in "
                        "the recipe or under change:, or search it too."
                    )

    def _unknown(self, here: str, part: str, places: list[type[Config]], prefix: str) -> str:
        """Return an error message about a key that does not exist. It names kinds of the section that have the key.

        Args:
            here: Dotted key up to its first wrong part.
            part: The wrong part, such as `lrr` in `optimizer.lrr`.
            places: Settings classes that lack the part.
            prefix: Dotted key of the section: `here` without `part`.
        """
        known = {f"{prefix}.{name}".lstrip(".") for place in places for name in place.model_fields}
        having = [name for name in self._others(prefix) if name]
        owners = [name for name, part_type in self._others(prefix).items() if part in part_type.model_fields and name]
        if owners and having:
            return (
                f"{self.source}: {here} exists only where {prefix}.name is {' or '.join(owners)}; here it is "
                f"{self._chosen_words(prefix)}. Search {prefix}.name with one of them, or leave {here} out."
            )
        return f"{self.source}: unknown key {here}. {did_you_mean(here, known)}"

    def _others(self, prefix: str) -> dict[str | None, type[Config]]:
        field: FieldInfo | None = None
        place: type[Config] = Recipe
        for part in prefix.split(".") if prefix else ():
            field = place.model_fields.get(part)
            union = config_types(field.annotation) if field else []
            if not union:
                return {}
            place = union[0]
        return {part_name(part): part for part in config_types(field.annotation)} if field else {}

    def _chosen_words(self, prefix: str) -> str:
        given = self.search.get(f"{prefix}.name")
        return " or ".join(map(str, given)) if isinstance(given, list) else str(self._own(f"{prefix}.name"))


def check_site(model: ModelConfig, injection: InjectionBase) -> None:
    """Check that a recipe's backbone has the site (place in the network) where metadata must be added.

    Args:
        model: Section `model` of the recipe, with its backbone.
        injection: Settings of the part that adds metadata. Their class says the site.

    Raises:
        ConfigError: The backbone does not have the site.
    """
    check_fit(
        backbone=model.backbone,
        backbone_args=model.backbone_args,
        image_size=model.image_size,
        injection=injection,
    )


def _found(field: FieldInfo, gates: tuple[Gate, ...]) -> Found:
    # Pydantic removes the outermost `Annotated` from a field's type. Add it again, because it may contain the domain.
    annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    types = list(_types(annotation))
    numbers = {kind for kind in types if kind in (int, float)}
    domains = list(_domains(annotation))
    if not domains and types == [bool]:
        domains = [Domain(choices=(False, True))]
    literals = list(_literals(annotation))
    if not domains and literals:
        domains = [Domain(choices=tuple(literals))]
    return Found(domains[0] if domains else None, numbers == {int}, gates)


def _types(annotation: object) -> Iterator[object]:
    """Yield the types that a type annotation joins, without None: `int` and `float` for `int | float | None`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _types(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _types(argument)
    elif annotation is not type(None):
        yield annotation


def _domains(annotation: object) -> Iterator[Domain]:
    """Yield the `Domain` objects (allowed values) in a type annotation: those in `Annotated[..., Domain(...)]`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from (part for part in arguments[1:] if isinstance(part, Domain))
        yield from _domains(arguments[0])
    elif get_origin(annotation) in (Union, UnionType):
        for argument in arguments:
            yield from _domains(argument)


def _literals(annotation: object) -> Iterator[JsonValue]:
    """Yield the allowed values that all `Literal` types in a type annotation list."""
    for kind in _types(annotation):
        if get_origin(kind) is Literal:
            yield from get_args(kind)


def _try(space: Space, axis: Axis, source: str) -> None:
    """Check that the recipe accepts a key's allowed values: all choices, or both ends of a range.

    Without this check, a wrong value would be found only when a trial gets it.

    Args:
        space: Search space with the base recipe.
        axis: Search dimension of the key.
        source: Name of the sweep file's section in error messages.

    Raises:
        ConfigError: The recipe refuses a value. The message names the key and the value.
    """
    ends = axis.domain.choices or (axis.domain.low, axis.domain.high)
    for value in ends:
        values = {gate.key: gate.values[0] for gate in axis.gates}
        number = int(value) if axis.integer and isinstance(value, float) else value
        try:
            recipe = space.recipe(values | {axis.key: number})
            if axis.key.startswith("model.injection."):
                check_site(recipe.model, recipe.model.injection)
        except ConfigError as error:
            raise ConfigError(f"{source}.{axis.key}: the recipe refuses {value}: {error}") from None
