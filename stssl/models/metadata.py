"""Define the base class of encoders. They turn place and date of N patches [N, 4] into context vectors [N, width].

Place and date are two groups of features. If a group is missing (NaN), dropped or switched off, a learned embedding of
the same size replaces it. So a network can learn what a missing group means, and it never computes with NaN.

To add an encoder, write one file with a subclass of `EncoderBase` and a subclass of `MetadataEncoder`, and add one line
to `stssl/models/encoders.py`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.base.batch import PLACE, MetadataColumn
from stssl.base.config import Config, Domain, Switch

YEAR = 365.0
"""Number of days after which the encoded date repeats."""


class EncoderBase(Config):
    """Define the settings that all encoders share: which metadata they use, and how often they drop it in training.

    Attributes:
        name: Name of the encoder in recipes.
        place: Use latitude and longitude.
        date: Use day of the year and hour.
        dropout: Share of the training patches whose place is hidden. As many dates are hidden, drawn independently.
    """

    name: str
    place: Switch = True
    date: Switch = True
    dropout: Annotated[float, Field(ge=0, le=1), Domain(0.0, 0.5)] = 0.0


class MetadataEncoder(nn.Module):
    """Encode place and date of patches as one context vector each. Learned embeddings replace missing places and dates.

    Attributes:
        config_type: Class of the encoder's settings in a recipe.
    """

    config_type: ClassVar[type[EncoderBase]]

    def __init__(self, config: EncoderBase, width: int, places: Tensor | None, sizes: tuple[int, int] = (2, 2)) -> None:
        """Create the layers that make the context vector, and the embeddings that replace missing places and dates.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: [patches, 4] places and dates of the training patches, NaN where missing, for encoders that
                standardize.
            sizes: Number of features of the place, and number of features of the date.
        """
        super().__init__()
        self.place_on, self.date_on, self.dropout = config.place, config.date, config.dropout
        self.absent_place = nn.Parameter(torch.zeros(sizes[0]))
        self.absent_date = nn.Parameter(torch.zeros(sizes[1]))
        self.head = self.make_head(sum(sizes), width)

    def make_head(self, size: int, width: int) -> nn.Module:
        """Return a module of two linear layers, with GELU between, that turns features into the context vector.

        The layers are those of arXiv:2404.18583.

        Args:
            size: Number of features of a place and a date together.
            width: Size of the context vector.
        """
        return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    @abstractmethod
    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return the features [N, features] of N places.

        Args:
            lat: [N] degrees north, never NaN.
            lon: [N] degrees east, never NaN.
        """

    def date(self, day: Tensor, hour: Tensor) -> Tensor:
        """Return the features [N, features] of N dates. By default, they are a point on a circle, one turn per year.

        The default does not use the hour.

        Args:
            day: [N] day of the year, 1..366, never NaN.
            hour: [N] UTC hour, 0..24; NaN if missing.
        """
        return circle(day / YEAR)

    def pretrained(self) -> Iterable[nn.Parameter]:
        """Return those parameters of the encoder that started from pretrained weights and are trained.

        The default is none. The optimizer gives them the learning rate of the backbone.
        """
        return ()

    def forward(self, metadata: Tensor) -> Tensor:
        """Return context vectors [N, width] of N patches.

        Args:
            metadata: [N, 4] latitude, longitude, day of the year and UTC hour of each patch; NaN if missing.
        """
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
        """Return a mask [N]: True for the patches whose known place (or date) the encoder uses.

        In training, the encoder ignores a random share `dropout` of the known places (or dates).

        Args:
            known: [N] True for patches whose place (or date) is known.
        """
        if not (self.dropout and self.training and torch.is_grad_enabled()):
            return known
        return known & (torch.rand(len(known), device=known.device) >= self.dropout)


def circle(turns: Tensor) -> Tensor:
    """Compute sine and cosine [N, 2] of N angles, given in full turns (1.0 is 360 degrees)."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.sin(), angle.cos()], 1)
