"""Define what all encoders of place and date share. They turn metadata [N, 4] of N patches into contexts [N, width].

Place and date are two groups of features. If a group is missing (NaN), dropped or switched off, a learned embedding of
the same size replaces it. So a network can learn what a missing group means, and it never computes with NaN.

To add an encoder, write one file with a subclass of `EncoderBase` and a subclass of `MetadataEncoder`, and add one line
to `stssl/models/encoders.py`.
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
"""Number of days in a full circle of dates."""


class EncoderBase(Config):
    """Configure what all encoders share: which groups of metadata they use, and how often they drop a group.

    Attributes:
        name: Name of the encoder in recipes.
        place: Use latitude and longitude.
        date: Use day of the year and hour.
        dropout: Share of the training rows that lose their place. The same share loses its date, drawn independently.
    """

    name: str
    place: Switch = True
    date: Switch = True
    dropout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0


class MetadataEncoder(nn.Module):
    """Compute features of place and date, replace the features of missing groups, and make a context vector of all.

    Attributes:
        config_type: Class of the encoder's part of a recipe.
    """

    config_type: ClassVar[type[EncoderBase]]

    def __init__(self, config: EncoderBase, width: int, places: Tensor | None, sizes: tuple[int, int] = (2, 2)) -> None:
        """Make the head, and the embeddings that replace missing groups.

        Args:
            config: Switches and options.
            width: Size of the context vector.
            places: [n, 4] metadata of the n training patches, for encoders that standardize.
            sizes: Number of features of the place, and number of features of the date.
        """
        super().__init__()
        self.place_on, self.date_on, self.dropout = config.place, config.date, config.dropout
        self.absent_place = nn.Parameter(torch.zeros(sizes[0]))
        self.absent_date = nn.Parameter(torch.zeros(sizes[1]))
        self.head = self.make_head(sum(sizes), width)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Build two linear layers that turn `size` features into the context, as in "Context Matters"."""
        return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    @abstractmethod
    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Compute features [N, sizes[0]] of latitudes [N] and longitudes [N] in degrees."""

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Compute features [N, sizes[1]] of dates. The default is a point [N, 2] on a circle with one turn per year.

        Args:
            day: [N] day of the year, 1..366.
            hour: [N] UTC hour, 0..24; NaN if missing.
        """
        return circle(day / YEAR)

    def forward(self, metadata: Tensor) -> Tensor:
        """Turn metadata [N, 4] into contexts [N, width]; missing values are NaN."""
        # Compute in fp32: bf16 has only 8 bits of precision, so places 40 km apart would look equal.
        with torch.autocast(metadata.device.type, enabled=False):
            return self._context(metadata)

    def _context(self, metadata: Tensor) -> Tensor:
        lat, lon, day = (metadata[:, column] for column in (*PLACE, MetadataColumn.DAY))
        place_known = self._kept(torch.isfinite(lat) & torch.isfinite(lon) & self.place_on)
        date_known = self._kept(torch.isfinite(day) & self.date_on)
        # Replace NaN before the features are computed: in the backward pass, 0 times the gradient of a NaN is NaN.
        place = self.place(torch.where(place_known, lat, 0.0), torch.where(place_known, lon, 0.0))
        date = self.date(torch.where(date_known, day, 1.0), metadata[:, MetadataColumn.HOUR])
        place = torch.where(place_known[:, None], place, self.absent_place)
        date = torch.where(date_known[:, None], date, self.absent_date)
        context: Tensor = self.head(torch.cat([place, date], 1))
        return context

    def _kept(self, known: Tensor) -> Tensor:
        """Drop some known rows at random if the pass has gradients. Pseudo-labels use all known rows."""
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return known
        return known & (torch.rand(len(known), device=known.device) >= self.dropout)


def circle(turns: Tensor) -> Tensor:
    """Compute sine and cosine [N, 2] of angles [N], given in full turns."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.sin(), angle.cos()], 1)
