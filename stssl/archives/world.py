"""Make up the places, dates and classes of a synthetic archive.

Each class has a latent Gaussian field and a threshold. A place has the class if the field exceeds the threshold there.
The field is the sum of four terms: an effect of the country, a smooth field over regions, a field over kilometers, and
chance. So place and date tell a network much about classes in regions with training patches, and less between them. For
a country without training patches, they tell nothing or mislead. The real BigEarthNet is similar.

Whether they mislead there is chance, because the effects of countries are independent. In a misleading archive it is
the rule. There an effect of the date takes the place of the effect of the country, with the other sign in one country.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stssl.archives.nomenclature import LABELS_43
from stssl.archives.places import from_degrees, to_degrees
from stssl.archives.scenery import SyntheticStream
from stssl.base.arrays import Ints

CELL = 1200.0


class Country(NamedTuple):
    """Describe a country: its ranges of latitude and longitude in degrees, and its share of all patches."""

    lat: tuple[float, float]
    lon: tuple[float, float]
    share: float


COUNTRIES = {
    "Austria": Country((46.7, 48.7), (10.5, 16.5), 0.13),
    "Belgium": Country((49.8, 51.2), (3.0, 5.4), 0.05),
    "Finland": Country((60.3, 67.0), (22.5, 29.0), 0.22),
    "Ireland": Country((51.9, 54.8), (-9.8, -6.4), 0.11),
    "Kosovo": Country((42.1, 42.8), (20.4, 21.4), 0.04),
    "Lithuania": Country((54.2, 56.1), (21.6, 25.8), 0.13),
    "Luxembourg": Country((49.5, 50.0), (5.9, 6.3), 0.01),
    "Portugal": Country((37.3, 41.7), (-8.7, -7.2), 0.11),
    "Serbia": Country((43.2, 45.8), (19.5, 22.0), 0.13),
    "Switzerland": Country((46.2, 47.4), (6.6, 9.5), 0.07),
}
"""Countries of BigEarthNet."""

RATES = dict.fromkeys(LABELS_43, 0.003) | {
    "Mixed forest": 0.37,
    "Coniferous forest": 0.36,
    "Non-irrigated arable land": 0.33,
    "Transitional woodland/shrub": 0.29,
    "Broad-leaved forest": 0.26,
    "Land principally occupied by agriculture, with significant areas of natural vegetation": 0.25,
    "Complex cultivation patterns": 0.18,
    "Pastures": 0.18,
    "Water bodies": 0.14,
    "Sea and ocean": 0.14,
    "Discontinuous urban fabric": 0.12,
    "Agro-forestry areas": 0.05,
    "Peatbogs": 0.04,
    "Permanently irrigated land": 0.023,
    "Industrial or commercial units": 0.022,
    "Natural grassland": 0.022,
    "Olive groves": 0.021,
    "Sclerophyllous vegetation": 0.019,
    "Continuous urban fabric": 0.018,
    "Water courses": 0.018,
    "Vineyards": 0.016,
    "Annual crops associated with permanent crops": 0.012,
    "Inland marshes": 0.011,
    "Moors and heathland": 0.010,
    "Sport and leisure facilities": 0.009,
    "Fruit trees and berry plantations": 0.008,
    "Mineral extraction sites": 0.008,
}
"""Share of patches with each class, rounded from BigEarthNet v1.0. The rarest classes all get 0.3 %."""

VARIANCE = {"country": 0.30, "region": 0.38, "local": 0.18, "chance": 0.14}
REGION_KM, LOCAL_KM = (280.0, 850.0), (5.0, 16.0)
AREA_CELLS, AREA_PLACES = 6, 25
FIRST_DAY, DAYS = np.datetime64("2017-06-01T00:00:00"), 365
SHARES = {"train": 0.52, "validation": 0.24, "test": 0.24}
FIELD_WAVES = 96
"""Number of waves whose sum is one smooth random function."""


@dataclass(frozen=True)
class World:
    """Hold places, dates and classes of the n patches of a synthetic archive, one entry for each patch.

    Attributes:
        place: Number of the place. Patches of one place have different dates.
        country: Name of the country.
        epsg: EPSG code of the grid.
        ulx: Easting of the upper left corner in meters.
        uly: Northing of the upper left corner in meters.
        when: Time of the acquisition in UTC, to a second.
        labels: [n, 43] True if the patch has the class.
        snow: True if seasonal snow covers the patch.
        cloud: True if clouds cover the patch.
    """

    place: NDArray[np.int64]
    country: NDArray[np.str_]
    epsg: NDArray[np.int64]
    ulx: NDArray[np.float64]
    uly: NDArray[np.float64]
    when: NDArray[np.datetime64]
    labels: NDArray[np.bool_]
    snow: NDArray[np.bool_]
    cloud: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of patches of the synthetic archive."""
        return len(self.place)

    def take(self, rows: slice | Ints) -> "World":
        """Return a copy of these places, dates and classes that has only the patches in `rows`."""
        return World(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def degrees(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the latitudes [n] and longitudes [n] of the patches' centers, in degrees."""
        lat, lon = np.zeros(len(self)), np.zeros(len(self))
        for epsg in np.unique(self.epsg):
            rows = self.epsg == epsg
            lat[rows], lon[rows] = to_degrees(int(epsg), self.ulx[rows] + CELL / 2, self.uly[rows] - CELL / 2)
        return lat, lon

    def split(self, seed: int) -> NDArray[np.str_]:
        """Assign each place at random to train, validation or test. Return the name of the part for each patch.

        Patches under snow or clouds get an empty name.
        """
        of_place = np.random.default_rng((seed, SyntheticStream.SPLIT)).choice(
            list(SHARES), self.place.max() + 1, p=list(SHARES.values())
        )
        return np.where(self.snow | self.cloud, "", of_place[self.place])


def generate(
    patches: int, seed: int, confounded: bool = True, placeless: bool = False, misleading: str | None = None
) -> World:
    """Make up places, dates and classes of patches in ten countries of Europe, for a synthetic archive.

    Args:
        patches: Number of patches.
        seed: Seed of all random choices.
        confounded: True to take the images of each country mostly in a season of its own. Dates then seem to tell land
            cover, and mislead in other seasons. False makes dates and places independent.
        placeless: True to choose the classes of each patch by chance alone, whatever its place and date. No patch has
            snow or clouds. Places and dates are the same as without it.
        misleading: Country in which dates tell about classes the opposite of what they tell in all other countries.
            None lets dates tell nothing by themselves. If a country is given, `confounded` is taken as False, and no
            patch has snow or clouds.

    Returns:
        Places, dates and classes, one entry for each patch.
    """
    confounded = confounded and misleading is None
    rng = np.random.default_rng((seed, SyntheticStream.WORLD))
    names = list(COUNTRIES)
    shares = np.array([country.share for country in COUNTRIES.values()])
    season_of_country = rng.permutation(len(names)) / len(names) * DAYS
    parts: list[World] = []
    # Take countries in a fixed proportion, not at random, so that a small archive has all of them, too.
    order = _areas(shares, rng)
    count = places = 0
    while count < patches:
        number = next(order)
        area = _area(names[number], rng, season_of_country[number] if confounded else None)
        parts.append(_shift(area, places))
        count, places = count + len(area), places + int(area.place.max()) + 1
    world = World(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(World)}
    )
    world = world.take(slice(0, patches))
    return _with_chance_labels(world, rng) if placeless else _with_labels(world, rng, misleading)


def _areas(shares: NDArray[np.float64], rng: np.random.Generator) -> Iterator[int]:
    """Yield the countries of the next areas (groups of patches) without end, as positions in `shares`.

    Each country comes as often as its share says, and soon for the first time.

    Args:
        shares: Share of each country.
        rng: Source of random numbers, which vary the order a little.
    """
    seen = rng.uniform(0.0, 0.3, len(shares))
    while True:
        number = int(np.argmin(seen / shares))
        seen[number] += 1
        yield number


def _shift(area: World, places: int) -> World:
    """Return a copy of an area (a group of neighboring patches) whose place numbers no other area has.

    Args:
        area: Area with place numbers from 0 on.
        places: Count of place numbers that earlier areas use. It is added to the area's place numbers.
    """
    return World(**(area.__dict__ | {"place": area.place + places}))


def _area(country: str, rng: np.random.Generator, favorite: float | None) -> World:
    """Make up an area: neighboring patches in one country, on one to four dates. They have no labels yet.

    Args:
        country: Name of the country.
        rng: Source of random numbers.
        favorite: Day near which most dates lie, in days after the first day; None for any dates.
    """
    bounds = COUNTRIES[country]
    lat, lon = rng.uniform(*bounds.lat), rng.uniform(*bounds.lon)
    epsg = 32600 + int((lon + 180) // 6) + 1
    x, y = (float(value[0] // CELL) * CELL for value in from_degrees(epsg, lat, lon))
    cells = rng.permutation(AREA_CELLS**2)[:AREA_PLACES]
    dates = _dates(int(rng.choice([1, 2, 3, 4], p=[0.3, 0.3, 0.25, 0.15])), favorite, rng)
    place, date = np.nonzero(rng.random((AREA_PLACES, len(dates))) < 0.8)
    when = dates[date]
    size = len(place)
    month = when.astype("datetime64[M]").astype(int) % 12 + 1
    frost = np.isin(month, (12, 1, 2, 3)) & (lat > 53 or country in ("Austria", "Switzerland"))
    snowy_date = rng.random(len(dates)) < 0.6
    return World(
        place=place,
        country=np.full(size, country),
        epsg=np.full(size, epsg),
        ulx=np.asarray(x + cells[place] % AREA_CELLS * CELL, np.float64),
        uly=np.asarray(y - cells[place] // AREA_CELLS * CELL, np.float64),
        when=when,
        labels=np.zeros((size, len(LABELS_43)), bool),
        snow=frost & snowy_date[date],
        cloud=(rng.random(size) < 0.02) & ~(frost & snowy_date[date]),
    )


def _dates(count: int, favorite: float | None, rng: np.random.Generator) -> NDArray[np.datetime64]:
    """Return up to `count` different dates with times, sorted, which are chosen at random in a year from the first day.

    Args:
        count: Number of dates to choose. Equal ones are returned once.
        favorite: Day near which most dates lie, in days after the first day; None for any dates.
        rng: Source of random numbers.
    """
    days = rng.uniform(0, DAYS, count)
    if favorite is not None:
        own = rng.random(count) < 0.8
        days = np.where(own, (favorite + rng.normal(0, 20, count)) % DAYS, days)
    seconds = np.floor(days).astype(np.int64) * 86400 + rng.integers(9 * 3600, 12 * 3600, count)
    return np.unique(FIRST_DAY + seconds.astype("timedelta64[s]"))


def _with_labels(world: World, rng: np.random.Generator, misleading: str | None) -> World:
    """Return a copy of `world` with random classes. Near places, and places of one country, get similar classes.

    If `misleading` names a country, the effect of each patch's date takes the place of the effect of its country.
    """
    _, first, inverse = np.unique(world.place, return_index=True, return_inverse=True)
    places = world.take(first)
    lat, lon = places.degrees()
    plane = np.stack([lon * np.cos(np.radians(50)) * 111.3, lat * 111.3], 1)
    threshold = np.array([NormalDist().inv_cdf(rate) for rate in RATES.values()])
    by_country = rng.normal(size=(len(COUNTRIES), len(RATES)))
    number = {name: i for i, name in enumerate(COUNTRIES)}
    terms = {
        "country": by_country[[number[name] for name in places.country]],
        "region": _field(plane, REGION_KM, len(RATES), rng),
        "local": _field(plane, LOCAL_KM, len(RATES), rng),
        "chance": rng.normal(size=(len(places), len(RATES))),
    }
    if misleading is not None:
        del terms["country"]  # the effect of the date takes its place and its variance
    latent = (threshold + sum(np.sqrt(VARIANCE[name]) * term for name, term in terms.items()))[inverse.reshape(-1)]
    if misleading is None:
        return World(**(world.__dict__ | {"labels": _exceeding(latent)}))
    labels = _exceeding(latent + np.sqrt(VARIANCE["country"]) * _date_effect(world, misleading, rng))
    clear = np.zeros(len(world), bool)  # no snow: it would show the season, which metadata alone should tell
    return World(**(world.__dict__ | {"labels": labels, "snow": clear, "cloud": clear}))


def _date_effect(world: World, misleading: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how likely each patch's date makes each class: [n, classes] values of variance 1.

    Each class has a day on which it is likeliest, and is least likely half a year later. In the country `misleading`,
    all values have the other sign.
    """
    day = (world.when - FIRST_DAY) / np.timedelta64(1, "D")
    likeliest = rng.uniform(0, DAYS, len(RATES))
    wave = np.sqrt(2) * np.cos(2 * np.pi * (day[:, None] - likeliest) / DAYS)
    return np.asarray(np.where((world.country == misleading)[:, None], -wave, wave), np.float64)


def _with_chance_labels(world: World, rng: np.random.Generator) -> World:
    """Return a copy of `world` with classes that are chosen for each patch by chance alone, and no snow and clouds.

    So place and date tell nothing about the classes.
    """
    threshold = np.array([NormalDist().inv_cdf(rate) for rate in RATES.values()])
    labels = _exceeding(threshold + rng.normal(size=(len(world), len(RATES))))
    clear = np.zeros(len(world), bool)  # no snow, since it would tell a network the season, and the season the country
    return World(**(world.__dict__ | {"labels": labels, "snow": clear, "cloud": clear}))


def _exceeding(latent: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return booleans [n, classes]: True if the latent value of a class exceeds 0.

    A row without such a class gets its most likely class, since each patch of BigEarthNet has at least one.
    """
    labels = latent > 0
    nothing = ~labels.any(1)
    labels[nothing, latent[nothing].argmax(1)] = True
    return np.asarray(labels)


def _field(
    plane: NDArray[np.float64],
    wavelengths: tuple[float, float],
    classes: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Make a smooth random function of variance 1 on the map for each class. Return its values at n places.

    The result is [n, classes]. Where a function is high, its class is likely.

    Args:
        plane: [n, 2] coordinates in kilometers.
        wavelengths: Shortest and longest wavelength in kilometers.
        classes: Number of classes, and of functions.
        rng: Source of random numbers.
    """
    length = np.exp(rng.uniform(np.log(wavelengths[0]), np.log(wavelengths[1]), FIELD_WAVES))
    angle = rng.uniform(0, 2 * np.pi, FIELD_WAVES)
    phase = plane @ (2 * np.pi / length * np.stack([np.cos(angle), np.sin(angle)]))
    features = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    return features @ rng.normal(0, FIELD_WAVES**-0.5, (2 * FIELD_WAVES, classes))
