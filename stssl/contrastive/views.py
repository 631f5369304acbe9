"""Augment batches of images for contrastive pretraining: random crops, color or band jitter, blur and flips.

The defaults are those of MoCo-v2 (arXiv:2003.04297): random resized crop, color jitter 0.4/0.4/0.4/0.1 with probability
0.8, grayscale 0.2, blur 0.5, horizontal flip. Color jitter is for RGB only. Other inputs get a gain and an offset for
each band instead. The loader gives random numbers to this module, which depend only on seed, epoch and patch.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import Floats
from stssl.base.config import Config, Share

FIXED = 16
"""Number of uniform random numbers that one view needs, without the two numbers for each band."""


class PretrainViewsConfig(Config):
    """Define the strength of the random augmentations in contrastive pretraining.

    Attributes:
        smallest_crop: Smallest area of a crop, as a share of the patch.
        aspect: Largest ratio between the sides of a crop.
        jitter: Share of patches with changed colors or bands.
        brightness: Largest relative change of brightness, RGB only.
        contrast: Largest relative change of contrast, RGB only.
        saturation: Largest relative change of saturation, RGB only.
        hue: Largest rotation of the hue, as a share of the color circle, RGB only.
        gray: Share of patches that lose their colors.
        blur: Share of patches that are blurred.
        flip_vertical: Flip half of the patches top to bottom too. Half are always flipped left to right.
        gain: Largest relative change of a band, for inputs that are not RGB.
        offset: Largest value to add to a band, for inputs that are not RGB. Bands are in [0, 1].
        rgb: Treat the bands as RGB colors. null means true for three bands, else false.
    """

    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.2
    aspect: Annotated[float, Field(ge=1)] = 4 / 3
    jitter: Share = 0.8
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    gray: Share = 0.2
    blur: Share = 0.5
    flip_vertical: bool = False
    gain: Share = 0.4
    offset: Share = 0.1
    rgb: bool | None = None


@dataclass(frozen=True)
class ViewDraw:
    """Hold the random choices (crop, flip, colors, blur) by which n patches are augmented once.

    Attributes:
        box: [n, 2, 3] affine maps for crops and flips, in the normalized coordinates of `affine_grid`.
        gain: [n, bands] factors: 1 for patches without jitter, and equal for all bands of an RGB patch.
        offset: [n, bands] values to add.
        contrast: [n] factors for the difference to the mean of the patch; 1 for inputs that are not RGB.
        color: [n, 3, 3] linear maps of RGB; the identity for other inputs.
        sigma: [n] width of the blur in pixels; 0 means no blur.
    """

    box: Tensor
    gain: Tensor
    offset: Tensor
    contrast: Tensor
    color: Tensor
    sigma: Tensor

    def to(self, device: torch.device) -> "ViewDraw":
        """Return a copy of the random choices on another device. The host does not wait until they are copied."""
        return ViewDraw(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def pretrain_numbers_needed(bands: int) -> int:
    """Return how many uniform random numbers are needed to augment one patch with `bands` bands once."""
    return FIXED + 2 * bands


def draw_pretrain_view(numbers: Floats, config: PretrainViewsConfig, bands: int) -> ViewDraw:
    """Return the choices (crop, flip, colors, blur) that augment n patches once, computed from random numbers.

    Args:
        numbers: [n, pretrain_numbers_needed(bands)] uniform numbers in [0, 1).
        config: Strength and probability of each operation.
        bands: Number of bands of the patches.
    """
    u = torch.from_numpy(numbers)
    colors = bands == 3 if config.rgb is None else config.rgb
    jittered = u[:, 5] < config.jitter
    signed = 2 * u - 1
    gain, offset = torch.ones(len(u), bands), torch.zeros(len(u), bands)
    contrast = torch.where(jittered & colors, 1 + config.contrast * signed[:, 7], 1.0)
    if colors:
        gain = torch.where(jittered, 1 + config.brightness * signed[:, 6], 1.0)[:, None].expand(-1, bands)
        color = _colors(u, signed, jittered, config)
    else:
        gain = torch.where(jittered[:, None], 1 + config.gain * signed[:, FIXED : FIXED + bands], gain)
        offset = torch.where(jittered[:, None], config.offset * signed[:, FIXED + bands :], offset)
        color = torch.eye(3).expand(len(u), 3, 3)
    sigma = torch.where(u[:, 11] < config.blur, 0.1 + 1.9 * u[:, 12], 0.0)
    return ViewDraw(_boxes(u, config), gain.contiguous(), offset, contrast, color.contiguous(), sigma)


def _boxes(u: Tensor, config: PretrainViewsConfig) -> Tensor:
    """Return affine maps [n, 2, 3] for random crops and flips. They map points of the result to points of the image.

    Args:
        u: [n, numbers] uniform random numbers in [0, 1).
        config: Strength of the augmentation.
    """
    area = config.smallest_crop + (1 - config.smallest_crop) * u[:, 0]
    shape = torch.exp(math.log(config.aspect) * (2 * u[:, 1] - 1))
    width, height = (area * shape).sqrt().clamp_max(1), (area / shape).sqrt().clamp_max(1)
    flip_x = torch.where(u[:, 4] < 0.5, -1.0, 1.0)
    flip_y = torch.where((u[:, 10] < 0.5) & config.flip_vertical, -1.0, 1.0)
    box = torch.zeros(len(u), 2, 3)
    box[:, 0, 0], box[:, 1, 1] = width * flip_x, height * flip_y
    box[:, 0, 2], box[:, 1, 2] = (1 - width) * (2 * u[:, 2] - 1), (1 - height) * (2 * u[:, 3] - 1)
    return box


_GRAY = torch.tensor([0.299, 0.587, 0.114])
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _colors(u: Tensor, signed: Tensor, jittered: Tensor, config: PretrainViewsConfig) -> Tensor:
    """Return matrices [n, 3, 3] that change saturation and hue of RGB colors, or turn colors into gray.

    Args:
        u: [n, numbers] uniform random numbers in [0, 1).
        signed: The same numbers, mapped to -1..1.
        jittered: [n] booleans: True for patches with changed colors.
        config: Strength and probability of each change.
    """
    # Compute in YIQ, where a change of hue is a rotation. One matrix does all three changes, to read each image once.
    saturation = torch.where(jittered, 1 + config.saturation * signed[:, 8], 1.0)
    turn = torch.where(jittered, 2 * math.pi * config.hue * signed[:, 9], 0.0)
    saturation = torch.where(u[:, 13] < config.gray, 0.0, saturation)
    yiq = torch.zeros(len(u), 3, 3)
    yiq[:, 0, 0] = 1
    yiq[:, 1, 1] = yiq[:, 2, 2] = saturation * turn.cos()
    yiq[:, 1, 2], yiq[:, 2, 1] = -saturation * turn.sin(), saturation * turn.sin()
    to_rgb: Tensor = torch.linalg.inv(_TO_YIQ)
    return to_rgb @ yiq @ _TO_YIQ


def apply_pretrain_view(image: Tensor, draw: ViewDraw, size: int) -> Tensor:
    """Return images augmented by given random choices (crop, flip, colors, blur). Values stay in [0, 1].

    Args:
        image: [n, bands, height, width] images with values in [0, 1].
        draw: Random choices for each image.
        size: Side of the result in pixels.

    Returns:
        [n, bands, size, size] images.
    """
    grid = functional.affine_grid(draw.box, [len(image), image.shape[1], size, size], align_corners=False)
    image = functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    image = image * draw.gain[:, :, None, None] + draw.offset[:, :, None, None]
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + draw.contrast[:, None, None, None] * (image - mean)
    if image.shape[1] == 3:
        image = torch.einsum("nij,njhw->nihw", draw.color, image)
    return _blurred(image, draw.sigma).clamp_(0, 1)


def _blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """Return images [n, bands, height, width], each blurred with a Gaussian of its own width. Width 0 changes nothing.

    Args:
        image: The images.
        sigma: [n] widths of the Gaussians in pixels.
    """
    # Each patch needs its own blur. So make each band of each patch a group of one grouped convolution below: then one
    # call applies a different kernel to each.
    n, bands, height, width = image.shape
    reach = max(1, min(height, width) // 20)
    steps = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    weight = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-3)[:, None]) ** 2)
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(bands, 0)
    flat = functional.pad(image.reshape(1, n * bands, height, width), (reach,) * 4, mode="reflect")
    flat = functional.conv2d(flat, weight[:, None, :, None], groups=n * bands)
    return functional.conv2d(flat, weight[:, None, None, :], groups=n * bands).view(n, bands, height, width)
