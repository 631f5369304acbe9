"""Compute features of images with the backbone of a student or of a pretrained encoder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from stssl.base.errors import ConfigError, shown
from stssl.models import Network
from stssl.models.backbones import Backbone, make_backbone, shape_of
from stssl.students.description import ModelDescription
from stssl.students.image_model import ImageModel
from stssl.students.loading import network_of, read_described


class FeatureModel(ImageModel):
    """Compute features of images from stored pixel values with a trained backbone, pooled over the image.

    Attributes:
        width: Number of features of an image.
    """

    def __init__(self, description: ModelDescription, network: Network | Backbone, width: int) -> None:
        """Wrap a network that has trained weights. To load one from a file, call `read_features`.

        Args:
            description: Description of the network.
            network: Network of a student, or backbone of a pretrained encoder.
            width: Number of features of an image.
        """
        super().__init__(description)
        self.network, self.width = network, width
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return the features [n, width] of n images.

        Args:
            images: [n, bands, H, W] stored values, without any scaling.
            metadata: [n, 4] latitude and longitude in degrees, day of the year and UTC hour; NaN for missing values.
                Only models with `needs_metadata` take it.

        Raises:
            ConfigError: The model needs metadata and got none, or takes none and got some.
            DataError: The shape or the type of the images or of the metadata does not fit.
        """
        self.check(images, metadata)
        values = self.scaled(images)
        if isinstance(self.network, Network):
            return self.network.embedding(values, None if metadata is None else metadata.float())
        backbone: Backbone = self.network
        return backbone.forward_head(backbone.forward_features(values), pre_logits=True)


def read_features(place: str | Path) -> FeatureModel:
    """Load the backbone of a student or of a pretrained encoder as a model that returns features of images.

    The model is in evaluation mode and on the CPU.

    Args:
        place: File of a student or encoder, a run's folder, or its folder of checkpoints.

    Raises:
        ConfigError: The file is no model, is damaged, has a newer format, or has no description.
    """
    path, description, weights = read_described(place)
    if description.network.role == "encoder":
        backbone, width = _encoder(path, description, weights)
        return FeatureModel(description, backbone, width)
    network = network_of(path, description, weights)
    head = network.backbone.get_classifier()
    assert isinstance(head, nn.Linear)  # tells mypy the type: `build_network` makes no other head
    return FeatureModel(description, network, head.in_features)


def _encoder(path: Path, description: ModelDescription, weights: dict[str, Tensor]) -> tuple[Backbone, int]:
    """Build the backbone of a pretrained encoder, and load its weights. Return it and its number of features.

    Args:
        path: Path of the weights file, for messages.
        description: Description of the encoder.
        weights: Tensors of the file by name.

    Raises:
        ConfigError: The weights do not fit the description.
    """
    parts = description.network
    try:
        # The weights are random until they are loaded. Draw them apart from the caller's random numbers, which would
        # otherwise change.
        with torch.random.fork_rng(devices=[]):
            backbone = make_backbone(
                parts.backbone,
                parts.backbone_args,
                size=description.image.pixels,
                in_channels=len(description.bands),
                classes=2,
                hub=False,
            )
        width = shape_of(backbone, parts.backbone).width
        backbone.reset_classifier(0)
        backbone.load_state_dict(weights)
    except (ConfigError, RuntimeError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise ConfigError(f"{path}: its weights do not fit its description ({reason}). Copy the file again.") from None
    return backbone, width
