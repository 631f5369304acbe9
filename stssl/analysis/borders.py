"""Return the coasts and land borders of a part of the world, to draw them on maps.

The lines are those of Natural Earth, 1:50 million (public domain), from the npm package `world-atlas` 2.0.2 (ISC
license, Michael Bostock). `docs/figures/reduce_borders.py` reduced them to `borders.json`.
"""

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BorderLine = NDArray[np.float64]
CREDIT = "Coasts and borders: Natural Earth 1:50m, from world-atlas 2.0.2."
"""Sentence for pages that show the lines."""


class Borders(NamedTuple):
    """Hold the coasts and land borders of a part of the world, as lines to draw on a map.

    A line is an array [n, 2] of longitudes and latitudes in degrees.

    Attributes:
        coasts: Lines between land and sea.
        borders: Lines between countries.
    """

    coasts: list[BorderLine]
    borders: list[BorderLine]


@cache
def world() -> Borders:
    """Return the coasts and land borders of the whole world. The first call reads them from `borders.json`."""
    tree = json.loads((files("stssl.analysis") / "borders.json").read_text("utf-8"))
    scale = float(tree["scale"])
    coasts, borders = (
        [np.cumsum(np.reshape(numbers, (-1, 2)), axis=0) * scale for numbers in tree[kind]]
        for kind in ("coasts", "borders")
    )
    return Borders(coasts, borders)


def borders_inside(west: float, east: float, south: float, north: float, pixels: int = 700) -> Borders:
    """Return the coasts and land borders inside the frame of a map, without points too close for its pixels to show.

    The ends of lines may lie a little outside of the frame.

    Args:
        west: Smallest longitude of the frame in degrees.
        east: Largest longitude in degrees.
        south: Smallest latitude in degrees.
        north: Largest latitude in degrees.
        pixels: Width and height of the map in pixels.
    """
    low, high = np.array([west, south]), np.array([east, north])
    step = (high - low) / pixels

    def cut(lines: list[BorderLine]) -> list[BorderLine]:
        found = []
        for line in lines:
            start, end = line[:-1], line[1:]
            # Keep whole segments whose bounding box touches the frame: to cut them at the frame is Matplotlib's work.
            near = (np.minimum(start, end) <= high).all(1) & (np.maximum(start, end) >= low).all(1)
            for first, last in np.flatnonzero(np.diff(np.r_[0, near, 0])).reshape(-1, 2):
                part = line[first : last + 1]
                moved = np.r_[True, (np.diff(np.round((part - low) / step), axis=0) != 0).any(1)]
                if moved.sum() > 1:
                    found.append(part[moved])
        return found

    return Borders(cut(world().coasts), cut(world().borders))
