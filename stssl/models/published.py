"""List where to download the published weights whose local path a recipe takes from an environment variable."""

import os
from collections.abc import Mapping
from types import MappingProxyType

_USB = "https://github.com/microsoft/Semi-supervised-learning/releases/download/v.0.0.0/"
PUBLISHED_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "USB_VIT_S16": f"{_USB}vit_small_patch16_224_mlp_im_1k_224.pth",
        "USB_VIT_S2": f"{_USB}vit_small_patch2_32_mlp_im_1k_32.pth",
    }
)
"""Address of the file for each variable: USB's ViTs, pretrained on ImageNet-1k (Wang et al., arXiv:2208.07204)."""


def where_published(variable: str) -> str:
    """Return a sentence for a message: the address from which the weights file of an environment variable comes.

    It begins with a space. It is empty if this module does not list the variable.

    Args:
        variable: Name of the environment variable that holds the local path of the file, such as `USB_VIT_S16`.
    """
    return f" The authors publish this file at {PUBLISHED_WEIGHTS[variable]}" if variable in PUBLISHED_WEIGHTS else ""


def where_to_get(path: str) -> str:
    """Return a sentence for a message: the address where a missing file of weights can be downloaded.

    It begins with a space. It is empty if no environment variable that this module lists holds the path.

    Args:
        path: Absolute local path of the missing file.
    """
    named = (name for name in PUBLISHED_WEIGHTS if os.path.abspath(os.environ.get(name) or "/") == path)  # noqa: PTH100
    return next(map(where_published, named), "")
