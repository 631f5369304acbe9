"""Collect what one or several students require of a scene: bands, pixel size, size of windows."""

from collections.abc import Sequence
from dataclasses import dataclass

from stssl.base.errors import ConfigError
from stssl.students.description import BandDescription, ModelDescription


@dataclass(frozen=True)
class SceneNeeds:
    """Describe what one or several students require of a scene, and the classes that they predict.

    Attributes:
        bands: Descriptions of the required bands, by name.
        pixel: Pixel size of the finest band in meters.
        window: Width and height of a window, in pixels of the finest band.
        classes: Names of the classes.
        colors: Color of each class, such as `#1f77b4`.
        multilabel: True if a place may have any number of classes.
    """

    bands: dict[str, BandDescription]
    pixel: float
    window: int
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    multilabel: bool

    @property
    def ground(self) -> float:
        """Return the side of a window, which is square, in meters on the ground."""
        return self.pixel * self.window

    @property
    def dtype(self) -> str:
        """Return the type that the scene's stored values must have, such as `uint16`."""
        return next(iter(self.bands.values())).dtype


def common_needs(students: Sequence[ModelDescription], pixel_size: float | None) -> SceneNeeds:
    """Collect what all students of an ensemble require of a scene, and check that they agree. Return the requirements.

    Args:
        students: Descriptions of the students.
        pixel_size: Pixel size in meters of the images that the students were trained on. It must be None if the
            descriptions say it.

    Raises:
        ConfigError: The students do not fit together or need metadata, or their pixel size is not given exactly once.
    """
    first = students[0]
    bands: dict[str, BandDescription] = {}
    for number, one in enumerate(students, 1):
        if one.network.role == "direct":
            raise ConfigError(
                "this student sees place and date (model.metadata: direct), which a map does not give it. Give a "
                "student that sees only images (model.metadata: none or teacher), or write a table: --out FILE.parquet."
            )
        if (one.classes, one.task) != (first.classes, first.task):
            raise ConfigError(f"model {number} has other classes than the first model: an ensemble shares its classes.")
        if _window(one, pixel_size) != _window(first, pixel_size):
            raise ConfigError(
                f"model {number} sees windows of {_words(one, pixel_size)}, and the first model sees "
                f"{_words(first, pixel_size)}: an ensemble shares its windows."
            )
        for band in one.bands:
            known = bands.setdefault(band.name, band)
            if (known.dtype, known.meters) != (band.dtype, band.meters):
                raise ConfigError(f"model {number} has band {band.name} of another type or pixel size than the others.")
    if len({band.dtype for band in bands.values()}) > 1:
        raise ConfigError("the students mix 8-bit and 16-bit bands, which no scene has.")
    pixel, window = _window(first, pixel_size)
    names, colors = tuple(one.name for one in first.classes), tuple(one.color for one in first.classes)
    return SceneNeeds(bands, pixel, window, names, colors, first.multilabel)


def _window(student: ModelDescription, pixel_size: float | None) -> tuple[float, int]:
    """Return the pixel size of a student's finest band in meters, and the side of its windows in such pixels.

    Args:
        student: Description of the student.
        pixel_size: Pixel size in meters that the user gave; None if none was given.

    Raises:
        ConfigError: The description says the pixel size although `pixel_size` is given, or neither says it.
    """
    image, known = student.image, [band.meters for band in student.bands if band.meters]
    if image.meters and known:
        if pixel_size is not None:
            raise ConfigError(f"the student says its pixel size ({min(known):g} m) itself: leave --pixel-size out.")
        return min(known), max(1, round(image.meters / min(known)))
    if pixel_size is None:
        raise ConfigError(
            "the student does not know the size of its images on the ground: the archive that it was trained on does "
            "not say it. Give --pixel-size METERS, the pixel size of those images."
        )
    return pixel_size, image.side


def _words(student: ModelDescription, pixel_size: float | None) -> str:
    pixel, window = _window(student, pixel_size)
    return f"{window} pixels of {pixel:g} m"
