"""Collect the facts that a model card and a STAC item state about a student, and write them as `config.json`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import is_there
from stssl.students.description import ModelDescription
from stssl.training.run_files import NetworkScores, ScoresFile, read_run_file

CONFIG, CARD, MAP, ITEM = "config.json", "README.md", "places.svg", "item.json"
"""Files beside an exported model."""
SCORED_PARTS = ("validation", "test")


@dataclass(frozen=True)
class Exported:
    """Hold what a model card and a STAC item state about an exported student and its files.

    Attributes:
        name: Name of the model.
        description: Description of the network.
        digest: SHA-256 of the weights file that was exported.
        files: SHA-256 of each written model file, by file name.
        difference: Largest difference between the logits of a file and of the student, by file name.
        scores: Scores of the student on the validation and test patches, as far as it was evaluated; by `validation`
            and `test`.
        license: License of the weights (SPDX); None if nobody chose one.
        backbone_bands: Names of the bands that the file for torchvision takes, in their sequence; empty without it.
    """

    name: str
    description: ModelDescription
    digest: str
    files: dict[str, str]
    difference: dict[str, float]
    scores: dict[str, NetworkScores]
    license: str | None
    backbone_bands: tuple[str, ...] = ()


def read_scores(run: Path) -> dict[str, NetworkScores]:
    """Return the scores of a run's best student on the validation and test patches, by `validation` and `test`.

    Leave out a part on which the student was not evaluated.

    Args:
        run: Folder of the run.

    Raises:
        RunError: A file of scores is damaged.
    """
    found: dict[str, NetworkScores] = {}
    for part in SCORED_PARTS:
        path = run / "evaluation" / f"{part}.json"
        if is_there(path):
            scored = read_run_file(ScoresFile, path, "Evaluate the part again.")[0]
            if scored.checkpoint == "best" and "student" in scored.networks:
                found[part] = scored.networks["student"]
    return found


def model_name(name: str) -> str:
    """Return a run's name changed into a name that STAC allows for models.

    It begins with a letter, and has only letters, digits, dots, dashes and underscores.
    """
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name).strip("-_.")
    return plain if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", plain) else f"model-{plain or 'student'}"


def config_of(facts: Exported) -> JsonObject:
    """Return the contents of the file `config.json` as a dict: all facts that a program needs to use the model file."""
    told = facts.description
    inputs: list[JsonObject] = [
        {
            "name": "images",
            "shape": ["n", len(told.bands), told.image.side, told.image.side],
            "dtype": "float32",
            "values": f"stored {told.image.bits}-bit values without any scaling",
        }
    ]
    if told.network.role == "direct":
        about = "latitude, longitude (degrees), day of the year, UTC hour; NaN where unknown"
        inputs.append({"name": "metadata", "shape": ["n", 4], "dtype": "float32", "values": about})
    return {
        "name": facts.name,
        "files": {**facts.files},
        "difference": {**facts.difference},
        "student": facts.digest,
        "license": facts.license,
        "task": told.task,
        "bands": [band.name for band in told.bands],
        **({"backbone_bands": [*facts.backbone_bands]} if facts.backbone_bands else {}),
        "classes": [one.name for one in told.classes],
        "colors": [one.color for one in told.classes],
        "side": told.image.side,
        "inputs": [*inputs],
        "output": {"name": "logits", "shape": ["n", len(told.classes)], "dtype": "float32"},
        "description": json.loads(told.text()),
    }


def read_config(path: Path) -> JsonObject | None:
    """Return the contents of the `config.json` of an earlier export, as a dict.

    Return None if the file `path` cannot be read or was not written by an export.
    """
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    fits = isinstance(tree, dict) and isinstance(tree.get("files"), dict) and isinstance(tree.get("student"), str)
    return tree if fits else None


def check_license(given: str | None) -> str | None:
    """Check that a license looks like an SPDX identifier, such as `CC-BY-4.0`, and return it. Return None for None.

    Raises:
        ConfigError: The text does not look like an SPDX identifier.
    """
    if given is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}", given):
        raise ConfigError(f"--license {given!r}: give an SPDX identifier, such as CC-BY-4.0 or Apache-2.0.")
    return given
