"""Describe a file of weights: who wrote it, what it holds, and which backbones it fits."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from stssl.base.errors import ConfigError
from stssl.models.backbones import OWN, make_backbone
from stssl.models.weight_fitting import fit_weights
from stssl.models.weight_sources import Checkpoint, first_kernel, open_file

TRIED_SECONDS = 20.0
"""Longest time to try backbones."""
MOST_FITTING = 8
"""Most fitting backbones to name."""


def describe_weights(path: str) -> list[str]:
    """Describe a file of weights in lines of one fact.

    Args:
        path: File of weights.

    Raises:
        ConfigError: The file cannot be read, or it holds no network that timm has.
    """
    found = open_file(path)
    kernel = first_kernel(found.tensors)
    numbers = sum(value.numel() for value in found.tensors.values())
    bands = "unknown" if kernel is None else str(kernel.shape[1])
    named = f": {', '.join(found.bands)}" if found.bands else ", names unknown: give model.weights_bands"
    lines = [
        f"{path}: {Path(path).stat().st_size / 1e6:.1f} MB",
        f"layout    {found.layout}",
        f"tensors   {len(found.tensors)} with {numbers:,} numbers",
        f"bands     {bands}{named}",
    ]
    if found.known:
        known = found.known
        lines.append(f"known     {known.title} ({known.license or 'no license named'}; {known.source})")
    if found.arch:
        lines.append(f"network   {found.arch}")
    if found.aside:
        parts = Counter(name.split(".")[0] for name in found.aside)
        lines.append(f"not used  {', '.join(f'{part} ({count})' for part, count in parts.items())}")
    fitting = list(_fitting(found))
    none = "no backbone that was tried; its own model.backbone_args may be needed"
    return [*lines, f"fits      {', '.join(fitting) or none}"]


def _fitting(found: Checkpoint) -> Iterator[str]:
    """Yield up to `MOST_FITTING` backbones that the weights fit, the likeliest first."""
    kernel, until, count = first_kernel(found.tensors), time.monotonic() + TRIED_SECONDS, 0
    if kernel is None:
        return
    for name in _candidates(found):
        if time.monotonic() > until or count == MOST_FITTING:
            return
        try:
            with torch.device("meta"):
                backbone = make_backbone(name, {}, size=224, in_channels=kernel.shape[1], classes=2, hub=False)
            fit_weights(backbone, found)
        except (ConfigError, RuntimeError):  # other weights, or a constructor that needs memory
            continue
        count += 1
        yield name


def _candidates(found: Checkpoint) -> list[str]:
    """List backbones whose first layer has the same name, the likeliest first."""
    from timm import list_models
    from timm.models import get_pretrained_cfg

    kernel = next((name for name, value in found.tensors.items() if value.ndim == 4), "")
    said = found.arch or found.arches
    fitting = []
    for name in list_models():
        first = getattr(get_pretrained_cfg(name, allow_unregistered=True), "first_conv", None)
        firsts = first if isinstance(first, tuple | list) else [first]
        if any(one and f"{one}.weight" == kernel for one in firsts):
            fitting.append(name)
    patch = found.tensors[kernel].shape[-1] if kernel else 0
    width = found.tensors[kernel].shape[0] if kernel else 0
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}

    def unlikely(name: str) -> tuple[bool, bool, bool, int]:
        other_patch = re.search(r"patch(\d+)", name)
        return (
            not (said and name.startswith(said)),
            bool(other_patch and int(other_patch[1]) != patch),
            bool(other_patch and sizes.get(width, "") not in name),
            len(name),
        )

    return [*OWN, *sorted(fitting, key=unlikely)]
