"""Check that patches fit a model, and arrange their stored pixels and metadata as the model takes them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stssl.archives.scene_files import canonical_band
from stssl.base.arrays import AnyArray
from stssl.base.errors import ConfigError, DataError
from stssl.data.resizing import resize_images
from stssl.predictions.patches import BandArray, PatchBatch, PatchSource
from stssl.students.description import ModelDescription
from stssl.students.image_model import ImageModel

CLOSE = 0.02
"""Largest relative difference between sizes that count as equal."""


def side_of(model: ModelDescription) -> int:
    """Return the width of the model's patches in pixels of its finest band.

    Args:
        model: Description of the model.
    """
    sizes = [band.meters for band in model.bands if band.meters]
    if model.image.meters and sizes:
        return max(1, round(model.image.meters / min(sizes)))
    return model.image.side


class PatchInputs:
    """Arrange the stored pixels of a source's patches as the images that one model takes.

    Bands are chosen, sorted and, if needed, resized.
    """

    def __init__(self, model: ImageModel, source: PatchSource, *, resample: bool) -> None:
        """Find the model's bands in a source, and check the type of its pixels. Without `resample`, check their size.

        Args:
            model: The model.
            source: Source of the patches, such as a store.
            resample: True to accept patches of another size than those of the training, and to resize them.

        Raises:
            ConfigError: The patches have another size, and `resample` is False.
            DataError: A band is missing, or has values of another type.
        """
        self.model = model
        known = {canonical_band(band): (name, band) for name, array in source.arrays.items() for band in array.bands}
        missing = [band for band in model.bands if canonical_band(band) not in known]
        if missing:
            has = ", ".join(band for array in source.arrays.values() for band in array.bands)
            raise DataError(
                f"{source.place} has no band {', '.join(missing)}, which the model needs (it has: {has}). Name the "
                "bands of images by --bands B02,B03,..., or give patches that have them."
            )
        places = [known[canonical_band(band)] for band in model.bands]
        self.chosen: dict[str, list[int]] = {}
        for name, band in places:
            self.chosen.setdefault(name, []).append(source.arrays[name].bands.index(band))
        delivered = [(name, source.arrays[name].bands[own]) for name, found in self.chosen.items() for own in found]
        self.order = [delivered.index(place) for place in places]
        self._check(source, resample)

    def _check(self, source: PatchSource, resample: bool) -> None:
        """Check that a source's values have the type, and its patches the size, that the model was trained with.

        Also set `side`, the size in pixels to which all bands are resized; None if all bands have the same size.

        Args:
            source: Source of the patches, such as a store.
            resample: True to accept patches of another size than those of the training, and to resize them.

        Raises:
            ConfigError: The patches have another size, and `resample` is False.
            DataError: The values have another type.
        """
        about = self.model.description
        arrays = [source.arrays[name] for name in self.chosen]
        for array in arrays:
            if array.dtype != about.bands[0].dtype:
                raise DataError(
                    f"{source.place} has values of type {array.dtype}, and the model was trained on "
                    f"{about.bands[0].dtype}: the numbers mean something else. Give the original numbers."
                )
        words = _other_size(arrays, about)
        if words and not resample:
            raise ConfigError(f"{source.place}: {words}. Give --resample to resize each patch, or other patches.")
        sizes = {(array.height, array.width) for array in arrays}
        self.side = None if len(sizes) == 1 else about.image.pixels

    def images(self, pixels: Mapping[str, AnyArray]) -> Tensor:
        """Return images [n, bands, H, W] of n patches, with the model's bands in its order, on its device.

        They are not normalized yet: the model does this.

        Args:
            pixels: [n, bands, height, width] stored values of each pixel size, by the name of its bands' array, such as
                `b10`.
        """
        device, how = self.model.mean.device, self.model.description.image.resize
        parts = []
        for name, own in self.chosen.items():
            values = torch.from_numpy(pixels[name][:, own]).to(device)
            if self.side is not None:
                # With the resize method `corners`, clip before the resize, as the training did: if the clipping came
                # after it, the images would differ from the training images.
                values = self._clipped(values, name) if how == "corners" else values
                values = resize_images(values, self.side, how)
            parts.append(values)
        joined = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return joined if self.order == sorted(self.order) else joined[:, self.order]

    def _clipped(self, values: Tensor, name: str) -> Tensor:
        """Return the pixels of the bands of one pixel size, clipped to the limits that the model has for these bands.

        Args:
            values: [n, bands, height, width] pixels of the bands that the model takes.
            name: Name of the source's array that has these bands, such as `b10`.
        """
        before = sum(len(own) for other, own in _before(self.chosen, name))
        mine = [self.order.index(before + number) for number in range(len(self.chosen[name]))]
        return torch.minimum(torch.maximum(values.float(), self.model.low[:, mine]), self.model.high[:, mine])


def metadata_for(model: ImageModel, batch: PatchBatch, source: PatchSource) -> Tensor | None:
    """Return places and dates [n, 4] of a batch's patches, on the model's device; None if the model does not see them.

    Missing values are NaN.

    Args:
        model: The model.
        batch: The n patches.
        source: Source of the patches, for messages.

    Raises:
        ConfigError: The model sees places and dates, and no patch of the batch has either.
    """
    if not model.needs_metadata:
        return None
    metadata = batch.metadata
    if bool(metadata.isnan().all()):
        raise ConfigError(
            f"this model sees place and date (model.metadata: direct), and the patches of {source.place} have neither. "
            "Give patches with places and dates, or a model that sees only images."
        )
    return metadata.to(model.mean.device)


def _before(chosen: Mapping[str, list[int]], name: str) -> list[tuple[str, list[int]]]:
    """Return a list of the (key, value) pairs that stand before a key in a dict.

    Args:
        chosen: For the name of each array of a source, the indexes of the bands that the model takes from it.
        name: The key.
    """
    entries = list(chosen.items())
    return entries[: [key for key, _ in entries].index(name)]


def _other_size(arrays: Sequence[BandArray], model: ModelDescription) -> str:
    """Return words on how the size of patches differs from that of the training patches; empty if it does not.

    Args:
        arrays: Descriptions of the arrays of bands that the model takes.
        model: Description of the model, with the size of its training patches.
    """
    meters, ground = model.image.meters, max(array.meters * array.width for array in arrays)
    if meters and ground and min(array.meters for array in arrays) > 0:
        return (
            f"its patches are {ground:g} m wide, and the model was trained on {meters:g} m"
            if abs(ground / meters - 1) > CLOSE
            else ""
        )
    stored = model.image.stored_pixels
    if stored and len({array.width for array in arrays}) == 1 and arrays[0].width != stored:
        return f"its patches have {arrays[0].width} pixels a side, and the model was trained on {stored}"
    return ""
