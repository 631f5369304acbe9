"""Describe an exported student as a STAC item with the extension for machine learning models (MLM 1.5.2)."""

import calendar
import re
from datetime import UTC, datetime
from pathlib import Path

from stssl.base.json_types import JsonObject, JsonValue
from stssl.exports.facts import CARD, CONFIG, MAP, Exported
from stssl.students.description import Box, ClassDescription, ModelDescription

EXTENSIONS: list[JsonValue] = [
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.1.0/schema.json",
]
ARTIFACTS = {".pt2": "torch.export.save", ".onnx": "onnx"}
MLM_TASKS: list[JsonValue] = ["scene-classification", "classification"]


def stac_item(facts: Exported, written: datetime, parameters: int) -> JsonObject:
    """Return a STAC item about an exported student, as a dict for JSON.

    Args:
        facts: What the item states about the student and its files.
        written: Time of the export. It dates the item if the training patches have no dates.
        parameters: Number of weights of the student's network.
    """
    told = facts.description
    box = told.training.box
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": EXTENSIONS,
        "id": facts.name,
        "geometry": None if box is None else {"type": "Polygon", "coordinates": [_ring(box)]},
        **({} if box is None else {"bbox": [box.west, box.south, box.east, box.north]}),
        "properties": _properties(facts, written, parameters),
        "links": [],
        "assets": _assets(facts),
    }


def _ring(box: Box) -> list[JsonValue]:
    # If all patches lie at one place, the box has no area and would be no valid polygon: widen it by some 10 m.
    east, north = max(box.east, box.west + 1e-4), max(box.north, box.south + 1e-4)
    corners = [(box.west, box.south), (east, box.south), (east, north), (box.west, north), (box.west, box.south)]
    return [[lon, lat] for lon, lat in corners]


def _properties(facts: Exported, written: datetime, parameters: int) -> JsonObject:
    told, weights = facts.description, _initial_weights(facts.description)
    version = re.match(r"\d+\.\d+\.\d+", told.training.versions.get("torch", ""))
    return {
        **_dates(told.training.months, written),
        "created": _instant(written),
        "license": facts.license or "other",
        "description": f"Classifies land cover: {told.task}, {len(told.classes)} classes. See {CARD}.",
        "bands": [_band(told, number) for number in range(len(told.bands))],
        "mlm:name": facts.name,
        "mlm:architecture": told.network.backbone,
        "mlm:tasks": MLM_TASKS,
        "mlm:framework": "PyTorch",
        **({"mlm:framework_version": version[0]} if version else {}),
        "mlm:total_parameters": parameters,
        "mlm:pretrained": weights is not None,
        "mlm:pretrained_source": weights,
        "mlm:input": _inputs(told),
        "mlm:output": [_output(told)],
    }


def _dates(months: tuple[str, ...], written: datetime) -> JsonObject:
    """Return the dates of the STAC item: the period of the training patches, or else the time of the export.

    Args:
        months: Sorted months of the training patches, such as `2017-06`; empty if no patch has a date.
        written: Time of the export.
    """
    if not months:
        return {"datetime": _instant(written)}
    year, month = (int(part) for part in months[-1].split("-"))
    last = calendar.monthrange(year, month)[1]
    return {
        "datetime": None,
        "start_datetime": f"{months[0]}-01T00:00:00Z",
        "end_datetime": f"{months[-1]}-{last:02d}T23:59:59Z",
    }


def _instant(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _initial_weights(told: ModelDescription) -> str | None:
    model = told.training.recipe.get("model")
    weights = model.get("weights") if isinstance(model, dict) else None
    return None if weights in (None, "none") else str(weights)


def _band(told: ModelDescription, number: int) -> JsonObject:
    band = told.bands[number]
    about: JsonObject = {"name": band.name, "data_type": band.dtype}
    about |= {} if band.meters is None else {"gsd": band.meters}
    about |= {} if band.nodata is None else {"nodata": band.nodata}
    if band.smallest is not None and band.largest is not None:
        about["statistics"] = {"minimum": band.smallest, "maximum": band.largest}
    return about


def _inputs(told: ModelDescription) -> list[JsonValue]:
    side = told.image.side
    images: JsonObject = {
        "name": "images",
        "bands": [band.name for band in told.bands],
        "description": f"Stored {told.image.bits}-bit values. The model scales them itself.",
        "input": {
            "shape": [-1, len(told.bands), side, side],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": None,
        "resize_type": None,
    }
    metadata: JsonObject = {
        "name": "metadata",
        "bands": [],
        "description": "Latitude, longitude (degrees), day of the year, UTC hour; NaN where unknown.",
        "input": {"shape": [-1, 4], "dim_order": ["batch", "metadata"], "data_type": "float32"},
    }
    return [images, metadata] if told.network.role == "direct" else [images]


def _output(told: ModelDescription) -> JsonObject:
    probabilities = "sigmoid(logits)" if told.multilabel else "softmax(logits, 1)"
    return {
        "name": "logits",
        "tasks": MLM_TASKS,
        "result": {"shape": [-1, len(told.classes)], "dim_order": ["batch", "class"], "data_type": "float32"},
        "classification:classes": [_class(number, one) for number, one in enumerate(told.classes)],
        "post_processing_function": {"format": "python", "expression": f"torch.{probabilities}"},
    }


def _class(number: int, one: ClassDescription) -> JsonObject:
    name = re.sub(r"[^0-9A-Za-z_-]+", "-", one.name).strip("-") or f"class-{number}"
    return {"value": number, "name": name, "description": one.name, "color_hint": one.color.removeprefix("#").upper()}


def _assets(facts: Exported) -> JsonObject:
    assets: JsonObject = {}
    for file in facts.files:
        if artifact := ARTIFACTS.get(Path(file).suffix):
            assets[artifact.replace(".", "-")] = {
                "href": f"./{file}",
                "type": "application/octet-stream",
                "title": f"{facts.description.network.backbone} as {Path(file).suffix.removeprefix('.')}",
                "roles": ["mlm:model"],
                "mlm:artifact_type": artifact,
            }
    documents = (
        ("card", CARD, "text/markdown"),
        ("config", CONFIG, "application/json"),
        ("places", MAP, "image/svg+xml"),
    )
    for name, file, kind in documents:
        assets[name] = {"href": f"./{file}", "type": kind, "roles": ["overview" if name == "places" else "metadata"]}
    return assets
