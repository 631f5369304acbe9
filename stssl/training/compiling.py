"""torch.compile for the blocks of networks, with a way back that says so."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stssl.base.logs import LOG
from stssl.models.backbones import stages
from stssl.models.layout import memory_format

VARIANTS = 256


def compile_blocks(backbone: nn.Module) -> None:
    """Let each block's `forward` be compiled when it is first called; hooks stay outside, names of weights the same."""
    # All blocks share one code object, whose variants (blocks, networks, training or not) count together.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Inductor puts every convolution on the CPU into channels_last, even those where that is not safe.
    device = next(backbone.parameters()).device
    free = memory_format(backbone, device) == torch.channels_last
    for block in stages(backbone):
        block.forward = with_fallback(block.forward, free)


def with_fallback(function: Callable[..., Any], free: bool = True) -> Callable[..., Any]:
    """The compiled function; the plain one from the first time that it cannot be compiled.

    Args:
        function: What to compile.
        free: Whether the compiler may choose how images lie in memory.
    """
    compiled = torch.compile(function, dynamic=False, options=None if free else {"layout_optimization": False})
    chosen: list[Callable[..., Any]] = [compiled]

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return chosen[0](*arguments, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            LOG.warning("compute.compile: going on without torch.compile: %s", reason)
            chosen[0] = function
            return function(*arguments, **named)

    return call
