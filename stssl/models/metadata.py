"""Define what all encoders of place and date share: from metadata [N, 4] to a context vector [N, width].

Place and date are two groups of features. Where a group is missing (NaN), dropped or switched off, a learned embedding
of the group's size takes its place. So a network can learn what absence means, and never computes with a NaN.

A new encoder is one file with a subclass of `EncoderBase` and one of `MetadataEncoder`, and one line in
`stssl/models/encoders.py`.
"""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.batch import PLACE, MetadataColumn
from stssl.base.config import Config, Domain, Switch

YEAR = 365.0
"""Days of the circle that dates lie on."""


class EncoderBase(Config):
    """Configure what all encoders share: the groups of metadata that they use, and how often each is dropped.

    Attributes:
        name: Name of the encoder in recipes.
        place: Use latitude and longitude.
        date: Use day of the year and hour.
        dropout: Share of training rows whose place is treated as missing, and likewise of those whose date is.
    """

    name: str
    place: Switch = True
    date: Switch = True
    dropout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0


class MetadataEncoder(nn.Module):
    """Compute features of place and date, replace those of absent groups, and turn all into a context vector.

    Attributes:
        config_type: Class of the encoder's part of a recipe.
    """

    config_type: ClassVar[type[EncoderBase]]

    def __init__(self, config: EncoderBase, width: int, places: Tensor | None, sizes: tuple[int, int] = (2, 2)) -> None:
        """Make the embeddings of absent groups, and the head.

        Args:
            config: Switches and options.
            width: Size of the context vector.
            places: [n, 4] metadata of the training patches, for encoders that standardize.
            sizes: Numbers of features of place and of date.
        """
        super().__init__()
        self.place_on, self.date_on, self.dropout = config.place, config.date, config.dropout
        self.absent_place = nn.Parameter(torch.zeros(sizes[0]))
        self.absent_date = nn.Parameter(torch.zeros(sizes[1]))
        self.head = self.make_head(sum(sizes), width)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Build the layers from `size` features to the context: two linear layers ("Context Matters")."""
        return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    @abstractmethod
    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Compute features [N, sizes[0]] of latitudes [N] and longitudes [N] in degrees."""

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Compute features [N, sizes[1]] of dates: by default the point [N, 2] on the year's circle.

        Args:
            day: [N] day of the year, 1..366.
            hour: [N] UTC hour, 0..24; NaN where missing.
        """
        return circle(day / YEAR)

    def forward(self, metadata: Tensor) -> Tensor:
        """Turn metadata [N, 4], NaN where missing, into contexts [N, width]."""
        # Always in fp32: bf16 has 8 bits of precision and merges places that are 40 km apart.
        with torch.autocast(metadata.device.type, enabled=False):
            return self._context(metadata)

    def _context(self, metadata: Tensor) -> Tensor:
        lat, lon, day = (metadata[:, column] for column in (*PLACE, MetadataColumn.DAY))
        place_known = self._kept(torch.isfinite(lat) & torch.isfinite(lon) & self.place_on)
        date_known = self._kept(torch.isfinite(day) & self.date_on)
        # NaN is replaced before the features too: in the backward pass, 0 times the gradient of a NaN is NaN.
        place = self.place(torch.where(place_known, lat, 0.0), torch.where(place_known, lon, 0.0))
        date = self.date(torch.where(date_known, day, 1.0), metadata[:, MetadataColumn.HOUR])
        place = torch.where(place_known[:, None], place, self.absent_place)
        date = torch.where(date_known[:, None], date, self.absent_date)
        context: Tensor = self.head(torch.cat([place, date], 1))
        return context

    def _kept(self, known: Tensor) -> Tensor:
        """Drop some known rows in passes that learn; pseudo-labels are made from all that is known."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return known
        return known & (torch.rand(len(known), device=known.device) >= self.dropout)


def circle(turns: Tensor) -> Tensor:
    """Compute sine and cosine [N, 2] of full turns [N]."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.sin(), angle.cos()], 1)
