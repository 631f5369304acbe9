"""Choose the number format (fp32 or bf16) of a run, and make networks compute in it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stssl.base.distributed import exchange_device, gather_rows, world_size
from stssl.base.json_types import JsonMapping
from stssl.recipes.recipe import RunRecipe

Precision = Literal["fp32", "bf16"]
"""Number format in which networks compute. Weights are always fp32."""
PRECISION = "precision"
"""Key of a run's record with the format that was chosen at its first start."""


def choose_precision(recipe: RunRecipe, device: torch.device, recorded: JsonMapping | None) -> Precision:
    """Return the number format in which the networks of a run compute. All ranks call this together.

    Args:
        recipe: Recipe of the run. `compute.precision` names the format; `auto` takes bf16 if the devices of all ranks
            have instructions for it.
        device: Device of this rank.
        recorded: The run's record, if the run resumes. With `auto`, the run keeps the format in its record, even if
            this device has no instructions for it.
    """
    asked = recipe.compute.precision
    if asked != "auto":
        return asked
    kept = (recorded or {}).get(PRECISION)
    if kept in ("fp32", "bf16"):
        return cast(Precision, kept)
    having = has_bf16(device)
    if world_size() > 1:
        having = bool(gather_rows(torch.tensor([having], device=exchange_device())).all())
    return "bf16" if having else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Return True if a device has instructions for bf16: AVX-512 bf16 or AMX of a CPU, or those of a GPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_cpu().get("avx512_bf16") or _cpu().get("amx_bf16"))


def _cpu() -> Mapping[str, object]:
    """Return this CPU's instruction sets and other features that torch reports, by name; empty before torch 2.10."""
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def about_speed(precision: Precision, device: torch.device) -> str | None:
    """Return a sentence for the user if another number format than `precision` may be faster on this CPU.

    Return None if it may not, or if `device` is a GPU.
    """
    if device.type != "cpu":
        return None
    name = _cpu().get("cpu_name", "this CPU")
    if precision == "fp32":
        if not has_bf16(device):
            return None
        return f"{name} has bf16 instructions: another run may be faster with compute.precision=auto"
    # Do not warn for a CPU that is unknown or not x86: it may have instructions that torch does not report.
    if _cpu().get("architecture") != "x86_64" or has_bf16(device):
        return None
    return (
        f"compute.precision=bf16: {name} has no bf16 instructions, so that steps take nearly twice as long as with "
        "compute.precision=fp32"
    )


class Fp32Attention(TorchFunctionMode):
    """Compute attention in fp32 inside a `with` block, although autocast asks for bf16.

    On CPUs, PyTorch's fused attention takes about twice as long in bf16 as in fp32, even with bf16 instructions.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, a function of torch, with `args` and `kwargs`, and return its result. `types` is not used.

        Attention computes in fp32, and its result has the number format of its queries.
        """
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        wide = {key: _wide(value) for key, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            result = func(*map(_wide, args), **wide)
        query = args[0] if args else (kwargs or {})["query"]
        return result.to(query.dtype)


def _wide(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device, compiled: bool = False) -> Iterator[None]:
    """Return a context in which networks compute in the given number format.

    Args:
        precision: The number format.
        device: Device of the networks.
        compiled: True if networks are compiled. The context then leaves attention to the compiler.
    """
    if precision == "fp32":
        yield
        return
    wide = Fp32Attention() if device.type == "cpu" and not compiled else contextlib.nullcontext()
    with torch.autocast(device.type, torch.bfloat16), wide:
        yield
