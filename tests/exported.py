"""Write the folder of a run that holds nothing but a student with random weights, and real or random patches."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image

from stssl.models import build_network
from stssl.models.encoders import RawConfig
from stssl.models.injection import NoInjectionConfig
from stssl.models.sealed import seal
from stssl.students.description import (
    KEY,
    BandDescription,
    Box,
    ClassDescription,
    ImageDescription,
    ModelDescription,
    NetworkDescription,
    TrainingDescription,
)
from stssl.students.samples import SAMPLES_FILE, Samples, write_samples

Images = NDArray[Any]


def eurosat_patches(archive: Path, count: int = 4) -> Images:
    """Read the first JPEGs of EuroSAT: [n, 3, 64, 64] uint8."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".jpg")]
        chosen = [names[place] for place in np.linspace(0, len(names) - 1, count).astype(int)]
        found = [np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in chosen]
    return np.stack(found).transpose(0, 3, 1, 2)


def bigearthnet_patches(folder: Path, count: int = 4) -> Images:
    """Read B04, B03, B02 of BigEarthNet's patches: [n, 3, 120, 120] uint16."""
    found = []
    for patch in sorted(path for path in folder.rglob("*") if list(path.glob("*_B04.tif")))[:count]:
        bands = []
        for band in ("B04", "B03", "B02"):
            with rasterio.open(next(patch.glob(f"*_{band}.tif"))) as file:
                bands.append(file.read(1))
        found.append(np.stack(bands))
    return np.stack(found)


def write_run(folder: Path, images: Images, *, cdmad: bool = False, size: int = 32, **network: Any) -> Path:
    """Write a run's folder with a student for such images, and return it.

    Args:
        folder: Folder to write.
        images: [n, 3, H, W] stored values.
        cdmad: Let the student subtract the logits of a blank image.
        size: Side of the images in the network.
        **network: Other keys of the network's description; without `backbone`, a tiny slim ResNet.
    """
    values = images.astype(np.float64)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)) + 1
    bits: Any = 8 * images.itemsize
    told = ModelDescription(
        network=NetworkDescription(
            **{"backbone": "slim_resnet", "role": "plain", "injection": NoInjectionConfig()} | network
        ),
        image=ImageDescription(pixels=size, stored_pixels=images.shape[-1], meters=640.0, scaling="sigmas", bits=bits),
        bands=tuple(
            BandDescription(
                name=name, mean=m, std=s, low=m - 2 * s, high=m + 2 * s, dtype="uint8" if bits == 8 else "uint16"
            )
            for name, m, s in zip(("B04", "B03", "B02"), mean.tolist(), std.tolist(), strict=True)
        ),
        classes=tuple(ClassDescription(name=f"class {i}", color=f"#0000{i:02x}") for i in range(5)),
        task="single-label",
        cdmad=cdmad,
        training=TrainingDescription(
            source="EuroSAT RGB",
            patches=9,
            labeled=5,
            box=Box(west=5, south=45, east=11, north=52),
            months=("2017-06", "2017-08"),
            recipe={"model": {"weights": "none"}},
            hashes={"recipe": "a", "data": "b"},
            versions={"stssl": "0.2.0", "torch": torch.__version__},
        ),
    )
    torch.manual_seed(0)
    made = build_network(
        backbone=told.network.backbone,
        backbone_args=told.network.backbone_args,
        image_size=size,
        in_channels=3,
        classes=5,
        encoder=told.network.encoder or RawConfig(),
        injection=told.network.injection or NoInjectionConfig(),
        role=told.network.role,  # type: ignore[arg-type]
        weights="none",
        distill=told.network.distilled,
    )
    made.train()
    with torch.no_grad():  # statistics and weights that are not those of a new network
        for _ in range(3):
            made(torch.randn(8, 3, size, size))
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "student.safetensors").write_bytes(seal(made.state_dict(), {KEY: told.text()}))
    metadata = np.tile(np.float32([48, 8, 150, np.nan]), (len(images), 1))
    places = np.float32([[45, 5], [52, 11], [48, 8]])
    write_samples(checkpoints / SAMPLES_FILE, Samples(images, metadata, places))
    return folder
