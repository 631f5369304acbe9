"""Define the encoders, which turn place and date into a context vector.

A recipe chooses one by `model.encoder.name`.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.batch import PLACE
from stssl.base.config import Domain, Switch, part_name
from stssl.base.errors import ConfigError
from stssl.models.geoclip import Geoclip
from stssl.models.harmonics import Harmonics, Sine
from stssl.models.metadata import YEAR, EncoderBase, MetadataEncoder, circle


class RawConfig(EncoderBase):
    """Define the settings of the encoder `raw`, which uses plain degrees.

    Attributes:
        standardized: Scale latitude and longitude by their mean and standard deviation over the training patches.
            False divides them by 90 and 180.
    """

    name: Literal["raw"] = "raw"
    standardized: Switch = False


class Raw(MetadataEncoder):
    """Encode places as scaled degrees, and dates as sine and cosine of the day of year (arXiv:2404.18583).

    Places are lat/90 and lon/180. With the setting `standardized`, they are standardized by their mean and standard
    deviation over the training patches.
    """

    config_type: ClassVar[type[EncoderBase]] = RawConfig

    def __init__(self, config: RawConfig, width: int, places: Tensor | None = None) -> None:
        """Create the encoder, and choose the center and the scale for its latitudes and longitudes.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: [patches, 4] places and dates of the training patches, with NaN for missing values; needed if
                `config.standardized`.

        Raises:
            ConfigError: The recipe asks for standardized places, but fewer than two training patches have a place.
        """
        super().__init__(config, width, places)
        self.center: Tensor
        self.scale: Tensor
        center, scale = torch.zeros(2), torch.tensor([90.0, 180.0])
        if config.standardized:
            known = places[:, PLACE] if places is not None else torch.empty(0, 2)
            known = known[torch.isfinite(known).all(1)].double()
            if len(known) < 2:
                raise ConfigError(
                    "model.encoder.standardized: the training patches have no places to standardize by. "
                    "Set model.encoder.standardized=false or model.encoder.place=false."
                )
            center, scale = known.mean(0).float(), known.std(0).clamp_min(1e-3).float()
        # Save center and scale with the weights if they come from the training patches: a loaded network must scale
        # places as in training.
        self.register_buffer("center", center, persistent=config.standardized)
        self.register_buffer("scale", scale, persistent=config.standardized)

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return features [N, 2]: latitudes [N] and longitudes [N] in degrees, minus a center, divided by a scale."""
        return (torch.stack([lat, lon], 1) - self.center) / self.scale


class FourierConfig(EncoderBase):
    """Define the settings of the encoder `fourier`, which uses sines and cosines.

    Attributes:
        octaves: Number of frequencies of latitude and longitude. Each is twice the one before; the lowest has one
            period around the globe.
        date_octaves: Number of frequencies of the day of year. Each is twice the one before.
    """

    name: Literal["fourier"] = "fourier"
    octaves: Annotated[int, Field(ge=1, le=16), Domain(1, 10)] = 6
    date_octaves: Annotated[int, Field(ge=1, le=8), Domain(1, 4)] = 2


class Fourier(MetadataEncoder):
    """Encode place, day and hour by sines and cosines of several frequencies.

    High frequencies show fine detail. But with many of them, a network can memorize the training places.
    """

    config_type: ClassVar[type[EncoderBase]] = FourierConfig

    def __init__(self, config: FourierConfig, width: int, places: Tensor | None = None) -> None:
        """Create the encoder.

        It makes four features for each frequency of the place, two for each frequency of the day, and two for the hour.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: Not used.
        """
        super().__init__(config, width, places, (4 * config.octaves, 2 * config.date_octaves + 2))
        self.absent_hour = nn.Parameter(torch.zeros(2))
        self.octaves, self.date_octaves = config.octaves, config.date_octaves

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return features [N, 4 * octaves]: sines and cosines of latitudes [N] and longitudes [N] in degrees.

        Frequency k has 2^k periods around the globe, for k from 0 to octaves - 1.
        """
        return torch.cat([circle(turn * 2**k) for k in range(self.octaves) for turn in (lat / 360, lon / 360)], 1)

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Return features [N, 2 * date_octaves + 2] of N dates: sines and cosines of day and hour.

        A learned vector replaces the two features of a missing hour.

        Args:
            day: [N] day of the year, 1..366.
            hour: [N] UTC hour, 0..24; NaN if missing.
        """
        known = torch.isfinite(hour)
        clock = torch.where(known[:, None], circle(torch.where(known, hour, 0.0) / 24), self.absent_hour)
        return torch.cat([*(circle(day / YEAR * 2**k) for k in range(self.date_octaves)), clock], 1)


class SphericalConfig(EncoderBase):
    """Define the settings of the encoder `spherical`, which uses spherical harmonics.

    Attributes:
        degree: Number of degrees: the encoder uses the `degree`^2 harmonics of the degrees 0 to `degree` - 1.
        frequency: Factor inside the sines of the first layer.
    """

    name: Literal["spherical"] = "spherical"
    degree: Annotated[int, Field(ge=1, le=60), Domain(4, 40)] = 20
    frequency: Annotated[float, Field(gt=0), Domain(1.0, 30.0)] = 1.0


class Spherical(MetadataEncoder):
    """Encode places by real spherical harmonics and a SIREN head (Russwurm et al., ICLR 2024, arXiv:2310.06743)."""

    config_type: ClassVar[type[EncoderBase]] = SphericalConfig

    def __init__(self, config: SphericalConfig, width: int, places: Tensor | None = None) -> None:
        """Create the encoder and its harmonics. It makes degree^2 features for a place, and two for a date.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: Not used.
        """
        self.frequency = config.frequency  # set first: the base class calls `make_head`, which needs it
        super().__init__(config, width, places, (config.degree**2, 2))
        self.harmonics = Harmonics(config.degree)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Return a module of three layers that turns features into context vectors: two with sine, and a linear one.

        Args:
            size: Number of features.
            width: Size of the context vector.
        """
        return nn.Sequential(Sine(size, width, self.frequency, first=True), Sine(width, width), nn.Linear(width, width))

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return the spherical harmonics [N, degree^2] of places, given latitudes [N] and longitudes [N] in degrees."""
        features: Tensor = self.harmonics(lat, lon)
        return features


class CartesianConfig(EncoderBase):
    """Select the encoder `cartesian`, which uses points on the unit sphere. It has no settings of its own."""

    name: Literal["cartesian"] = "cartesian"


class Cartesian(MetadataEncoder):
    """Encode places as points (x, y, z) on the unit sphere, so neighbors across the date line have similar values."""

    config_type: ClassVar[type[EncoderBase]] = CartesianConfig

    def __init__(self, config: CartesianConfig, width: int, places: Tensor | None = None) -> None:
        """Create the encoder. It makes three features for a place, and two for a date.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: Not used.
        """
        super().__init__(config, width, places, (3, 2))

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return points (x, y, z) [N, 3] on the unit sphere for latitudes [N] and longitudes [N] in degrees."""
        lat, lon = lat.deg2rad(), lon.deg2rad()
        return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1)


_ENCODERS: tuple[type[MetadataEncoder], ...] = (
    Raw,
    Fourier,
    Spherical,
    Cartesian,
    Geoclip,
)
"""Classes of all encoders of place and date. Register a new encoder here, and only here."""

ENCODERS = {str(part_name(encoder.config_type)): encoder for encoder in _ENCODERS}
"""Classes of the encoders of place and date, by their names in recipes."""

if TYPE_CHECKING:
    EncoderConfig = EncoderBase
else:
    # Type checkers cannot read a union that is computed from `_ENCODERS`: the branch above gives them the base class.
    EncoderConfig = Annotated[
        Union[tuple(encoder.config_type for encoder in _ENCODERS)],  # noqa: UP007
        Field(discriminator="name"),
    ]
