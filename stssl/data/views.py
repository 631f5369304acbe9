"""Turn loaded patches into views (normalized, augmented images): scale pixels, choose augmentations, apply them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stssl.base.arrays import Floats, Ints
from stssl.base.batch import DATE, PLACE, Batch, Stream, View
from stssl.base.randomness import RandomStream, uniforms
from stssl.base.scaling import BandScaling
from stssl.data.augment import AugmentConfig, Draw, apply_view, draw_view, draws_on, numbers_needed
from stssl.data.resizing import Resize, resize_images


@dataclass(frozen=True)
class RawRows:
    """Hold n patches for one training step as they come from the store, before scaling, in host memory.

    They are the patches that this training process gets from one stream (labeled or unlabeled).

    Attributes:
        arrays: For each band group, stored pixels [n, bands, height, width].
        metadata: [n, 4] with the columns of `MetadataColumn`; NaN if missing.
        labels: [n, G] choice ids for the G decisions of a patch; `IGNORED` if unknown.
        index: [n] positions in the list of patches of the stream.
        rows: [n] store rows, for messages.
        draws: Random choices of the augmentation, for each view that the step uses.
    """

    arrays: dict[str, Tensor]
    metadata: Tensor
    labels: Tensor
    index: Tensor
    rows: Tensor
    draws: dict[View, Draw]


RawBatch = dict[Stream, RawRows]


class PixelScaler(nn.Module):
    """Turn the stored pixels of all band groups into images for networks: resize, scale to [0, 1], and center them."""

    low: Tensor
    width: Tensor
    order: Tensor
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        layout: Mapping[str, Sequence[str]],
        bands: Sequence[str],
        size: int,
        *,
        mean: Floats,
        std: Floats,
        scale: Literal["sigmas", "bytes"],
        resize: Resize = "centers",
        scaling: BandScaling | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Set up the scaling of stored pixel values to network inputs.

        Args:
            layout: For each band group, the bands that the reader delivers.
            bands: The bands of an image, sorted as the networks expect them.
            size: Side of the images in pixels.
            mean: Mean of the stored values for each band in `bands`.
            std: Standard deviation of the stored values for each band in `bands`.
            scale: `sigmas` maps mean - 2 standard deviations to 0, mean + 2 to 1, and clips. `bytes` divides by 255.
            resize: How to change the size of images.
            scaling: Numbers of each band that replace `mean`, `std` and `scale`; None to use those.
            memory_format: Memory layout that the networks expect.
        """
        super().__init__()
        self.size, self.resize, self.memory_format = size, resize, memory_format
        self.groups = {name: [list(bands).index(band) for band in group] for name, group in layout.items()}
        delivered = [band for group in layout.values() for band in group]
        self.in_order = delivered == list(bands)
        self.register_buffer("order", torch.tensor([delivered.index(band) for band in bands]), persistent=False)
        low, width = (mean - 2 * std, 4 * std) if scale == "sigmas" else (mean * 0, mean * 0 + 255)
        center, spread = mean * 0 + 0.5, mean * 0 + (0.25 if scale == "sigmas" else 0.5)
        self.numbers_of = scale if scaling is None else "numbers"
        if scaling is not None:
            low, width, center, spread = _unit_numbers(scaling)
        for name, numbers in (("low", low), ("width", width), ("center", center), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(numbers).float().view(1, -1, 1, 1), persistent=False)

    def unit(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return images [n, bands, size, size] with values in [0, 1], made from stored pixels of any resolution.

        Args:
            arrays: For each band group (each resolution), stored pixels [n, bands, height, width] of n patches.
        """
        if self.resize == "corners":
            parts = [resize_images(self._scaled(arrays[name], name), self.size, "corners") for name in self.groups]
            return self._ordered(parts)
        image = self._ordered([resize_images(arrays[name], self.size, self.resize) for name in self.groups])
        return ((image - self.low) / self.width).clamp_(0, 1)

    def _scaled(self, pixels: Tensor, group: str) -> Tensor:
        """Return the stored pixels of the band group `group`, scaled to [0, 1] and clipped, at their own resolution."""
        own = self.groups[group]
        return ((pixels.float() - self.low[:, own]) / self.width[:, own]).clamp_(0, 1)

    def _ordered(self, parts: list[Tensor]) -> Tensor:
        """Return images with all bands, joined from band groups of equal size and sorted as the networks expect."""
        image = torch.cat(parts, 1)
        return image if self.in_order else image[:, self.order]

    def normalize(self, image: Tensor) -> Tensor:
        """Return values x in [0, 1] centered for networks: (x - 0.5) / 0.25 for `sigmas`, (x - 0.5) / 0.5 for `bytes`.

        For `sigmas`, 0.25 is one standard deviation, so both scales give values of about unit size. If a `scaling` was
        given, the result is (stored value - mean) / std with its numbers.
        """
        return (image - self.center).div_(self.spread).contiguous(memory_format=self.memory_format)

    def rule(self) -> list[tuple[float, float, float, float]]:
        """Return (mean, std, low, high) of each band, in units of the stored values.

        With these numbers, `forward` computes (clip(x, low, high) - mean) / std of a stored value x.
        """
        numbers = (self.low, self.width, self.center, self.spread)
        low, width, center, spread = (buffer.flatten().double() for buffer in numbers)
        rows = torch.stack([low + center * width, spread * width, low, low + width], 1)
        return [(float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in rows]

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the images [n, bands, size, size] that the networks expect, without augmentation.

        Args:
            arrays: For each band group (each resolution), stored pixels [n, bands, height, width] of n patches.
        """
        return self.normalize(self.unit(arrays))


def _unit_numbers(scaling: BandScaling) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the numbers of each band with which `PixelScaler` applies a scaling: low, width, center and spread.

    A stored value v becomes x = (v - low) / width in [0, 1], and then (x - center) / spread = (v - mean) / std.
    """
    low, high, mean, std = (
        np.array(values, np.float64) for values in (scaling.low, scaling.high, scaling.mean, scaling.std)
    )
    width = high - low
    return (
        low.astype(np.float32),
        width.astype(np.float32),
        ((mean - low) / width).astype(np.float32),
        (std / width).astype(np.float32),
    )


class ViewDrawer:
    """Choose at random how each patch is augmented. This runs on the CPU, in the loader's background thread."""

    def __init__(self, config: AugmentConfig, seed: int, size: int) -> None:
        """Set the kind and strength of the augmentation, the seed, and the size of the images.

        Args:
            config: Kind and strength of the augmentation.
            seed: Seed of the run.
            size: Side of the images in pixels.
        """
        self.config, self.seed, self.size = config, seed, size

    def __call__(self, views: Collection[View], epochs: Ints, rows: Ints) -> dict[View, Draw]:
        """Choose at random how to augment n patches, for each wanted view. Return the choices by view.

        Args:
            views: Wanted views (augmented copies, such as a weak and a strong one).
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        # Sort the views, so that the result has the same sequence on all ranks: a set of enum members is iterated in
        # another sequence in each process.
        return {view: self._draw(view, epochs, rows) for view in sorted(views, key=str)}

    def _draw(self, view: View, epochs: Ints, rows: Ints) -> Draw:
        strong = self.config.randaugment if view in (View.LABELED_STRONG, View.UNLABELED_STRONG) else None
        cutout = self.config.cutout
        numbers = uniforms((self.seed, view.randomness, epochs, rows), numbers_needed(strong, cutout))
        return draw_view(numbers, self.size, self.config.padding, strong, cutout)

    def drop_metadata(self, metadata: Tensor, stream: Stream, epochs: Ints, rows: Ints) -> Tensor:
        """Return the metadata [n, 4] of n patches with some places and dates, chosen at random, set to NaN.

        NaN hides them from the networks. Place and date of a patch are each hidden with the probability
        `metadata_dropout` of the recipe.

        Args:
            metadata: [n, 4] with the columns of `MetadataColumn`.
            stream: Source of the patches, labeled or unlabeled.
            epochs: [n] epoch of each patch.
            rows: [n] store rows.
        """
        if self.config.metadata_dropout == 0:
            return metadata
        numbers = uniforms((self.seed, RandomStream.METADATA_DROPOUT, stream.randomness, epochs, rows), 2)
        chosen = torch.from_numpy(numbers < self.config.metadata_dropout)
        dropped = torch.zeros(metadata.shape, dtype=torch.bool)
        dropped[:, PLACE], dropped[:, DATE] = chosen[:, :1], chosen[:, 1:]
        return metadata.masked_fill(dropped, torch.nan)


class ViewMaker(nn.Module):
    """Turn loaded patches into a `Batch` of normalized, augmented images on the device of the networks."""

    def __init__(self, pixels: PixelScaler) -> None:
        """Set the module that scales pixels. All batches go to the device of this module.

        Args:
            pixels: Module that turns stored pixels into network inputs.
        """
        super().__init__()
        self.pixels = pixels

    @torch.no_grad()
    def forward(self, raw: RawBatch) -> Batch:
        """Copy loaded patches to the device, scale them, and augment them as their random choices say.

        Return them as a `Batch`.

        Args:
            raw: Loaded patches by stream; the labeled stream must be there.
        """
        # Read the device from a buffer of the scaler: if the module is moved to another device, its buffers move with
        # it, and so do the batches.
        device = self.pixels.low.device
        images: dict[View, Tensor] = {}
        for rows in raw.values():
            arrays = {name: array.to(device, non_blocking=True) for name, array in rows.arrays.items()}
            with torch.autocast(device.type, enabled=False):  # bf16 has too few digits for the coordinates of pixels
                unit = self.pixels.unit(arrays)
                for view, draw in draws_on(rows.draws, device).items():
                    images[view] = self.pixels.normalize(apply_view(unit, draw))
        labeled, unlabeled = raw[Stream.LABELED], raw.get(Stream.UNLABELED)
        return Batch(
            images=images,
            metadata={stream: rows.metadata.to(device, non_blocking=True) for stream, rows in raw.items()},
            labels=labeled.labels.to(device, non_blocking=True),
            index=(unlabeled.index if unlabeled else labeled.index[:0]).to(device, non_blocking=True),
            truth=unlabeled.labels.to(device, non_blocking=True) if unlabeled else None,
        )
