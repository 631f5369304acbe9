"""Encoders of place and date: metadata [N, 4] to a context vector [N, width].

Place and date are each a group of features. Where a group is missing (NaN), dropped or switched off, a learned
embedding of the group's size stands in for it, so that absence is something a network can learn from and never a NaN.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.batch import PLACE, MetadataColumn
from stssl.base.config import Config, Domain, Switch
from stssl.base.errors import ConfigError
from stssl.models.harmonics import Harmonics, Sine

YEAR = 365.0


class EncoderBase(Config):
    """Configure what all encoders share: groups of metadata, and how often each is dropped in training."""

    place: Switch = True
    date: Switch = True
    dropout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0


class RawConfig(EncoderBase):
    """The paper's scaling of degrees, or `standardized` by the training patches' places."""

    name: Literal["raw"] = "raw"
    standardized: Switch = False


class FourierConfig(EncoderBase):
    """Sines and cosines of degrees and of the day, each octave twice as fast as the one before; and of the hour."""

    name: Literal["fourier"] = "fourier"
    octaves: Annotated[int, Field(ge=1, le=16), Domain(1, 10)] = 6
    date_octaves: Annotated[int, Field(ge=1, le=8), Domain(1, 4)] = 2


class SphericalConfig(EncoderBase):
    """Spherical harmonics below `degree`, and a SIREN whose first sines have this frequency."""

    name: Literal["spherical"] = "spherical"
    degree: Annotated[int, Field(ge=1, le=60), Domain(4, 40)] = 20
    frequency: Annotated[float, Field(gt=0), Domain(1.0, 30.0)] = 1.0


class CartesianConfig(EncoderBase):
    """The point on the unit sphere."""

    name: Literal["cartesian"] = "cartesian"


EncoderConfig = Annotated[RawConfig | FourierConfig | SphericalConfig | CartesianConfig, Field(discriminator="name")]


class MetadataEncoder(nn.Module):
    """Features of place and date, absent groups replaced, then a head to the context vector."""

    def __init__(self, config: Any, width: int, places: Tensor | None, sizes: tuple[int, int] = (2, 2)) -> None:
        """Prepare.

        Args:
            config: Switches and options.
            width: Size of the context vector.
            places: [n, 4] metadata of the training patches, for encoders that standardize.
            sizes: How many features place and date have.
        """
        super().__init__()
        self.place_on, self.date_on, self.dropout = config.place, config.date, config.dropout
        self.absent_place = nn.Parameter(torch.zeros(sizes[0]))
        self.absent_date = nn.Parameter(torch.zeros(sizes[1]))
        self.head = self.make_head(sum(sizes), width)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Features to context: the paper's two layers."""
        return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    @abstractmethod
    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Degrees [N], [N] to features."""

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Day of year 1..366 [N] and UTC hour [N] (NaN where missing) to features: the point on the year's circle."""
        return circle(day / YEAR)

    def forward(self, metadata: Tensor) -> Tensor:
        """Metadata [N, 4], NaN where missing, to contexts [N, width]; in fp32, since bf16 merges places 40 km apart."""
        with torch.autocast(metadata.device.type, enabled=False):
            return self._context(metadata)

    def _context(self, metadata: Tensor) -> Tensor:
        lat, lon, day = (metadata[:, column] for column in (*PLACE, MetadataColumn.DAY))
        place_known = self._kept(torch.isfinite(lat) & torch.isfinite(lon) & self.place_on)
        date_known = self._kept(torch.isfinite(day) & self.date_on)
        place = self.place(torch.where(place_known, lat, 0.0), torch.where(place_known, lon, 0.0))
        date = self.date(torch.where(date_known, day, 1.0), metadata[:, MetadataColumn.HOUR])
        place = torch.where(place_known[:, None], place, self.absent_place)
        date = torch.where(date_known[:, None], date, self.absent_date)
        context: Tensor = self.head(torch.cat([place, date], 1))
        return context

    def _kept(self, known: Tensor) -> Tensor:
        """Drop some in passes that learn; pseudo-labels are made from all that is known."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return known
        return known & (torch.rand(len(known), device=known.device) >= self.dropout)


class Raw(MetadataEncoder):
    """lat/90, lon/180, sine and cosine of the day of year ("Context Matters", arXiv:2404.18583)."""

    def __init__(self, config: RawConfig, width: int, places: Tensor | None = None) -> None:
        """Two features each.

        Raises:
            ConfigError: Nothing to standardize by.
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
        self.register_buffer("center", center, persistent=config.standardized)
        self.register_buffer("scale", scale, persistent=config.standardized)

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Scaled degrees."""
        return (torch.stack([lat, lon], 1) - self.center) / self.scale


class Fourier(MetadataEncoder):
    """Multi-frequency sines and cosines: fine detail, at the price of looking places up like in a table."""

    def __init__(self, config: FourierConfig, width: int, places: Tensor | None = None) -> None:
        """Four features an octave of place, two an octave of the day, two of the hour."""
        super().__init__(config, width, places, (4 * config.octaves, 2 * config.date_octaves + 2))
        self.absent_hour = nn.Parameter(torch.zeros(2))
        self.octaves, self.date_octaves = config.octaves, config.date_octaves

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """The lowest octave goes once around the globe."""
        return torch.cat([circle(turn * 2**k) for k in range(self.octaves) for turn in (lat / 360, lon / 360)], 1)

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Harmonics of the year, and the clock."""
        known = torch.isfinite(hour)
        clock = torch.where(known[:, None], circle(torch.where(known, hour, 0.0) / 24), self.absent_hour)
        return torch.cat([*(circle(day / YEAR * 2**k) for k in range(self.date_octaves)), clock], 1)


class Cartesian(MetadataEncoder):
    """x, y, z on the unit sphere: no seam at the date line, none at the poles."""

    def __init__(self, config: CartesianConfig, width: int, places: Tensor | None = None) -> None:
        """Three features of place."""
        super().__init__(config, width, places, (3, 2))

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Degrees to the unit sphere."""
        lat, lon = lat.deg2rad(), lon.deg2rad()
        return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1)


class Spherical(MetadataEncoder):
    """Real spherical harmonics and a SIREN head (Russwurm et al., ICLR 2024, arXiv:2310.06743)."""

    def __init__(self, config: SphericalConfig, width: int, places: Tensor | None = None) -> None:
        """degree^2 features of place."""
        self.frequency = config.frequency
        super().__init__(config, width, places, (config.degree**2, 2))
        self.harmonics = Harmonics(config.degree)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Two sine layers and a linear one."""
        return nn.Sequential(Sine(size, width, self.frequency, first=True), Sine(width, width), nn.Linear(width, width))

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """All harmonics, scaled to a mean square of 1 over the sphere."""
        features: Tensor = self.harmonics(lat, lon)
        return features


def circle(turns: Tensor) -> Tensor:
    """Sine and cosine [N, 2] of full turns [N]."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.sin(), angle.cos()], 1)


ENCODERS: dict[str, Any] = {"raw": Raw, "fourier": Fourier, "spherical": Spherical, "cartesian": Cartesian}
