"""Choose the colors of classes in maps: CORINE's colors for CORINE's classes, else colors that differ clearly."""

import colorsys
from collections.abc import Sequence

from stssl.archives.nomenclature import CLASSES_19

CORINE_COLORS = {
    "Continuous urban fabric": "#e6004d",
    "Discontinuous urban fabric": "#ff0000",
    "Industrial or commercial units": "#cc4df2",
    "Road and rail networks and associated land": "#cc0000",
    "Port areas": "#e6cccc",
    "Airports": "#e6cce6",
    "Mineral extraction sites": "#a600cc",
    "Dump sites": "#a64d00",
    "Construction sites": "#ff4dff",
    "Green urban areas": "#ffa6ff",
    "Sport and leisure facilities": "#ffe6ff",
    "Non-irrigated arable land": "#ffffa8",
    "Permanently irrigated land": "#ffff00",
    "Rice fields": "#e6e600",
    "Vineyards": "#e68000",
    "Fruit trees and berry plantations": "#f2a64d",
    "Olive groves": "#e6a600",
    "Pastures": "#e6e64d",
    "Annual crops associated with permanent crops": "#ffe6a6",
    "Complex cultivation patterns": "#ffe64d",
    "Land principally occupied by agriculture, with significant areas of natural vegetation": "#e6cc4d",
    "Agro-forestry areas": "#f2cca6",
    "Broad-leaved forest": "#80ff00",
    "Coniferous forest": "#00a600",
    "Mixed forest": "#4dff00",
    "Natural grassland": "#ccf24d",
    "Moors and heathland": "#a6ff80",
    "Sclerophyllous vegetation": "#a6e64d",
    "Transitional woodland/shrub": "#a6f200",
    "Beaches, dunes, sands": "#e6e6e6",
    "Bare rock": "#cccccc",
    "Sparsely vegetated areas": "#ccffcc",
    "Burnt areas": "#000000",
    "Inland marshes": "#a6a6ff",
    "Peatbogs": "#4d4dff",
    "Salt marshes": "#ccccff",
    "Salines": "#e6e6ff",
    "Intertidal flats": "#a6a6e6",
    "Water courses": "#00ccf2",
    "Water bodies": "#80f2e6",
    "Coastal lagoons": "#00ffa6",
    "Estuaries": "#a6ffe6",
    "Sea and ocean": "#e6f2ff",
}
"""Colors of CORINE's 43 classes in the legend of the European Environment Agency."""
EUROSAT_COLORS = {
    "AnnualCrop": CORINE_COLORS["Non-irrigated arable land"],
    "Forest": CORINE_COLORS["Coniferous forest"],
    "HerbaceousVegetation": CORINE_COLORS["Natural grassland"],
    "Highway": CORINE_COLORS["Road and rail networks and associated land"],
    "Industrial": CORINE_COLORS["Industrial or commercial units"],
    "Pasture": CORINE_COLORS["Pastures"],
    "PermanentCrop": CORINE_COLORS["Vineyards"],
    "Residential": CORINE_COLORS["Discontinuous urban fabric"],
    "River": CORINE_COLORS["Water courses"],
    "SeaLake": CORINE_COLORS["Water bodies"],
}
"""Colors of EuroSAT's classes: those of the nearest CORINE class."""
KNOWN = {name: CORINE_COLORS[parts[0]] for name, parts in CLASSES_19.items()} | CORINE_COLORS | EUROSAT_COLORS
TURN = 0.6180339887498949
"""Golden ratio. Hues that are this share of the circle apart never come close to each other soon."""


def class_colors(classes: Sequence[str]) -> list[str]:
    """Return a list with one color for each class name, such as `#e6004d`.

    If all classes are of CORINE or EuroSAT, they get their usual colors. Else a class gets a color by its position in
    the list, so maps with the same list of classes have the same colors.
    """
    if all(name in KNOWN for name in classes):
        return [KNOWN[name] for name in classes]
    return [_spread_color(number) for number in range(len(classes))]


def _spread_color(number: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb(number * TURN % 1, 0.65 if number % 2 else 0.85, 0.9 if number % 3 else 0.65)
    return "#" + "".join(f"{round(255 * value):02x}" for value in (red, green, blue))
