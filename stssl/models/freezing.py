"""Freeze a backbone: neither its weights nor its BatchNorm statistics ever change."""

from torch import nn

_MARK = "stssl_frozen"


def freeze_backbone(backbone: nn.Module, classifier: nn.Module) -> None:
    """Freeze all layers of a backbone, in place, except its classifier, and put it into evaluation mode.

    Copies of the backbone are frozen too. The network that contains the backbone must keep it in evaluation mode.

    Args:
        backbone: Backbone, which contains the classifier.
        classifier: Last layer of the backbone, which still learns.
    """
    backbone.requires_grad_(False).eval()
    classifier.requires_grad_(True)
    setattr(backbone, _MARK, True)


def is_frozen(module: nn.Module) -> bool:
    """Return True if `freeze_backbone` has frozen this module, or the module of which this one is a copy."""
    return bool(getattr(module, _MARK, False))
