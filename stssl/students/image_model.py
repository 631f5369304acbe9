"""Check and scale stored pixel values as the description of a network (bands, sizes, limits) says."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stssl.base.arrays import AnyArray
from stssl.base.batch import MetadataColumn
from stssl.base.errors import ConfigError, DataError
from stssl.data.resizing import resize_images
from stssl.students.description import ModelDescription

WIDE = (torch.uint16, torch.int16, torch.int32, torch.uint32, torch.int64, torch.uint64)
"""Types of tensors that cannot hold display-stretched 8-bit images only."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LIMITS = {8: 2**8 - 1, 16: 2**16 - 1}
"""Largest stored value by number of bits."""


class ImageModel(nn.Module):
    """Check and scale stored pixel values for a network. Base class of `Student` and `FeatureModel`.

    Attributes:
        description: Images, outputs and training of the network.
        bands: Names of the bands, in the sequence of the images' channels.
    """

    def __init__(self, description: ModelDescription) -> None:
        """Store the description of a network. Store the numbers that scale its bands as buffers.

        Args:
            description: Description of the network.
        """
        super().__init__()
        self.description = description
        self.bands = tuple(band.name for band in description.bands)
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

    @property
    def needs_metadata(self) -> bool:
        """Return True if the model sees place and date, too. It then takes metadata as its second argument."""
        return self.description.network.role == "direct"

    def scaled(self, images: Tensor) -> Tensor:
        """Return the images that the network takes, given stored values [n, bands, H, W]: resized and scaled."""
        image = self.description.image
        values = self.rescaled(images.to(self.mean.dtype)) if image.resize == "corners" else images
        values = resize_images(values, image.pixels, image.resize)
        return values if image.resize == "corners" else self.rescaled(values)

    def rescaled(self, values: Tensor) -> Tensor:
        """Return (value - mean) / std of each band for stored values [n, bands, H, W], clipped to the band's limits."""
        if self.clipped:
            values = torch.minimum(torch.maximum(values, self.low), self.high)
        return (values - self.mean) / self.std

    def _number(self, values: list[float], name: str) -> Tensor:
        self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        return self.get_buffer(name)

    def check(self, images: Tensor, metadata: Tensor | None) -> None:
        """Raise an error if images or metadata have a wrong shape or type, or if metadata is missing or not needed.

        Args:
            images: Images that should be [n, bands, H, W].
            metadata: Metadata that should be [n, 4] if the model needs it, else None.

        Raises:
            ConfigError: The model needs metadata and got none, or takes none and got some.
            DataError: The shape or the type of the images or of the metadata does not fit.
        """
        for given in (images, metadata):
            if given is not None and not isinstance(given, Tensor):
                raise DataError(
                    f"a call takes torch tensors, not {type(given).__name__}. Give torch.from_numpy(array), or call "
                    "predict(array) of a student, which takes NumPy arrays."
                )
        if self.needs_metadata and metadata is None:
            raise ConfigError(
                "this model sees place and date (model.metadata: direct): pass metadata [n, 4] with latitude, "
                "longitude, day of the year and UTC hour; NaN where a value is unknown."
            )
        if not self.needs_metadata and metadata is not None:
            raise ConfigError("this model sees only images: leave the metadata out.")
        if images.ndim != 4 or images.shape[1] != len(self.bands) or 0 in images.shape[2:]:
            raise DataError(
                f"this model takes images [n, {len(self.bands)}, height, width] (bands: {', '.join(self.bands)})"
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
                f"this model was trained on 8-bit images ({self.description.image.scaling}), and these have the type "
                f"{_name(images.dtype)}: their numbers mean something else. Give images of the kind it was trained on; "
                "8-bit values in another type can be given as uint8 or float32."
            )
        if self.description.image.bits == 16 and images.dtype == torch.uint8:
            raise DataError(
                "this model was trained on 16-bit values (uint16), and these are 8-bit images (uint8): their numbers "
                "mean something else. Give the stored values of the original images."
            )
        if images.dtype not in (*WIDE, *FLOATS, torch.uint8):
            raise DataError(f"this model takes integers or floats, not {_name(images.dtype)}.")

    def check_size(self, images: Tensor) -> None:
        """Raise a `DataError` if images [n, bands, H, W] have another height or width than the training patches."""
        height, width = images.shape[2:]
        side = self.description.image.side
        if (height, width) != (side, side):
            raise DataError(
                f"these images have {height} x {width} pixels, and this model was trained on patches of {side} x "
                f"{side}. Give such patches, or give resize=True to resize the images."
            )

    def check_values(self, images: Tensor) -> None:
        """Raise a `DataError` if images [n, bands, H, W] cannot hold stored values.

        Their values may be not finite, outside of what a stored value can be, or scaled to 0..1 already.
        """
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
    """Return a NumPy array or tensor as a tensor. The result shares memory with the argument if possible.

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
