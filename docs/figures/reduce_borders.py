"""Reduce the world's borders to what maps in reports need: `python docs/figures/reduce_borders.py countries-50m.json`.

The input is a file of the npm package `world-atlas` 2.0.2, which has the borders of Natural Earth (public domain) as
TopoJSON. The output, `stssl/analysis/borders.json`, has lines of coasts and of land borders: each is a list of numbers
x, y, dx, dy, dx, dy, ... in units of `scale` degrees.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE = 0.01
"""Degrees that one unit of the output stands for: about a kilometer."""
TOLERANCE = 0.022
"""Largest distance in degrees by which a line may move."""
SMALLEST = 0.06
"""Lines with a shorter extent in degrees, mostly islets, are left out."""
TARGET = Path(__file__).parents[2] / "stssl" / "analysis" / "borders.json"
Line = NDArray[np.float64]


def arcs_of(geometry: Any) -> Iterator[int]:
    """Yield the numbers of all arcs in nested lists. TopoJSON writes `~number` for an arc that runs backwards."""
    if isinstance(geometry, int):
        yield geometry if geometry >= 0 else ~geometry
    else:
        for part in geometry:
            yield from arcs_of(part)


def simplified(line: Line) -> Line:
    """Leave out points of a line that lie within the tolerance of their chord (Douglas-Peucker)."""
    keep = np.zeros(len(line), bool)
    keep[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:
        start, end = spans.pop()
        inner = line[start + 1 : end]
        if not len(inner):
            continue
        chord, from_start = line[end] - line[start], inner - line[start]
        length = float(np.hypot(*chord))
        crossed = np.abs(chord[0] * from_start[:, 1] - chord[1] * from_start[:, 0])
        distance = crossed / length if length else np.hypot(*from_start.T)
        worst = int(distance.argmax())
        if distance[worst] > TOLERANCE:
            middle = start + 1 + worst
            keep[middle] = True
            spans += [(start, middle), (middle, end)]
    return line[keep]


def encoded(line: Line) -> list[int]:
    """Turn a line [n, 2] of degrees into its first point and the differences, in whole units. Empty if too small."""
    if max(np.ptp(line[:, 0]), np.ptp(line[:, 1])) < SMALLEST:
        return []
    units = np.round(simplified(line) / SCALE).astype(int)
    steps = np.diff(units, axis=0)
    steps = steps[(steps != 0).any(1)]
    return [int(number) for number in np.concatenate([units[:1], steps]).ravel()]


def main() -> None:
    """Read the TopoJSON file and write the reduced lines."""
    world = json.loads(Path(sys.argv[1]).read_text())
    scale, shift = np.array(world["transform"]["scale"]), np.array(world["transform"]["translate"])
    countries = world["objects"]["countries"]["geometries"]
    used = Counter(arc for country in countries for arc in set(arcs_of(country["arcs"])))
    found: dict[str, list[list[int]]] = {"coasts": [], "borders": []}
    for number, arc in enumerate(world["arcs"]):
        line = np.cumsum(arc, axis=0) * scale + shift
        # The files cut polygons at the date line. The cut is no coast.
        seam = (np.abs(line[:, 0]) > 179.98) | (line[:, 1] < -89.9)
        for part in np.split(line, np.flatnonzero(seam)):
            inside = part[(np.abs(part[:, 0]) <= 179.98) & (part[:, 1] >= -89.9)]
            # An arc of two countries is their border; an arc of one country is its coast.
            if len(inside) > 1 and (code := encoded(inside)):
                found["borders" if used[number] > 1 else "coasts"].append(code)
    source = "Natural Earth 1:50m (public domain), from npm world-atlas 2.0.2 (ISC license, Michael Bostock)"
    text = json.dumps({"source": source, "scale": SCALE, **found}, separators=(",", ":"))
    TARGET.write_text(text + "\n")
    lines = sum(map(len, found.values()))
    print(f"{TARGET}: {len(text) / 1e3:.0f} kB, {lines} lines")  # noqa: T201


if __name__ == "__main__":
    main()
