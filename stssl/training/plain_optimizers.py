"""Define torch's optimizers without its compiler: torch would import it, for as long as all of torch, and never use it.

torch wraps methods of its optimizers, so that the compiler leaves them out when it compiles a function that calls them.
The steps of a run call them from plain Python.
"""

import inspect
from typing import TypeVar

import torch

OptimizerType = TypeVar("OptimizerType", bound=type[torch.optim.Optimizer])


def _unwrapped(kind: OptimizerType) -> OptimizerType:
    """Give a class the optimizer's own methods in place of those that torch wrapped for its compiler."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        setattr(kind, name, inspect.unwrap(getattr(kind, name)))
    # Of what torch wraps around a step, only this context changes a step.
    setattr(kind, "step", torch.no_grad()(inspect.unwrap(kind.step)))  # noqa: B010
    return kind


@_unwrapped
class AdamW(torch.optim.AdamW):
    """Take the same steps as torch's AdamW."""


@_unwrapped
class SGD(torch.optim.SGD):
    """Take the same steps as torch's SGD."""
