"""Build networks without drawing their first weights, for checks that look only at shapes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = {torch.Tensor.uniform_, torch.Tensor.normal_}
"""Functions that fill a tensor with random numbers."""


class BlankWeights(TorchFunctionMode):
    """Fill tensors with zeros inside a `with` block where constructors of networks ask for random numbers.

    Drawing them takes most of the time in which a vision transformer is built.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, a function of torch. A function that draws numbers writes zeros instead."""
        if func in _DRAWS:
            return args[0].zero_()
        if func is torch.Tensor.erfinv_:  # the slow part of a truncated normal distribution; it keeps zeros
            return args[0]
        return func(*args, **(kwargs or {}))
