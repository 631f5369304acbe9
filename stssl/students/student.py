"""Run a trained student on stored pixel values. The student scales the values itself."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stssl.base.arrays import AnyArray
from stssl.base.batch import MetadataColumn
from stssl.base.errors import ConfigError, DataError
from stssl.base.labels import LabelSpace
from stssl.data.resizing import resize_images
from stssl.models import Network, Prediction
from stssl.students.description import ModelDescription

WIDE = (torch.uint16, torch.int16, torch.int32, torch.uint32, torch.int64, torch.uint64)
"""Types of tensors that cannot hold display-stretched 8-bit images only."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMITS = {8: 2**8 - 1, 16: 2**16 - 1}
"""Largest stored value by number of bits."""


class Student(nn.Module):
    """Turn stored pixel values into logits of classes.

    It resizes images to its own size, clips and scales their values, and corrects the logits if it was trained with
    CDMAD. It is in evaluation mode; put it on a device by `student.to(device)`.

    Attributes:
        description: What the student takes and gives, and how it was trained.
        classes: Names of the C classes, in the sequence of the outputs.
        bands: Names of the bands, in the sequence of the images' channels.
    """

    def __init__(self, description: ModelDescription, network: Network) -> None:
        """Use a network with trained weights. To load a student from a file, call `stssl.load_student`.

        Args:
            description: Description of the network.
            network: Network with its trained weights.
        """
        super().__init__()
        self.description, self.network = description, network
        self.classes = tuple(one.name for one in description.classes)
        self.bands = tuple(band.name for band in description.bands)
        self._space = LabelSpace(self.classes, description.multilabel)
        clips = [
            (-torch.inf if b.low is None else b.low, torch.inf if b.high is None else b.high) for b in description.bands
        ]
        self.mean, self.std = (
            self._number([b.mean for b in description.bands], "mean"),
            self._number([b.std for b in description.bands], "std"),
        )
        self.low, self.high = (
            self._number([low for low, _ in clips], "low"),
            self._number([high for _, high in clips], "high"),
        )
        self.clipped = any(b.low is not None or b.high is not None for b in description.bands)
        self.eval().requires_grad_(False)
        self.bias: Tensor
        self.register_buffer("bias", self._blank_logits(), persistent=False)

    @property
    def needs_metadata(self) -> bool:
        """Return True if the student sees place and date, too. It then takes metadata as its second argument."""
        return self.description.network.role == "direct"

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Compute logits [n, C] of n images.

        Args:
            images: [n, bands, H, W] stored values, without any scaling. Bands of lower resolution are resampled to one
                grid before.
            metadata: [n, 4] latitude and longitude in degrees, day of the year and UTC hour; NaN for missing values.
                Only students with `needs_metadata` take it.

        Raises:
            ConfigError: The student needs metadata and got none, or takes none and got some.
            DataError: The shape or the type of the images or of the metadata does not fit.
        """
        self._check(images, metadata)
        prediction: Prediction = self.network(self.scaled(images), None if metadata is None else metadata.float())
        return self.corrected(prediction.logits)

    def scaled(self, images: Tensor) -> Tensor:
        """Resize stored values [n, bands, H, W] to the network's size, and scale them."""
        image = self.description.image
        values = self.rescaled(images.to(self.mean.dtype)) if image.resize == "corners" else images
        values = resize_images(values, image.pixels, image.resize)
        return values if image.resize == "corners" else self.rescaled(values)

    def rescaled(self, values: Tensor) -> Tensor:
        """Clip and scale the values of images [n, bands, H, W]."""
        if self.clipped:
            values = torch.minimum(torch.maximum(values, self.low), self.high)
        return (values - self.mean) / self.std

    def corrected(self, logits: Tensor) -> Tensor:
        """Subtract the logits of a blank image from logits [n, C], if the student was trained with CDMAD."""
        return logits - self.bias if self.description.cdmad else logits

    def probabilities(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Compute the probability of each class, [n, C].

        The probabilities of a row have the sum 1 if a patch has exactly one class. Else each one is independent.

        Args:
            images: [n, bands, H, W] stored values; see `forward`.
            metadata: [n, 4] places and dates; see `forward`.
        """
        return self._space.probabilities(self(images, metadata))

    @torch.no_grad()
    def predict(
        self, array: AnyArray | Tensor, metadata: AnyArray | Tensor | None = None, batch: int = 256
    ) -> NDArray[np.float32]:
        """Predict patches that lie in host memory, batch by batch, on the device of the student.

        Args:
            array: [n, bands, H, W] stored values, such as `store.read(rows, student.bands)`.
            metadata: [n, 4] places and dates; see `forward`.
            batch: Number of patches in a batch.

        Returns:
            [n, C] probability of each class.

        Raises:
            ConfigError: The student needs metadata and got none, or takes none and got some.
            DataError: The shape or the type does not fit, or the values cannot be stored values of its bands.
        """
        images, table = as_tensor(array), None if metadata is None else as_tensor(metadata)
        self._check(images, table)
        self._check_values(images)
        parts = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            chosen = None if table is None else table[rows].to(self.mean.device)
            parts.append(self.probabilities(images[rows].to(self.mean.device), chosen).float().cpu())
        return cast(NDArray[np.float32], torch.cat(parts).numpy())

    def _number(self, values: list[float], name: str) -> Tensor:
        self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        return self.get_buffer(name)

    @torch.no_grad()
    def _blank_logits(self) -> Tensor:
        """Compute the logits [1, C] that CDMAD subtracts: those of an image of ones; zeros without CDMAD."""
        if not self.description.cdmad:
            return torch.zeros(1, len(self.classes))
        size = self.description.image.pixels
        prediction: Prediction = self.network(torch.ones(1, len(self.bands), size, size), None, inject=False)
        return prediction.logits

    def _check(self, images: Tensor, metadata: Tensor | None) -> None:
        """Refuse images and metadata of a wrong shape or type."""
        if self.needs_metadata and metadata is None:
            raise ConfigError(
                "this student sees place and date (model.metadata: direct): pass metadata [n, 4] with latitude, "
                "longitude, day of the year and UTC hour; NaN where a value is unknown."
            )
        if not self.needs_metadata and metadata is not None:
            raise ConfigError("this student sees only images: leave the metadata out.")
        if images.ndim != 4 or images.shape[1] != len(self.bands) or 0 in images.shape[2:]:
            raise DataError(
                f"this student takes images [n, {len(self.bands)}, height, width] (bands: {', '.join(self.bands)})"
                f", not an array of the shape {[*images.shape]}."
            )
        if metadata is not None and (
            metadata.ndim != 2 or metadata.shape[1] != len(MetadataColumn) or len(metadata) != len(images)
        ):
            raise DataError(
                f"metadata must have the shape [n, {len(MetadataColumn)}], with a row for each image, not "
                f"{[*metadata.shape]}."
            )
        if self.description.image.bits == 8 and images.dtype in WIDE:
            raise DataError(
                f"this student was trained on 8-bit images ({self.description.image.scaling}), and these have the type "
                f"{_name(images.dtype)}: their numbers mean something else. Give images of the kind it was trained on; "
                "8-bit values in another type can be given as uint8 or float32."
            )
        if self.description.image.bits == 16 and images.dtype == torch.uint8:
            raise DataError(
                "this student was trained on 16-bit values (uint16), and these are 8-bit images (uint8): their numbers "
                "mean something else. Give the stored values of the original images."
            )
        if images.dtype not in (*WIDE, *FLOATS, torch.uint8):
            raise DataError(f"this student takes integers or floats, not {_name(images.dtype)}.")

    def _check_values(self, images: Tensor) -> None:
        """Refuse values that cannot be stored values: not finite, out of range, or already scaled to 0..1."""
        if not len(images):
            return
        values = images if images.dtype in FLOATS else images.to(torch.int64)
        low, high = (float(value) for value in values.aminmax())
        bits = self.description.image.bits
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError("some pixels of the images are NaN or infinite. Fill them, or leave these images out.")
        if low < 0 or high > LIMITS[bits]:
            raise DataError(
                f"stored values of {bits}-bit images lie in 0..{LIMITS[bits]}, and these lie in {low:g}..{high:g}: "
                "their numbers mean something else."
            )
        if images.dtype in FLOATS and 0 < high <= 1 and bool((values % 1 != 0).any()):
            raise DataError(
                f"these values lie in {low:g}..{high:g}, as if they were scaled before. Give the stored values: the "
                "student scales them itself."
            )


def as_tensor(array: AnyArray | Tensor) -> Tensor:
    """Return an array as a tensor, without a copy if possible.

    Raises:
        DataError: The array does not hold numbers.
    """
    if isinstance(array, Tensor):
        return array
    found: NDArray[Any] = np.asarray(array)
    if found.dtype.kind not in "uif":
        raise DataError(f"images must be an array of integers or floats, not of {found.dtype}.")
    return torch.from_numpy(np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("=")))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
