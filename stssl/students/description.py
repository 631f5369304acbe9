"""Describe a trained network in the header of its weights file: bands, scaling, classes, and how it was trained.

The header of `student.safetensors` and `encoder.safetensors` holds one JSON text under the key `KEY`. With this text,
the file alone is enough to use the network.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stssl.base.errors import ConfigError, shown
from stssl.base.json_types import JsonObject
from stssl.base.scaling import StoredType
from stssl.data.resizing import Resize
from stssl.models import EncoderConfig, InjectionConfig, NetworkRole

KEY = "network"
"""Key of the description in the header of a weights file."""
FORMAT: Literal[1] = 1
"""Format of descriptions that this release writes. It reads this format only."""
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Color = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]


class Described(BaseModel):
    """Define the base class of all parts of the description of a network, such as its bands.

    Keys that this release does not know are ignored.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class BandDescription(Described):
    """Describe one band of the images.

    A stored value x becomes (clip(x, low, high) - mean) / std before it enters the network.

    Attributes:
        name: Name of the band, such as `B04`.
        mean: Number that is subtracted, in stored units.
        std: Number to divide by, in stored units.
        low: Lower limit for clipping, in stored units; None clips nothing below.
        high: Upper limit for clipping, in stored units; None clips nothing above.
        dtype: Type of the stored values.
        smallest: Smallest stored value of the training patches; None if unknown.
        largest: Largest stored value of the training patches; None if unknown.
        nodata: Stored value that means "not measured"; None if no value does.
        meters: Ground sampling distance in meters; None if the images do not say it.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    mean: Number
    std: Annotated[Number, Field(gt=0)]
    low: Number | None
    high: Number | None
    dtype: StoredType
    smallest: Number | None = None
    largest: Number | None = None
    nodata: int | None = None
    meters: Number | None = None


class ImageDescription(Described):
    """Describe the images that a network takes.

    Attributes:
        pixels: Width and height of the images that enter the network, in pixels. Images of other sizes are resized.
        stored_pixels: Width and height of the stored patches in pixels; None if the bands have several sizes.
        meters: Width and height of a patch on the ground in meters; None if the images do not say it.
        resize: How images of other sizes are resized: `centers` (bilinear, antialiased where they shrink), `corners`
            (bilinear with aligned corners, after the scaling) or `pillow` (bytes, as Pillow's bilinear filter).
        scaling: Rule that gave mean, std and limits of the bands (`data.scale` of the recipe, or `numbers` if they come
            from pretrained weights or from `data.mean`).
        bits: Number of bits of a stored value.
    """

    pixels: Annotated[int, Field(ge=2, le=4096)]
    stored_pixels: Size | None
    meters: Number | None
    resize: Resize = "centers"
    scaling: str
    bits: Literal[8, 16]

    @property
    def side(self) -> int:
        """Return the width and height in pixels of the images that exported files take."""
        return self.stored_pixels or self.pixels


class ClassDescription(Described):
    """Describe one class: its name, and its color for maps, such as `#1f77b4`."""

    name: str
    color: Color


class NetworkDescription(Described):
    """Describe the layers of a network.

    Attributes:
        backbone: Name of a timm model, or `slim_resnet`.
        backbone_args: Further arguments of the backbone's constructor.
        role: `plain` and `student` see only images; `direct` sees metadata too. `encoder` is a pretrained backbone
            without a head.
        distilled: True if the network learned from a teacher's outputs by distillation.
        encoder: Encoder of place and date; None if the network has none.
        injection: Site where place and date enter the network; or, if the network sees only images, the site that adds
            a token to it. None for no site.
    """

    backbone: str
    backbone_args: JsonObject = {}
    role: NetworkRole | Literal["encoder"]
    distilled: bool = False
    encoder: EncoderConfig | None = None
    injection: InjectionConfig | None = None


class Box(Described):
    """Hold the smallest box around the places of the training patches, in degrees (WGS 84)."""

    west: Annotated[float, Field(ge=-180, le=360)]
    south: Annotated[float, Field(ge=-90, le=90)]
    east: Annotated[float, Field(ge=-180, le=360)]
    north: Annotated[float, Field(ge=-90, le=90)]


class TrainingDescription(Described):
    """Describe the data and the recipe that a network was trained with.

    Attributes:
        source: Archive that the patches come from.
        patches: Number of training patches.
        labeled: Number of training patches that kept their label; None for pretraining.
        box: Box around the places of the training patches; None if no patch has a place.
        months: Months of the training patches' dates, sorted, such as `2017-06`; empty if no patch has a date.
        recipe: Recipe, without its settings of machine, logging, caches and folders.
        hashes: Hashes of the recipe and of the data, by `recipe` and `data`.
        versions: Version of each package that was used, by its name.
        license: License of the weights (SPDX); None if nobody chose one.
        data_license: License of the training data (SPDX); None if unknown.
    """

    source: str
    patches: int
    labeled: int | None
    box: Box | None
    months: tuple[str, ...]
    recipe: JsonObject
    hashes: dict[str, str]
    versions: dict[str, str]
    license: str | None = None
    data_license: str | None = None


class ModelDescription(Described):
    """Describe a trained network: its images, its outputs, and its training.

    Attributes:
        format: Version of the format of this description.
        network: Layers of the network.
        image: Size and scaling of the images.
        bands: Bands, in the sequence of the images' channels.
        classes: Classes, in the sequence of the network's outputs; empty for encoders.
        task: `single-label` if a patch has exactly one class, `multi-label` if it may have any number; `features` for
            encoders, which compute features.
        cdmad: True if the logits of a blank image are subtracted from the logits (CDMAD).
        training: Training data and recipe.
    """

    format: Literal[1] = FORMAT
    network: NetworkDescription
    image: ImageDescription
    bands: Annotated[tuple[BandDescription, ...], Field(min_length=1)]
    classes: tuple[ClassDescription, ...]
    task: Literal["single-label", "multi-label", "features"]
    cdmad: bool
    training: TrainingDescription

    @model_validator(mode="after")
    def _consistent(self) -> "ModelDescription":
        names = [band.name for band in self.bands]
        if len(set(names)) < len(names):
            raise ValueError("bands: a name occurs twice")
        is_encoder = self.network.role == "encoder"
        if is_encoder != (self.task == "features") or is_encoder == bool(self.classes):
            raise ValueError("task and classes do not fit network.role")
        return self

    @property
    def multilabel(self) -> bool:
        """Return True if a patch may have any number of classes."""
        return self.task == "multi-label"

    def text(self) -> str:
        """Return the description as a JSON text, for the header of a weights file."""
        return self.model_dump_json()


def parse_description(text: str, path: Path) -> ModelDescription:
    """Check the description of a network, a JSON text in the header of its weights file, and return it as an object.

    Args:
        text: JSON text.
        path: Path of the weights file, for messages.

    Raises:
        ConfigError: The text is no description, or it has a newer format.
    """
    try:
        found = Version.model_validate_json(text)
        if found.format > FORMAT:
            raise ConfigError(
                f"{path} describes its network in format {found.format}, and this release of stssl reads format "
                f"{FORMAT}. Install a newer stssl."
            )
        return ModelDescription.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "the text"
        raise ConfigError(
            f"{path}: its description of the network cannot be used ({shown(key)}: {shown(problem['msg'], 200)}). Copy "
            "the file again, or install a newer stssl."
        ) from None


class Version(Described):
    """Hold the format version of a description. It is read first: the meaning of all other keys depends on it."""

    format: Annotated[int, Field(ge=1)]
