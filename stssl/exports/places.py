"""Draw the places of training patches as an SVG map with a grid of degrees."""

import math

import numpy as np
from numpy.typing import NDArray

WIDTH, MARGIN = 640.0, 36.0
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)
"""Distances between two lines of the grid, in degrees."""


def places_svg(places: NDArray[np.float32]) -> str:
    """Return a map with the places of training patches as points, as the text of an SVG file that needs no other files.

    Args:
        places: [n, 2] latitude and longitude in degrees. For an empty array, the map says that no place is known.
    """
    if not len(places):
        return _svg(160.0, ['<text x="20" y="80">The training patches have no places.</text>'])
    south, west = (float(value) for value in places.min(0))
    north, east = (float(value) for value in places.max(0))
    pad = max(0.05, 0.05 * max(north - south, east - west))
    south, north, west, east = max(-90, south - pad), min(90, north + pad), west - pad, east + pad
    # A degree of longitude is shorter on the ground than one of latitude. So shrink it, by the factor that is right in
    # the middle of the map.
    shrink = max(0.1, math.cos(math.radians((south + north) / 2)))
    scale = min((WIDTH - 2 * MARGIN) / ((east - west) * shrink), 900 / (north - south))
    height = (north - south) * scale + 2 * MARGIN

    def x(lon: float) -> float:
        return MARGIN + (lon - west) * shrink * scale

    def y(lat: float) -> float:
        return MARGIN + (north - lat) * scale

    step = next((one for one in STEPS if max(north - south, east - west) / one <= 8), STEPS[-1])
    parts = []
    for number in range(math.ceil(west / step), math.floor(east / step) + 1):
        at, words = x(number * step), _degrees(number * step, "E", "W")
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(north):.1f}" y2="{y(south):.1f}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - MARGIN + 16:.1f}" text-anchor="middle">{words}</text>')
    for number in range(math.ceil(south / step), math.floor(north / step) + 1):
        at, words = y(number * step), _degrees(number * step, "N", "S")
        parts.append(f'<line x1="{x(west):.1f}" x2="{x(east):.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{MARGIN - 4:.1f}" y="{at + 4:.1f}" text-anchor="end">{words}</text>')
    for lat, lon in places.tolist():
        parts.append(f'<circle cx="{x(lon):.1f}" cy="{y(lat):.1f}" r="2"/>')
    return _svg(height, parts)


def _degrees(value: float, positive: str, negative: str) -> str:
    number = f"{abs(value):.1f}".removesuffix(".0")
    return f"{number}° {positive if value >= 0 else negative}" if value else "0°"


def _svg(height: float, parts: list[str]) -> str:
    style = "line{stroke:#ccc;stroke-width:1}circle{fill:#1b6ca8;fill-opacity:.5}text{font:11px sans-serif;fill:#555}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img">'
    title = "<title>Places of the training patches</title>"
    background = f'<rect width="{WIDTH:.0f}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([head, title, f"<style>{style}</style>", background, *parts, "</svg>", ""])
