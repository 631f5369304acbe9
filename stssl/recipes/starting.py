"""Choose the weights that the networks of a run start from, and the scaling of images that belongs to them."""

from functools import partial
from typing import NamedTuple

import numpy as np

from stssl.base.distributed import rank
from stssl.base.errors import RunError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.logs import LOG
from stssl.base.scaling import BandScaling, StoredType
from stssl.models.hub_access import read_once_a_machine
from stssl.models.weight_sources import of_hub
from stssl.models.weights import FirstWeights, check_offline, open_first_weights
from stssl.recipes.recipe import RunRecipe
from stssl.recipes.run_data import PixelData
from stssl.recipes.sections import BackboneConfig, DataConfig

WEIGHTS, SCALING = "weights", "scaling"
"""Keys of a run's record: the description of the first weights, and the numbers that scaled the images."""


class ChosenScaling(NamedTuple):
    """Say by which numbers the images of a run are scaled, and where these come from.

    Attributes:
        numbers: Numbers that scale each band.
        by: Where the numbers come from: `data.scale`, `data.mean` or `weights`.
        stored: Type of the stored values; None if the bands have several types.
    """

    numbers: BandScaling
    by: str
    stored: StoredType | None = None

    @property
    def replacing(self) -> BandScaling | None:
        """Return the numbers that scale the images if the recipe key `data.scale` did not decide them; else None."""
        return None if self.by == "data.scale" else self.numbers

    def about(self) -> JsonObject:
        """Return the numbers and where they come from, as a dict of JSON values for the record of a run."""
        return {"by": self.by, "stored": self.stored, **self.numbers.about()}


class Start:
    """Hold the weights that a run's networks start from, and the scaling of its images.

    Attributes:
        weights: Weights that the networks start from.
        scaling: Numbers that scale the images.
    """

    def __init__(self, recipe: RunRecipe, data: PixelData, recorded: JsonMapping | None = None) -> None:
        """Read the first weights of the run, and choose the scaling of its images. All ranks call this together.

        Args:
            recipe: Recipe of the run. That of a resumed run names no weights, as they come from a checkpoint.
            data: Open store with its bands' statistics.
            recorded: The run's record (description of the run on disk), if the run resumes; else None.
        """
        self.recorded = recorded
        self.weights = first_weights_on_ranks(recipe.model, recipe.data.bands)
        self.scaling = choose_scaling(recipe.data, data, self.weights, recorded)

    def about(self) -> JsonObject:
        """Return a description of the weights and the scaling for the record of a run, as a dict of JSON values.

        For a resumed run, the description of the weights is the one that was recorded before.
        """
        kept = (self.recorded or {}).get(WEIGHTS)
        about = self.weights.about() or kept
        found: JsonObject = {SCALING: self.scaling.about()}
        return found | {WEIGHTS: about} if about else found


def first_weights_of(model: BackboneConfig, bands: tuple[str, ...]) -> FirstWeights:
    """Open the weights that `model.weights` names, and return them. The networks of a run start from them.

    Args:
        model: Section `model` of the recipe.
        bands: Names of the images' bands.

    Raises:
        ConfigError: The weights do not exist, or cannot be read.
    """
    return open_first_weights(
        model.weights,
        model.backbone,
        model.backbone_args,
        size=model.image_size,
        image_bands=bands,
        weights_bands=model.weights_bands,
        missing=model.bands_missing,
    )


def first_weights_on_ranks(model: BackboneConfig, bands: tuple[str, ...]) -> FirstWeights:
    """Read the weights that `model.weights` names. All ranks call this together: one of each machine asks the hub.

    Args:
        model: Backbone and initial weights.
        bands: Bands of the images.

    Raises:
        ConfigError: The weights do not exist, or cannot be read.
    """
    read = partial(first_weights_of, model, bands)
    return read_once_a_machine(read) if of_hub(model.weights) else read()


def checkable(recipe: RunRecipe) -> bool:
    """Check a recipe's weights without the internet, and return True if they can also be read without it.

    Weights from a hub cannot: return False for them.

    Raises:
        ConfigError: A hub has no such weights, or they lack bands of the images, as far as is known offline.
    """
    model = recipe.model
    check_offline(model.weights, model.backbone, recipe.data.bands, model.weights_bands, model.bands_missing)
    return model.weights == "none" or model.weights.startswith(("package:", "file:", "run:"))


def choose_scaling(
    config: DataConfig, data: PixelData, first: FirstWeights | None = None, recorded: JsonMapping | None = None
) -> ChosenScaling:
    """Choose the numbers that scale the images of a run, and return them with where they come from.

    These are `data.mean` and `data.std` if the recipe has them. Else they are those that scaled the training images of
    the first weights, if they are known and fit the stored values. Else `data.scale` decides.

    Args:
        config: Section `data` of the recipe.
        data: Open store with its bands' statistics.
        first: Weights that the run starts from; None if there are none.
        recorded: The run's record, if the run was started before. If its scaling came from weights, it is kept, even if
            the weights are gone.

    Raises:
        RunError: The record is damaged.
    """
    stored = stored_type(config, data)
    if config.mean is not None and config.std is not None:
        ends = ((0.0,) * len(config.bands), (255.0,) * len(config.bands))
        low, high = ends if stored == "uint8" else _four_sigmas(config.mean, config.std)
        return ChosenScaling(BandScaling(low, high, config.mean, config.std), "data.mean", stored)
    usual = ChosenScaling(_by_scale(config, data), "data.scale", stored)
    if recorded is not None:
        kept = recorded.get(SCALING)
        if not isinstance(kept, dict) or kept.get("by") != "weights":
            return usual
        try:
            return ChosenScaling(BandScaling.from_about(kept), "weights", stored)
        except ValueError:
            raise RunError("record.json is damaged: scaling lacks numbers. Put the run's record back.") from None
    fed = first.scaling(stored) if first else None
    if fed is None:
        if first is not None and first.checkpoint is not None and first.checkpoint.known is not None and rank() == 0:
            known = first.checkpoint.known
            LOG.warning(
                "model.weights: %s was trained on %s images, and %s stores others, so data.scale=%s is used. Give "
                "data.mean and data.std if you know better.",
                *(known.title, known.stored, data.store.path, config.scale),
            )
        return usual
    return ChosenScaling(fed, "weights", stored) if _differ(fed, usual.numbers) else usual


def stored_type(config: DataConfig, data: PixelData) -> StoredType | None:
    """Return the type of the stored values of the recipe's bands, `uint8` or `uint16`.

    Return None if the bands have several types, or another type.
    """
    types = {group.dtype for group in data.store.groups.values() if set(group.bands) & set(config.bands)}
    names: dict[str, StoredType] = {"uint8": "uint8", "uint16": "uint16"}
    return names.get(str(types.pop())) if len(types) == 1 else None


def _by_scale(config: DataConfig, data: PixelData) -> BandScaling:
    """Return the numbers that scale each band if the recipe key `data.scale` decides.

    `sigmas` takes the bands' means and standard deviations. `bytes` takes the range of 8-bit values.
    """
    count = len(config.bands)
    if config.scale == "bytes":
        return BandScaling((0.0,) * count, (255.0,) * count, (127.5,) * count, (127.5,) * count)
    mean, std = data.band_statistics(config)
    means, stds = tuple(float(value) for value in mean), tuple(float(value) for value in std)
    low, high = _four_sigmas(means, stds)
    return BandScaling(low, high, means, stds)


def _four_sigmas(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low = tuple(m - 2 * s for m, s in zip(mean, std, strict=True))
    return low, tuple(m + 2 * s for m, s in zip(mean, std, strict=True))


def _differ(one: BandScaling, other: BandScaling) -> bool:
    """Return True if two scalings of images differ by more than rounding, in any number for any band."""
    pairs = ((one.low, other.low), (one.high, other.high), (one.mean, other.mean), (one.std, other.std))
    return not all(np.allclose(left, right, rtol=1e-6, atol=1e-4) for left, right in pairs)
