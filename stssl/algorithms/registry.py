"""Import all algorithms that `names.NAMES` lists, and join their configurations into one type for recipes."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from stssl.algorithms.base import Algorithm, BaseAlgorithmConfig
from stssl.algorithms.names import NAMES


def import_algorithm(name: str) -> type[Algorithm]:
    """Import an algorithm's file and return the subclass of `Algorithm` that it defines.

    Args:
        name: Name of the algorithm, which is also the name of its file.

    Raises:
        TypeError: The file does not define exactly one subclass, or the name in its configuration differs.
    """
    module = import_module(f"stssl.algorithms.{name}")
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    found = [value for value in own if isinstance(value, type) and issubclass(value, Algorithm)]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one subclass of Algorithm, not {len(found)}")
    named = found[0].config_type.model_fields["name"].default
    if named != name:
        raise TypeError(f"{module.__name__}: config_type.name must be '{name}', not {named!r}")
    return found[0]


ALGORITHMS: dict[str, type[Algorithm]] = {name: import_algorithm(name) for name in NAMES}
"""Class of each algorithm, by the algorithm's name."""

if TYPE_CHECKING:
    AlgorithmConfig = BaseAlgorithmConfig
else:
    # Type checkers cannot read a union that is made at run time, so they see the branch above with the base class: it
    # has all fields that other code reads from a recipe.
    AlgorithmConfig = Annotated[
        Union[tuple(kind.config_type for kind in ALGORITHMS.values())],  # noqa: UP007
        Field(discriminator="name"),
    ]
