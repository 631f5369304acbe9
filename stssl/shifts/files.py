"""Write the results of a study of metadata under shift for programs: all scores as Parquet, all results as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow
import pyarrow.parquet

from stssl.base.json_types import JsonObject
from stssl.base.whole_files import write_whole
from stssl.data.splits import PARTS
from stssl.recipes.recipe import Recipe
from stssl.scoring.evaluation import without_nan
from stssl.shifts.distances import DistanceGain
from stssl.shifts.effects import ShiftEffect, ShiftScore
from stssl.shifts.settings import ShiftOptions, ShiftSetting, ShiftSplit

_NUMBERS = {"seed": pyarrow.int64(), "patches": pyarrow.int64(), "value": pyarrow.float64()}
SCORES_SCHEMA = pyarrow.schema(
    [(field.name, _NUMBERS.get(field.name, pyarrow.string())) for field in fields(ShiftScore)]
)


@dataclass(frozen=True)
class ShiftFindings:
    """Hold the results of a study of metadata under shift.

    Attributes:
        scores: Scores of each network on each split, for each seed and change of metadata.
        effects: Comparisons, each between two networks.
        gains: How much better than the student networks with metadata are, by distance to the nearest training patch.
        claims: Sentence on each claim of the study, by the claim's name: `pseudo-labels`, `metadata at test`,
            `student`.
    """

    scores: Sequence[ShiftScore]
    effects: Sequence[ShiftEffect]
    gains: Sequence[DistanceGain]
    claims: Mapping[str, str]


def save_findings(
    found: ShiftFindings, recipe: Recipe, setting: ShiftSetting, options: ShiftOptions, folder: Path
) -> None:
    """Write `scores.parquet` (all scores) and `study.json` (all results and settings) into the study's folder.

    Args:
        found: Results of the study.
        recipe: Recipe of the study.
        setting: Splits of the study, and changes of the metadata at test.
        options: Seeds, and how intervals were computed.
        folder: Folder of the study.

    Raises:
        RunError: A file cannot be written.
    """
    rows = [asdict(one) for one in found.scores]
    table = pyarrow.Table.from_pylist(rows, SCORES_SCHEMA)
    write_whole(folder / "scores.parquet", lambda file: pyarrow.parquet.write_table(table, file))
    content = {
        "recipe": recipe.name,
        "recipe_hash": recipe.hash(),
        "options": asdict(options),
        "splits": [_split(split) for split in setting.splits],
        "metadata": [str(change) for change in setting.changes],
        "notes": list(setting.notes),
        "claims": dict(found.claims),
        "effects": [_effect(one) for one in found.effects],
        "gains": [_gain(one) for one in found.gains],
        "scores": rows,
    }
    write_whole(folder / "study.json", json.dumps(without_nan(content), indent=1))


def _split(split: ShiftSplit) -> JsonObject:
    counts: JsonObject = {part: len(split.parts.part(part)) for part in PARTS}
    return {"name": split.name, "data.split": split.rule, "inside": split.inside, "patches": counts}


def _gain(one: DistanceGain) -> dict[str, object]:
    return {**{name: value for name, value in vars(one).items() if name != "effect"}, **_effect(one.effect)}


def _effect(one: ShiftEffect) -> dict[str, object]:
    return {**asdict(one), "difference": one.difference, "shown": one.shown}
