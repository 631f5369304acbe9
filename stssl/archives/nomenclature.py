"""Define the class names of BigEarthNet (43 CORINE classes, and 19 coarse ones) and EuroSAT, and the seasons.

Published tables number the 43 classes in three different ways, so match classes by name, never by number.
"""

CLASSES_19: dict[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": ("Industrial or commercial units",),
    "Arable land": ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields"),
    "Permanent crops": (
        "Vineyards",
        "Fruit trees and berry plantations",
        "Olive groves",
        "Annual crops associated with permanent crops",
    ),
    "Pastures": ("Pastures",),
    "Complex cultivation patterns": ("Complex cultivation patterns",),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    "Agro-forestry areas": ("Agro-forestry areas",),
    "Broad-leaved forest": ("Broad-leaved forest",),
    "Coniferous forest": ("Coniferous forest",),
    "Mixed forest": ("Mixed forest",),
    "Natural grassland and sparsely vegetated areas": ("Natural grassland", "Sparsely vegetated areas"),
    "Moors, heathland and sclerophyllous vegetation": ("Moors and heathland", "Sclerophyllous vegetation"),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": ("Beaches, dunes, sands",),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}
"""The 19 coarse classes of BigEarthNet, and the CORINE level-3 classes that each one combines."""

CLC: dict[str, int] = {
    "Continuous urban fabric": 111,
    "Discontinuous urban fabric": 112,
    "Industrial or commercial units": 121,
    "Road and rail networks and associated land": 122,
    "Port areas": 123,
    "Airports": 124,
    "Mineral extraction sites": 131,
    "Dump sites": 132,
    "Construction sites": 133,
    "Green urban areas": 141,
    "Sport and leisure facilities": 142,
    "Non-irrigated arable land": 211,
    "Permanently irrigated land": 212,
    "Rice fields": 213,
    "Vineyards": 221,
    "Fruit trees and berry plantations": 222,
    "Olive groves": 223,
    "Pastures": 231,
    "Annual crops associated with permanent crops": 241,
    "Complex cultivation patterns": 242,
    "Land principally occupied by agriculture, with significant areas of natural vegetation": 243,
    "Agro-forestry areas": 244,
    "Broad-leaved forest": 311,
    "Coniferous forest": 312,
    "Mixed forest": 313,
    "Natural grassland": 321,
    "Moors and heathland": 322,
    "Sclerophyllous vegetation": 323,
    "Transitional woodland/shrub": 324,
    "Beaches, dunes, sands": 331,
    "Bare rock": 332,
    "Sparsely vegetated areas": 333,
    "Burnt areas": 334,
    "Inland marshes": 411,
    "Peatbogs": 412,
    "Salt marshes": 421,
    "Salines": 422,
    "Intertidal flats": 423,
    "Water courses": 511,
    "Water bodies": 512,
    "Coastal lagoons": 521,
    "Estuaries": 522,
    "Sea and ocean": 523,
}
"""The CORINE Land Cover level-3 classes of BigEarthNet, and their codes."""

LABELS_43 = tuple(CLC)
LABELS_19 = tuple(CLASSES_19)
TO_19 = {member: name for name, members in CLASSES_19.items() for member in members}
"""Coarse class of each level-3 class. 11 level-3 classes have no coarse class."""

EUROSAT = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
SEASONS = {12: "winter", 1: "winter", 2: "winter", 3: "spring", 4: "spring", 5: "spring"} | {
    6: "summer",
    7: "summer",
    8: "summer",
    9: "autumn",
    10: "autumn",
    11: "autumn",
}
"""Meteorological season of each month (1 to 12) in the northern hemisphere."""
