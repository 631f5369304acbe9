"""Change the places and dates that networks get in an evaluation: remove them, shuffle them, or move them.

Labels and images stay as they are. If the score falls, the network relies on true places or dates.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stssl.base.batch import DATE, PLACE, MetadataColumn
from stssl.base.errors import ConfigError, shown
from stssl.steps.votes import EARTH_KM

FARTHEST_KM = 20_000.0
DAYS_OF_YEAR = 365
FORMS = "true, absent, shuffled, moved:KM (such as moved:500km) or moved:DAYS (such as moved:90d)"
_MOVED = re.compile(r"moved:\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)")
_UNITS = {"km": "km", "d": "d", "day": "d", "days": "d"}


@dataclass(frozen=True)
class MetadataChange:
    """Say how an evaluation changes the places and dates of patches, as `stssl evaluate --metadata` takes it.

    Attributes:
        kind: `true` changes nothing. `absent` removes place and date. `shuffled` gives each patch the place and date of
            another patch. `moved` moves all places or all dates.
        amount: Distance in kilometers, or number of days, by which `moved` moves; 0 for other kinds.
        unit: `km` or `d` for `moved`; empty for other kinds.
    """

    kind: Literal["true", "absent", "shuffled", "moved"] = "true"
    amount: float = 0.0
    unit: str = ""

    def __str__(self) -> str:
        """Return the change as users write it, such as `moved:500km`."""
        return f"{self.kind}:{self.amount:g}{self.unit}" if self.kind == "moved" else self.kind

    @property
    def suffix(self) -> str:
        """Return the text, such as `-moved-500km`, that ends the names of an evaluation's files.

        It is empty for true metadata.
        """
        return "" if self.kind == "true" else "-" + str(self).replace(":", "-")


def parse_change(text: str) -> MetadataChange:
    """Return the change of metadata that a user wrote as text, such as `absent` or `moved:500km`.

    Raises:
        ConfigError: The text has no known form, lacks its unit, or moves too far. The message lists what is allowed.
    """
    word = text.strip().lower()
    if word in ("true", "absent", "shuffled"):
        return MetadataChange(word)  # type: ignore[arg-type]  # checked above
    found = _MOVED.fullmatch(word)
    if not found or found["unit"] not in ("", *_UNITS):
        raise ConfigError(f"--metadata: '{shown(text)}' is unknown. Give {FORMS}.")
    amount, unit = float(found["amount"]), _UNITS.get(found["unit"])
    if unit is None:
        raise ConfigError(f"--metadata: {shown(text)} lacks its unit. Give moved:{amount:g}km or moved:{amount:g}d.")
    most = FARTHEST_KM if unit == "km" else DAYS_OF_YEAR - 1
    if not 0 < amount <= most:
        raise ConfigError(f"--metadata: moved:{amount:g}{unit} must lie above 0 and at most at {most:g}{unit}")
    return MetadataChange("moved", amount, unit)


def changed_metadata(metadata: Tensor, change: MetadataChange, seed: int = 0) -> Tensor:
    """Return a changed copy of a table of places and dates, which networks then get in an evaluation.

    Args:
        metadata: [n, 4] latitude and longitude in degrees, day of the year, and hour of n patches; NaN if missing.
        change: Change to make. Shuffling exchanges whole rows among the patches that have any value, so that places
            keep their dates. Moving by kilometers takes a random direction for each patch, along a great circle. Moving
            by days goes forward; after December 31 comes January 1. Moving leaves missing values missing.
        seed: Seed of the shuffling and of the directions.

    Returns:
        A new table [n, 4].
    """
    if change.kind == "true":
        return metadata.clone()
    if change.kind == "absent":
        return torch.full_like(metadata, math.nan)
    generator = torch.Generator().manual_seed(seed)
    if change.kind == "shuffled":
        rows = torch.nonzero(~metadata.isnan().all(1))[:, 0]
        found = metadata.clone()
        # Give each patch the row of its predecessor in a random sequence: a plain permutation may keep some rows.
        order = rows[torch.randperm(len(rows), generator=generator)]
        found[order] = metadata[order.roll(1)]
        return found
    return _moved_days(metadata, change.amount) if change.unit == "d" else _moved_km(metadata, change.amount, generator)


def _moved_days(metadata: Tensor, days: float) -> Tensor:
    found = metadata.clone()
    day = MetadataColumn.DAY
    found[:, day] = (metadata[:, day] - 1 + days) % DAYS_OF_YEAR + 1
    return found


def _moved_km(metadata: Tensor, distance: float, generator: torch.Generator) -> Tensor:
    found, angle = metadata.clone(), distance / EARTH_KM
    lat, lon = (torch.deg2rad(metadata[:, column].double()) for column in PLACE)
    bearing = 2 * math.pi * torch.rand(len(metadata), generator=generator, dtype=torch.float64)
    sine = lat.sin() * math.cos(angle) + lat.cos() * math.sin(angle) * bearing.cos()
    new_lat = sine.clamp(-1, 1).asin()
    east = bearing.sin() * math.sin(angle) * lat.cos()
    new_lon = lon + torch.atan2(east, math.cos(angle) - lat.sin() * new_lat.sin())
    found[:, MetadataColumn.LAT] = torch.rad2deg(new_lat).to(metadata.dtype)
    found[:, MetadataColumn.LON] = ((torch.rad2deg(new_lon) + 180) % 360 - 180).to(metadata.dtype)
    return found


def require_known(metadata: Tensor, change: MetadataChange, part: str) -> None:
    """Check that at least one patch has the place or date that a change shuffles or moves.

    Args:
        metadata: [n, 4] places and dates of the patches to evaluate; NaN if missing.
        change: Change to make.
        part: Part of the data, such as `test`, for the message.

    Raises:
        ConfigError: No patch has it, so the change would change nothing.
    """
    columns = {"km": PLACE, "d": (MetadataColumn.DAY,), "": (*PLACE, *DATE)}[change.unit]
    if change.kind in ("shuffled", "moved") and metadata[:, list(columns)].isnan().all():
        what = {"km": "a place", "d": "a date", "": "a place or a date"}[change.unit]
        raise ConfigError(f"--metadata: no {part} patch has {what}, so {change} would change nothing")
