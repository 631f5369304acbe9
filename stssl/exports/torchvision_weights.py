"""Rename the weights of a ResNet for torchvision, so that its detection and segmentation models can start from them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from stssl.base.errors import ConfigError, RunError
from stssl.models.backbones import make_backbone
from stssl.students.description import ModelDescription

BANDS_ENTRY = "bands"
"""Entry in the header of `backbone.safetensors` with the names of its three bands, as a JSON list."""
CLASSIFIER = "fc."
FEATURE_TOLERANCE = 1e-4
"""Largest allowed difference between the features of both networks, as a share of the largest feature."""
PROBE_SIDE = 64


def torchvision_weights(
    description: ModelDescription, weights: dict[str, Tensor], bands: Sequence[str] | None
) -> dict[str, Tensor]:
    """Return the weights of a ResNet's layers, without the head, as tensors by torchvision's names.

    Args:
        description: Description of the student or encoder.
        weights: Tensors by name, as in its file.
        bands: Names of three of its bands, in the sequence that the new images will have; None takes all bands.

    Raises:
        ConfigError: The network is no ResNet of torchvision, or the bands do not fit.
        RunError: torchvision's network gives other features with these weights.
    """
    name = description.network.backbone.partition(".")[0]
    if description.network.role == "direct":
        raise ConfigError("--format torchvision: this student's features depend on place and date. Export it as pt2.")
    network = torchvision_resnet(name, description.network.backbone)
    chosen = chosen_bands(description, bands)
    own = {
        key.removeprefix("backbone."): value
        for key, value in weights.items()
        if description.network.role == "encoder" or key.startswith("backbone.")
    }
    body = {key: value for key, value in own.items() if not key.startswith(CLASSIFIER)}
    if "conv1.weight" not in body or body["conv1.weight"].ndim != 4:
        raise ConfigError(_other_layers(description))
    body["conv1.weight"] = body["conv1.weight"][:, chosen].contiguous()
    expected = {key: value.shape for key, value in network.state_dict().items() if not key.startswith(CLASSIFIER)}
    expected["conv1.weight"] = body["conv1.weight"].shape
    if expected != {key: value.shape for key, value in body.items()}:
        raise ConfigError(_other_layers(description))
    _compare(description, network, body, len(chosen))
    return body


def _other_layers(description: ModelDescription) -> str:
    return (
        f"--format torchvision: {description.network.backbone} with these backbone_args has other layers than "
        "torchvision's. Export it as pt2 or onnx."
    )


def torchvision_resnet(name: str, given: str) -> nn.Module:
    """Return torchvision's ResNet of the given name, on the device `meta`, so that its weights take no memory.

    Args:
        name: Name in torchvision, such as `resnet50`.
        given: Name of the backbone, for messages.

    Raises:
        ConfigError: torchvision has no such ResNet.
    """
    from torchvision import models

    known = [one for one in models.list_models(module=models) if one.startswith(("resn", "wide_resn"))]
    if name not in known:
        raise ConfigError(
            f"--format torchvision takes ResNets ({', '.join(known)}), and the student is a {given}. Give --format "
            "pt2 or onnx."
        )
    with torch.device("meta"):
        network: nn.Module = models.get_model(name, weights=None)
    return network


def chosen_bands(description: ModelDescription, bands: Sequence[str] | None) -> list[int]:
    """Return the three channels of the network's images at which the chosen bands are, counted from 0.

    Args:
        description: Description of the student or encoder.
        bands: Names of three bands; None takes all bands.

    Raises:
        ConfigError: The network has no such band, or there are not three different bands.
    """
    own = [band.name for band in description.bands]
    wanted = own if bands is None else list(bands)
    missing = [band for band in wanted if band not in own]
    if missing:
        raise ConfigError(f"--bands: the student has no {', '.join(missing)}. It has: {', '.join(own)}.")
    if len(wanted) != 3 or len(set(wanted)) != 3:
        raise ConfigError(
            f"--format torchvision: torchvision's models take three bands, not {', '.join(wanted)}. Choose three of "
            f"{', '.join(own)} with --bands, such as --bands {','.join(own[:3])}."
        )
    return [own.index(band) for band in wanted]


def bands_entry(description: ModelDescription, bands: Sequence[str] | None) -> dict[str, str]:
    """Return the header entry that names the three bands of an export in their sequence, as for `chosen_bands`."""
    own = [band.name for band in description.bands]
    return {BANDS_ENTRY: json.dumps([own[place] for place in chosen_bands(description, bands)])}


def exported_bands(path: Path) -> tuple[str, ...]:
    """Return the names of the bands that the file `backbone.safetensors` takes, in their sequence.

    Return an empty tuple if an older release wrote the file: it did not say them.
    """
    with safe_open(path, "pt") as file:
        known = json.loads((file.metadata() or {}).get(BANDS_ENTRY, "[]"))
    return tuple(map(str, known))


def _compare(description: ModelDescription, network: nn.Module, body: dict[str, Tensor], bands: int) -> None:
    """Raise an error if timm's and torchvision's network compute different features with the weights `body`.

    Options of timm such as `act_layer` can change the features without a change of the weights.

    Args:
        description: Description of timm's network.
        network: torchvision's network. It gets the weights in place.
        body: Weights without the head, by torchvision's names.
        bands: Number of bands of the images.

    Raises:
        RunError: The features differ.
    """
    parts, encoder = description.network, description.network.role == "encoder"
    with torch.random.fork_rng(devices=[]):
        own = make_backbone(
            parts.backbone,
            parts.backbone_args,
            size=PROBE_SIDE,
            in_channels=bands,
            classes=0 if encoder else 2,
            hub=False,
        )
        image = torch.randn(2, bands, PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(0))
    own.load_state_dict(body, strict=False)
    network = network.to_empty(device="cpu")
    network.load_state_dict(body, strict=False)
    with torch.no_grad():
        first, second = own.eval().forward_features(image), layers_of(network.eval(), image)
    if first.shape != second.shape or not bool((first - second).abs().max() <= FEATURE_TOLERANCE * first.abs().max()):
        raise RunError(f"{_other_layers(description)} Its features differ. Nothing was written.")


def layers_of(network: nn.Module, image: Tensor) -> Tensor:
    """Return the last feature maps [n, channels, height, width] of a torchvision ResNet for n images."""
    values = image
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        values = network.get_submodule(name)(values)
    return values
