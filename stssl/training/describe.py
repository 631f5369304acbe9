"""Describe the network that a run exports, for the header of its weights file."""

import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from stssl import __version__
from stssl.archives.colors import class_colors
from stssl.archives.licenses import DATA_LICENSES
from stssl.base.arrays import Ints
from stssl.base.json_types import JsonObject
from stssl.data.resizing import resize_images
from stssl.data.views import PixelScaler
from stssl.models.injection import NoInjectionConfig
from stssl.recipes.build import ROLES
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.recipes.run_data import PixelData, RunData
from stssl.scoring.evaluation import spread
from stssl.store.schema import MISSING_TIME
from stssl.store.store import BandGroup
from stssl.students.description import (
    BandDescription,
    Box,
    ClassDescription,
    ImageDescription,
    ModelDescription,
    NetworkDescription,
    TrainingDescription,
)
from stssl.students.samples import MOST_PLACES, SAMPLES, Samples


def describe_student(recipe: Recipe, data: RunData, pixels: PixelScaler, cdmad: bool) -> ModelDescription:
    """Return the description of a training run's student, for its weights file: network, bands, classes and training.

    Args:
        recipe: Recipe of the run.
        data: Data of the run.
        pixels: Module that scales stored bands to images.
        cdmad: True if the student's logits are corrected by those of a blank image.
    """
    model, names = recipe.model, data.space.classes
    role = ROLES[model.metadata][0]
    sees_places = role == "direct"
    network = NetworkDescription(
        backbone=model.backbone,
        backbone_args=model.backbone_args,
        role=role,
        distilled=recipe.loss.distills,
        encoder=model.encoder if sees_places else None,
        injection=NoInjectionConfig() if role == "plain" else model.injection,
    )
    return ModelDescription(
        network=network,
        image=_image(recipe, data, pixels.numbers_of),
        bands=tuple(_bands(recipe, data, pixels)),
        classes=tuple(
            ClassDescription(name=name, color=color) for name, color in zip(names, class_colors(names), strict=True)
        ),
        task="multi-label" if data.space.multilabel else "single-label",
        cdmad=cdmad,
        training=_training(recipe, data, len(data.labeled)),
    )


def describe_encoder(recipe: PretrainRecipe, data: PixelData, pixels: PixelScaler) -> ModelDescription:
    """Return the description of a pretraining run's backbone, for its weights file: network, bands and training.

    Args:
        recipe: Recipe of the run.
        data: Data of the run.
        pixels: Module that scales stored bands to images.
    """
    return ModelDescription(
        network=NetworkDescription(
            backbone=recipe.model.backbone, backbone_args=recipe.model.backbone_args, role="encoder"
        ),
        image=_image(recipe, data, pixels.numbers_of),
        bands=tuple(_bands(recipe, data, pixels)),
        classes=(),
        task="features",
        cdmad=False,
        training=_training(recipe, data, None),
    )


def _groups(recipe: RunRecipe, data: PixelData) -> dict[str, BandGroup]:
    """Return, by the name of each band of a recipe, the group of bands that the store has in the same pixel array."""
    own = {band: group for group in data.store.groups.values() for band in group.bands}
    return {band: own[band] for band in recipe.data.bands}


def _about(data: PixelData, group: BandGroup, key: str) -> float | None:
    """Return a number, such as the meters per pixel (`gsd_m`), from the store's description of a pixel array.

    The array is that of the band group `group`, and `key` is the number's key. Return None if the description has no
    such number, or one that is not positive.
    """
    value = data.store.description.about(group.name).get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _image(recipe: RunRecipe, data: PixelData, scaling: str) -> ImageDescription:
    groups = _groups(recipe, data).values()
    sides = {(group.height, group.width) for group in groups}
    height, width = next(iter(sides))
    grounds = {None if (m := _about(data, group, "gsd_m")) is None else m * group.width for group in groups}
    return ImageDescription(
        pixels=recipe.model.image_size,
        stored_pixels=width if len(sides) == 1 and height == width else None,
        meters=grounds.pop() if len(grounds) == 1 else None,
        resize=recipe.data.resize,
        scaling=scaling,
        bits=8 if all(group.dtype == np.uint8 for group in groups) else 16,
    )


def _bands(recipe: RunRecipe, data: PixelData, pixels: PixelScaler) -> Iterator[BandDescription]:
    for (band, group), (mean, std, low, high) in zip(_groups(recipe, data).items(), pixels.rule(), strict=True):
        place, about = group.bands.index(band), data.store.description.about(group.name)
        extremes = [group.statistics.get(key) for key in ("min", "max")]
        smallest, largest = (None if found is None else found[place] for found in extremes)
        nodata = about.get("nodata")
        yield BandDescription(
            name=band,
            mean=mean,
            std=std,
            low=low,
            high=high,
            dtype="uint8" if group.dtype == np.uint8 else "uint16",
            smallest=None if smallest is None else float(smallest),
            largest=None if largest is None else float(largest),
            nodata=nodata if isinstance(nodata, int) else None,
            meters=_about(data, group, "gsd_m"),
        )


def _training(recipe: RunRecipe, data: PixelData, labeled: int | None) -> TrainingDescription:
    source = str(data.store.attrs["conversion"].get("archive", {}).get("source", "unknown"))
    versions = {"stssl": __version__, "torch": torch.__version__, "timm": version("timm")}
    return TrainingDescription(
        source=source,
        patches=len(data.split.train),
        labeled=labeled,
        box=_box(data),
        months=_months(data, data.split.train),
        recipe=_shared_recipe(recipe),
        hashes={"recipe": recipe.hash(), "data": data.store.fingerprint},
        versions=versions | {"python": platform.python_version()},
        data_license=DATA_LICENSES.get(source),
    )


def _shared_recipe(recipe: RunRecipe) -> JsonObject:
    """Return the recipe as nested dicts in which paths have only their last part.

    The file of weights may be published, and must not show the names of this machine's folders.
    """
    tree = recipe.identity()
    for part, key in (("data", "store"), ("model", "weights"), ("labels", "list")):
        section = tree.get(part)
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(value, str) and "/" in value:
            kind = value.partition(":")[0] + ":" if value.startswith(("file:", "run:")) else ""
            tree[part] = section | {key: kind + PurePath(value).name}
    return tree


def take_samples(data: PixelData, description: ModelDescription) -> Samples:
    """Read a few sample patches. Return their pixels and metadata, and the places of some training patches.

    The samples are validation patches, or training patches if there are no validation patches.

    Args:
        data: Data of the run.
        description: Description of the run's student, which names the bands and the size of the patches.
    """
    split = data.split
    rows = spread(split.validation if len(split.validation) else split.train, SAMPLES)
    arrays = data.reader.read(rows)
    layout = [band for group in data.reader.layout.values() for band in group]
    order = [layout.index(band.name) for band in description.bands]
    side = description.image.side
    images = torch.cat([on_grid(arrays[name], side) for name in data.reader.layout], 1)[:, order]
    places = training_places(data)
    chosen = spread(np.arange(len(places)), MOST_PLACES)
    return Samples(images.numpy(), data.metadata[torch.from_numpy(rows)].numpy(), places[chosen])


def on_grid(images: Tensor, side: int) -> Tensor:
    """Return images [n, bands, H, W], resampled to a width and height of `side` pixels if they have another size."""
    if images.shape[-1] == side and images.shape[-2] == side:
        return images
    return resize_images(images, side, "centers")


def training_places(data: PixelData) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return latitude and longitude, [n, 2] in degrees, of those n training patches whose place is known."""
    table = data.metadata[torch.from_numpy(data.split.train)][:, :2]
    found = table[torch.isfinite(table).all(1)].numpy().astype(np.float32)
    return found.reshape(-1, 2)


def _box(data: PixelData) -> Box | None:
    places = training_places(data)
    if not len(places):
        return None
    (south, west), (north, east) = (
        tuple(float(value) for value in extreme) for extreme in (places.min(0), places.max(0))
    )
    return Box(west=west, south=south, east=east, north=north)


def _months(data: PixelData, rows: Ints) -> tuple[str, ...]:
    times = np.asarray(data.store.column("time"))[rows]
    dates = {
        datetime.fromtimestamp(int(time), UTC) for time in np.unique(times[times != MISSING_TIME] // 86400 * 86400)
    }
    return tuple(sorted({f"{date:%Y-%m}" for date in dates}))
