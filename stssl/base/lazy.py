"""Import the public names of a package at their first use, so importing the package itself stays fast."""

from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """Make the function `__getattr__` of a package, which imports a public name from its module.

    Python calls a package's `__getattr__` for names that the package does not have.

    Args:
        package: `__name__` of the package.
        modules: For each module of the package, without the package's name, the public names in it.

    Returns:
        Function that takes a public name and returns the object with this name. It raises `AttributeError` for other
        names.
    """

    def find(name: str) -> object:
        for module, names in modules.items():
            if name in names:
                return getattr(import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
