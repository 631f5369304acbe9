"""Encoders of place and date: metadata [N, 4] to a context vector [N, width].

Place and date are each a group of features. Where a group is missing (NaN) or switched off, a learned embedding of
the group's size stands in for it, so that absence is something a network can learn from and never a NaN.
"""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.batch import DAY, LAT, LON
from stssl.config import Config

YEAR = 365.0


class EncoderBase(Config):
    """What every encoder's configuration has: which groups it may see."""

    place: bool = True
    date: bool = True


class RawConfig(EncoderBase):
    """The paper's encoding."""

    name: Literal["raw"] = "raw"


EncoderConfig = Annotated[RawConfig, Field()]


class Encoder(nn.Module):
    """Features of place and date, absent groups replaced, then a head to the context vector."""

    place_size: ClassVar[int]
    date_size: ClassVar[int]

    def __init__(self, config: EncoderBase, width: int) -> None:
        """Encode to `width` numbers with the groups that `config` switches on."""
        super().__init__()
        self.place_on, self.date_on = config.place, config.date
        self.absent_place = nn.Parameter(torch.zeros(self.place_size))
        self.absent_date = nn.Parameter(torch.zeros(self.date_size))
        self.head = nn.Sequential(
            nn.Linear(self.place_size + self.date_size, width), nn.GELU(), nn.Linear(width, width)
        )

    @abstractmethod
    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Degrees [N], [N] to features [N, place_size]."""

    @abstractmethod
    def date(self, day: Tensor) -> Tensor:
        """Day of year 1..366 [N] to features [N, date_size]."""

    def forward(self, metadata: Tensor) -> Tensor:
        """Metadata [N, 4], NaN where missing, to contexts [N, width]."""
        lat, lon, day = metadata[:, LAT], metadata[:, LON], metadata[:, DAY]
        place_known = torch.isfinite(lat) & torch.isfinite(lon) & self.place_on
        date_known = torch.isfinite(day) & self.date_on
        place = self.place(torch.where(place_known, lat, 0.0), torch.where(place_known, lon, 0.0))
        date = self.date(torch.where(date_known, day, 1.0))
        place = torch.where(place_known[:, None], place, self.absent_place)
        date = torch.where(date_known[:, None], date, self.absent_date)
        context: Tensor = self.head(torch.cat([place, date], 1))
        return context


class Raw(Encoder):
    """lat/90, lon/180, sine and cosine of the day of year ("Context Matters", arXiv:2404.18583)."""

    place_size, date_size = 2, 2

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Scaled degrees."""
        return torch.stack([lat / 90, lon / 180], 1)

    def date(self, day: Tensor) -> Tensor:
        """The point on the year's circle."""
        angle = 2 * math.pi / YEAR * day
        return torch.stack([angle.sin(), angle.cos()], 1)


ENCODERS: dict[str, type[Encoder]] = {"raw": Raw}
