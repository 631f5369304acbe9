"""Import timm without torch's compiler, whose import takes as long as that of torch itself."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo.utils"
"""Module of the compiler from which torchvision takes a function."""


def load_timm() -> Any:
    """Import timm, and return it. The first import takes a second.

    Two lines ask for the compiler when timm is imported: torchvision takes a function from it that nothing here calls,
    and timm keeps a function out of it. Both can wait until somebody compiles.
    """
    if "timm" in sys.modules:
        return sys.modules["timm"]
    with compiler_later():
        return import_module("timm")


@contextlib.contextmanager
def compiler_later() -> Iterator[None]:
    """Return a context in which modules that name torch's compiler can be imported without it.

    The compiler is imported when one of its functions is called, or if a module asks for another part of it.
    """
    disable: Any = torch.compiler.disable
    if _COMPILER in sys.modules:
        yield
        return

    def disable_later(fn: Any = None, recursive: bool = True, **reason: Any) -> Any:
        # A class must stay a class, so leave it to the compiler.
        if not isinstance(fn, FunctionType):
            return disable(fn, recursive, **reason)

        @functools.wraps(fn)
        def call(*args: Any, **named: Any) -> Any:
            return disable(fn, recursive, **reason)(*args, **named)

        return call

    stand_in = _StandIn(_COMPILER)
    sys.modules[_COMPILER] = stand_in
    torch.compiler.disable = disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        stand_in.leave()


class _StandIn(ModuleType):
    """Take the place of a module of the compiler, and import that module when anything else of it is asked for."""

    def is_compile_supported(self, device: Any) -> Any:
        """Ask the compiler itself, as torchvision does before it compiles."""
        return self.real().is_compile_supported(device)

    def leave(self) -> None:
        """Free the place for the module itself."""
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]

    def real(self) -> Any:
        """Import the module itself."""
        self.leave()
        return import_module(_COMPILER)

    def __getattr__(self, name: str) -> Any:
        """Take other names from the module itself. Names such as `__path__` belong to the import system."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)
