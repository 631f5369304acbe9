"""Define how the stored values of an image's bands are scaled to the numbers that networks see."""

from dataclasses import asdict, dataclass
from typing import Literal

from stssl.base.json_types import JsonMapping, JsonObject

StoredType = Literal["uint8", "uint16"]
"""Type of the stored values that a scaling is meant for: `uint8` for images stretched for display, `uint16` for
reflectances times 10,000."""


@dataclass(frozen=True)
class BandScaling:
    """Hold the scaling of an image. All numbers are in the units of the stored values, one for each band.

    A network sees (x - mean) / std of a stored value x. Values outside of `low` to `high` are clipped, since the views
    of an image are made from values between 0 (`low`) and 1 (`high`).

    Attributes:
        low: Values that become 0 before the views are made.
        high: Values that become 1 before the views are made.
        mean: Numbers to subtract.
        std: Numbers to divide by.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def about(self) -> JsonObject:
        """Return the lists `low`, `high`, `mean` and `std` by name, for the record of a run.

        Each list has a number for each band.
        """
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_about(cls, numbers: JsonMapping) -> "BandScaling":
        """Make a scaling from the dict of lists `low`, `high`, `mean` and `std` that `about` returned.

        Raises:
            ValueError: A list of numbers is missing, or the lists have different lengths.
        """
        found: list[tuple[float, ...]] = []
        for name in ("low", "high", "mean", "std"):
            values = numbers.get(name)
            if not isinstance(values, list) or not values:
                raise ValueError(f"no list {name}")
            found.append(tuple(float(value) for value in values if isinstance(value, int | float)))
            if len(found[-1]) != len(values) or len(values) != len(found[0]):
                raise ValueError(f"{name} has other numbers than low")
        return cls(*found)
