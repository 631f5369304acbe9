"""Run a trained student on stored pixel values. The student scales the values itself."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl.base.arrays import AnyArray
from stssl.base.labels import LabelSpace
from stssl.models import Network, Prediction
from stssl.students.description import ModelDescription
from stssl.students.image_model import ImageModel, as_tensor


class Student(ImageModel):
    """Classify images with a trained network: turn their stored pixel values into logits of classes.

    The student resizes images to the size of its training, clips and scales their values, and corrects the logits if it
    was trained with CDMAD. It is in evaluation mode; put it on a device by `student.to(device)`.

    Attributes:
        description: Images, outputs and training of the student.
        classes: Names of the C classes, in the sequence of the outputs.
        bands: Names of the bands, in the sequence of the images' channels.
    """

    def __init__(self, description: ModelDescription, network: Network) -> None:
        """Wrap a network that has trained weights. To load a student from a file, call `stssl.load_student`.

        Args:
            description: Description of the network.
            network: Network with its trained weights.
        """
        super().__init__(description)
        self.network = network
        self.classes = tuple(one.name for one in description.classes)
        self._space = LabelSpace(self.classes, description.multilabel)
        self.eval().requires_grad_(False)
        self.bias: Tensor
        self.register_buffer("bias", self._blank_logits(), persistent=False)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits [n, C] of n images.

        Args:
            images: [n, bands, H, W] stored values, without any scaling. The caller resamples bands of lower resolution
                to the common grid.
            metadata: [n, 4] latitude and longitude in degrees, day of the year and UTC hour; NaN for missing values.
                Only students with `needs_metadata` take it.

        Raises:
            ConfigError: The student needs metadata and got none, or takes none and got some.
            DataError: The shape or the type of the images or of the metadata does not fit.
        """
        self.check(images, metadata)
        prediction: Prediction = self.network(self.scaled(images), None if metadata is None else metadata.float())
        return self.corrected(prediction.logits)

    def corrected(self, logits: Tensor) -> Tensor:
        """Return logits [n, C] minus those of a blank image if the student was trained with CDMAD; else unchanged."""
        return logits - self.bias if self.description.cdmad else logits

    def probabilities(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return the probability of each class, [n, C], for n images.

        If a patch has exactly one class, the probabilities of a row sum to 1. If it may have several, each class has a
        probability of its own.

        Args:
            images: [n, bands, H, W] stored values, without any scaling.
            metadata: [n, 4] latitude and longitude in degrees, day of the year and UTC hour; NaN for missing values.
                Only students with `needs_metadata` take it.
        """
        return self._space.probabilities(self(images, metadata))

    @torch.no_grad()
    def predict(
        self,
        array: AnyArray | Tensor,
        metadata: AnyArray | Tensor | None = None,
        batch: int = 256,
        *,
        resize: bool = False,
    ) -> NDArray[np.float32]:
        """Predict class probabilities of patches in host memory, batch by batch, on the device of the student.

        Args:
            array: [n, bands, H, W] stored values, such as `store.read(rows, student.bands)`.
            metadata: [n, 4] latitude and longitude in degrees, day of the year and UTC hour; NaN for missing values.
                Only students with `needs_metadata` take it.
            batch: Number of patches in a batch.
            resize: True to accept images of another height or width than the patches of the training. The student
                resizes them.

        Returns:
            [n, C] probability of each class.

        Raises:
            ConfigError: The student needs metadata and got none, or takes none and got some.
            DataError: The shape or the type does not fit, or the values cannot be stored values of its bands.
        """
        images, table = as_tensor(array), None if metadata is None else as_tensor(metadata)
        self.check(images, table)
        if not resize:
            self.check_size(images)
        self.check_values(images)
        parts = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            chosen = None if table is None else table[rows].to(self.mean.device)
            parts.append(self.probabilities(images[rows].to(self.mean.device), chosen).float().cpu())
        return cast(NDArray[np.float32], torch.cat(parts).numpy())

    @torch.no_grad()
    def _blank_logits(self) -> Tensor:
        """Return the logits [1, C] that CDMAD subtracts: those of an image of ones. Return zeros without CDMAD."""
        if not self.description.cdmad:
            return torch.zeros(1, len(self.classes))
        size = self.description.image.pixels
        prediction: Prediction = self.network(torch.ones(1, len(self.bands), size, size), None, inject=False)
        return prediction.logits
