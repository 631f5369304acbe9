"""Paint the pixels of a synthetic patch: a map of its classes, their spectra in the season, texture, light and haze.

Classes form families. Classes of one family look similar, classes of different families do not. So pixels tell the
family well and the class badly, and a network that knows place and date can do better.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stssl.archives.nomenclature import CLC, LABELS_43
from stssl.archives.sentinel2 import RESOLUTION


class SyntheticStream(IntEnum):
    """Number the uses of random numbers in a synthetic archive, such as splits and noise.

    The random seed of each use contains its number, so the numbers must not change: else the same seed would give
    another archive.
    """

    WORLD = 0
    SPLIT = 1
    NOISE = 2
    PLACE = 3
    VISIT = 4


SIDE = 120
WAVES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


class CoverFamily(NamedTuple):
    """Describe the colors and the texture of one family of land-cover classes, such as forests.

    Attributes:
        summer: Reflectance times 10,000 of each band in high summer.
        winter: Reflectance times 10,000 of each band in winter.
        strength: Strength of the texture: standard deviation of the brightness factor of a pixel, such as 0.2.
        size: Width of the spots of the texture in pixels.
    """

    summer: tuple[int, ...]
    winter: tuple[int, ...]
    strength: float
    size: int


FAMILIES: dict[str, CoverFamily] = {
    "urban": CoverFamily(
        (900, 1050, 1250, 1350, 1550, 1850, 2000, 2150, 2200, 2200, 2100, 1800),
        (950, 1100, 1250, 1350, 1450, 1650, 1750, 1850, 1900, 1950, 1950, 1750),
        0.30,
        2,
    ),
    "mineral": CoverFamily(
        (1100, 1350, 1700, 2000, 2200, 2350, 2450, 2550, 2650, 2600, 3000, 2600),
        (1100, 1350, 1650, 1950, 2150, 2250, 2350, 2450, 2550, 2500, 2900, 2500),
        0.20,
        4,
    ),
    "arable": CoverFamily(
        (450, 550, 850, 700, 1200, 2700, 3200, 3400, 3600, 3500, 2000, 1100),
        (700, 850, 1100, 1350, 1600, 1850, 2000, 2150, 2300, 2300, 2700, 2100),
        0.22,
        12,
    ),
    "permanent": CoverFamily(
        (550, 700, 950, 1050, 1450, 2200, 2500, 2700, 2850, 2800, 2500, 1700),
        (600, 750, 1000, 1150, 1450, 1950, 2150, 2300, 2450, 2400, 2450, 1750),
        0.18,
        3,
    ),
    "grass": CoverFamily(
        (400, 500, 850, 600, 1250, 3000, 3600, 3800, 4000, 3900, 2100, 1050),
        (500, 600, 850, 850, 1300, 2100, 2400, 2550, 2700, 2650, 2300, 1400),
        0.10,
        10,
    ),
    "mosaic": CoverFamily(
        (420, 530, 820, 720, 1200, 2600, 3050, 3250, 3400, 3350, 2050, 1150),
        (560, 680, 930, 1020, 1400, 1950, 2200, 2350, 2500, 2450, 2350, 1600),
        0.25,
        7,
    ),
    "broadleaf": CoverFamily(
        (280, 330, 620, 380, 950, 3000, 3750, 3950, 4150, 4100, 1900, 850),
        (420, 480, 600, 700, 1050, 1450, 1600, 1700, 1850, 1850, 1900, 1200),
        0.16,
        3,
    ),
    "conifer": CoverFamily(
        (220, 260, 420, 300, 620, 1650, 1950, 2050, 2200, 2200, 1050, 500),
        (210, 250, 380, 290, 580, 1450, 1700, 1800, 1950, 1950, 950, 470),
        0.18,
        2,
    ),
    "shrub": CoverFamily(
        (350, 430, 680, 550, 1050, 2300, 2700, 2850, 3000, 2950, 1900, 1000),
        (430, 520, 680, 720, 1100, 1700, 1950, 2050, 2200, 2150, 1950, 1200),
        0.20,
        4,
    ),
    "wetland": CoverFamily(
        (330, 400, 600, 580, 950, 1700, 1950, 2050, 2150, 2150, 1400, 750),
        (380, 450, 600, 650, 900, 1250, 1400, 1450, 1550, 1550, 1250, 800),
        0.16,
        6,
    ),
    "water": CoverFamily(
        (420, 380, 360, 240, 220, 180, 170, 150, 130, 120, 70, 50),
        (380, 340, 310, 220, 190, 160, 150, 130, 110, 110, 60, 40),
        0.06,
        15,
    ),
}
"""Look of each family of classes."""

FIRST_OF_FAMILY = {
    111: "urban",
    131: "mineral",
    141: "grass",
    142: "grass",
    211: "arable",
    221: "permanent",
    231: "grass",
    241: "permanent",
    242: "mosaic",
    311: "broadleaf",
    312: "conifer",
    313: "broadleaf",
    321: "grass",
    322: "shrub",
    331: "mineral",
    411: "wetland",
    511: "water",
}
"""Family of each range of CORINE codes, by the first code of the range. A range ends before the next first code."""

SNOW, CLOUD = 6500.0, 7500.0
STEP = {"b10": 1, "b20": 2, "b60": 6}


@dataclass(frozen=True)
class Subject:
    """Describe the ground, the season and the weather that a synthetic patch shows.

    Attributes:
        labels: Indices of the patch's classes in `LABELS_43`.
        day_of_year: Day of the acquisition, 1..366.
        lat: Latitude of the patch in degrees.
        snow: True if snow covers the patch.
        cloud: True if clouds cover the patch.
        place: Random seed of the place, for the map of the patch's classes.
        visit: Random seed of the acquisition, for light, haze and noise.
    """

    labels: NDArray[np.int64]
    day_of_year: int
    lat: float
    snow: bool
    cloud: bool
    place: tuple[int, ...]
    visit: tuple[int, ...]


@dataclass(frozen=True)
class Palette:
    """Hold the colors and textures of the 43 classes of a synthetic archive, in 12 bands.

    Attributes:
        summer: [43, 12] reflectance times 10,000 in high summer.
        winter: [43, 12] reflectance times 10,000 in winter.
        strength: [43] strength of the texture: standard deviation of the brightness factor of a pixel.
        size: [43] width of the spots of the texture in pixels.
    """

    summer: NDArray[np.float32]
    winter: NDArray[np.float32]
    strength: NDArray[np.float32]
    size: NDArray[np.int64]


def palette() -> Palette:
    """Return the colors and textures of the 43 CORINE classes. They are the same in all synthetic archives."""
    rng = np.random.default_rng(20)
    rows = [FAMILIES[FIRST_OF_FAMILY[max(code for code in FIRST_OF_FAMILY if code <= clc)]] for clc in CLC.values()]
    own = 1 + rng.normal(0, 0.07, (len(LABELS_43), len(WAVES)))
    summer, winter = np.array([row.summer for row in rows]) * own, np.array([row.winter for row in rows]) * own
    mixed, (broad, conifer) = _number("Mixed forest"), map(_number, ("Broad-leaved forest", "Coniferous forest"))
    for spectra in (summer, winter):
        spectra[mixed] = (spectra[broad] + spectra[conifer]) / 2
    strength = np.array([row.strength for row in rows]) * rng.uniform(0.8, 1.25, len(rows))
    size = np.array([row.size for row in rows])
    return Palette(summer.astype(np.float32), winter.astype(np.float32), strength.astype(np.float32), size)


def _number(name: str) -> int:
    """Return the index of the class called `name` in `LABELS_43`."""
    return LABELS_43.index(name)


def greenness(day_of_year: float, lat: float) -> float:
    """Return how green vegetation is on a day at a latitude, from 0 (winter) to 1 (high summer).

    In the north, summers are shorter and later than in the south.

    Args:
        day_of_year: Day, 1..366.
        lat: Latitude in degrees.
    """
    length = np.interp(lat, (36, 68), (130, 55))
    peak = np.interp(lat, (36, 68), (165, 200))
    return float(np.exp(-(((day_of_year - peak) / length) ** 2)))


class Painter:
    """Paint the pixels of synthetic patches. Noise images are made in advance, so a patch takes only a millisecond."""

    def __init__(self, seed: int, pool: int = 48) -> None:
        """Make random images of three kinds (shapes, textures, grain), from which all patches then choose.

        Args:
            seed: Seed of the archive.
            pool: Number of images of each kind; of the textures, of each spot size.
        """
        rng = np.random.default_rng((seed, SyntheticStream.NOISE))
        self.palette = palette()
        self._shapes = _smooth(rng, pool, 30)
        self._noise = {size: _smooth(rng, pool, size) for size in sorted({family.size for family in FAMILIES.values()})}
        self._grain = rng.normal(0, 1, (pool, SIDE, SIDE)).astype(np.float32)

    def paint(self, subject: Subject) -> dict[str, NDArray[np.uint16]]:
        """Paint one synthetic patch. Return a dict from array (`b10`, `b20`, `b60`) to pixels [bands, H, W].

        The name of an array tells the pixel size in meters.

        Args:
            subject: Ground, season and weather that the patch shows.
        """
        where, when = np.random.default_rng(subject.place), np.random.default_rng(subject.visit)
        labels = subject.labels
        classes = self._map(labels, where)
        spectra = self._spectra(subject, when)
        texture = self._texture(labels, classes, where)
        cover = self._cover(subject, when)
        painted = {}
        for name, bands in RESOLUTION.items():
            step = STEP[name]
            own = spectra[:, [WAVES.index(band) for band in bands]].T
            pixels = own[:, classes[::step, ::step]] * texture[::step, ::step]
            pixels += 25 * _pick(self._grain, when, len(bands))[:, ::step, ::step]
            if cover is not None:
                pixels += (cover[0] - pixels) * cover[1][::step, ::step]
            painted[name] = np.clip(pixels, 1, 16000).astype(np.uint16)
        return painted

    def _spectra(self, subject: Subject, when: np.random.Generator) -> NDArray[np.float32]:
        """Return the reflectance times 10,000 of each class of a patch in its season, light and haze: [classes, 12].

        Args:
            subject: Classes, place, season and weather of the patch.
            when: Source of the acquisition's random numbers, for light and haze.
        """
        summer, winter = self.palette.summer[subject.labels], self.palette.winter[subject.labels]
        green = np.clip(greenness(subject.day_of_year, subject.lat) + when.normal(0, 0.08), 0, 1)
        spectra = winter + green * (summer - winter)
        spectra *= when.normal(1, 0.05) * (1 + when.normal(0, 0.03, spectra.shape))
        spectra += max(0.0, when.normal(60, 60)) * np.linspace(1.5, 0, len(WAVES)) ** 2
        return np.asarray(spectra, np.float32)

    def _map(self, labels: NDArray[np.int64], where: np.random.Generator) -> NDArray[np.int64]:
        """Return a random map of a patch's classes: [120, 120] indices into `labels`.

        Args:
            labels: Classes of the patch.
            where: Source of the place's random numbers.
        """
        fields = _pick(self._shapes, where, len(labels))
        return np.asarray((fields + where.normal(0, 0.7, (len(labels), 1, 1))).argmax(0), np.int64)

    def _texture(
        self, labels: NDArray[np.int64], classes: NDArray[np.int64], where: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return the texture of a patch: a brightness factor near 1 for each pixel, [120, 120], by the pixel's class.

        Args:
            labels: Classes of the patch.
            classes: Map of the classes, [120, 120] indices into `labels`.
            where: Source of the place's random numbers.
        """
        kinds = {int(size): _pick(self._noise[int(size)], where, 1)[0] for size in np.unique(self.palette.size[labels])}
        fields = np.stack([kinds[int(size)] for size in self.palette.size[labels]])
        chosen = np.take_along_axis(fields, classes[None], 0)[0]
        return np.asarray(1 + self.palette.strength[labels][classes] * chosen, np.float32)

    def _cover(self, subject: Subject, when: np.random.Generator) -> tuple[float, NDArray[np.float32]] | None:
        """Return the brightness of the snow or clouds over a patch, and the share of each pixel that they cover.

        Args:
            subject: Weather of the patch.
            when: Source of the acquisition's random numbers.

        Returns:
            Reflectance times 10,000, and shares [120, 120] from 0 to 1; None if the patch has neither snow nor clouds.
        """
        if not (subject.snow or subject.cloud):
            return None
        share = np.clip(0.75 + 0.6 * _pick(self._shapes, when, 1)[0], 0, 1)
        return SNOW if subject.snow else CLOUD, share.astype(np.float32)


def _pick(pool: NDArray[np.float32], rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Choose noise images at random from a pool, turn and mirror each at random, and return them.

    `pool` is [n, 120, 120], and the result [count, 120, 120]. The same image may be chosen twice.
    """
    numbers, turns = rng.integers(0, len(pool), count), rng.integers(0, 8, count)
    fields = np.empty((count, SIDE, SIDE), np.float32)
    for place, (number, turn) in enumerate(zip(numbers, turns, strict=True)):
        field = pool[number][::-1] if turn & 1 else pool[number]
        field = field[:, ::-1] if turn & 2 else field
        fields[place] = field.T if turn & 4 else field
    return fields


def _smooth(rng: np.random.Generator, count: int, size: int) -> NDArray[np.float32]:
    """Return smooth random images [count, 120, 120] of mean 0 and variance 1, with spots about `size` pixels wide."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    spectrum = np.fft.rfft2(rng.normal(size=(count, SIDE, SIDE))) * np.exp(-((frequency * size * 2) ** 2))
    fields = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    fields -= fields.mean((1, 2), keepdims=True)
    return np.asarray(fields / fields.std((1, 2), keepdims=True), np.float32)
