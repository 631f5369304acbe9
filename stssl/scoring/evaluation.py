"""One pass over a part of the split: logits, metrics, and the file that keeps them."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import gather_rows, rank, rows_of, world_size
from stssl.base.whole_files import write_whole
from stssl.data.loader import prefetch
from stssl.data.views import PixelScaler
from stssl.recipes.run_data import PixelData, RunData, require_labels
from stssl.scoring.metrics import score

Predictor = Callable[[Tensor, Tensor], Tensor]
"""Images [n, C, h, w] and metadata [n, 4] to logits [n, classes]."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of one network on one part.

    Attributes:
        scores: Name to value.
        per_class: Class to its scores.
        rows: [n] store rows.
        logits: [n, classes].
    """

    scores: dict[str, float]
    per_class: dict[str, dict[str, float]]
    rows: Ints
    logits: Tensor


def batches(data: PixelData, pixels: PixelScaler, rows: Ints, batch: int) -> Any:
    """Yield unaugmented images [n, C, h, w] and metadata [n, 4] of store rows, in order, on the device, read ahead.

    Args:
        data: Store and reader.
        pixels: Scales stored bands to images.
        rows: [n] store rows.
        batch: Rows at a time.
    """
    device = pixels.low.device
    chunks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    for chunk, arrays in zip(chunks, prefetch((partial(data.reader.read, chunk) for chunk in chunks), 2), strict=True):
        groups = {name: array.to(device, non_blocking=True) for name, array in arrays.items()}
        yield pixels(groups), data.metadata[torch.from_numpy(chunk)].to(device, non_blocking=True)


@torch.no_grad()
def predict(predictor: Predictor, data: RunData, pixels: PixelScaler, rows: Ints, batch: int) -> Tensor:
    """Predict all rows on every rank; each rank computes its block.

    Args:
        predictor: Function of images and metadata to logits.
        data: Store, classes and reader.
        pixels: Scales stored bands to images.
        rows: [n] store rows.
        batch: Rows at a time.

    Returns:
        [n, classes] logits.
    """
    own = rows[rows_of(len(rows), rank(), world_size())]
    parts = [predictor(image, metadata).float() for image, metadata in batches(data, pixels, own, batch)]
    classes = len(data.space.classes)
    logits = torch.cat(parts) if parts else torch.zeros(0, classes, device=pixels.low.device)
    return gather_rows(logits).cpu()


def evaluate(
    predictor: Predictor, data: RunData, pixels: PixelScaler, part: str, *, batch: int, limit: int | None
) -> Evaluation:
    """Score a network on a part of the split.

    Args:
        predictor: Function of images and metadata to logits.
        data: Store, split and targets.
        pixels: Scales stored bands to images.
        part: `train`, `validation` or `test`.
        batch: Rows at a time.
        limit: At most this many patches, spread over the part; None takes all.

    Raises:
        DataError: No patch of the part has a known label.
    """
    rows = spread(data.split.part(part), limit)
    targets = data.targets[torch.from_numpy(rows)]
    require_labels(targets, part)
    logits = predict(predictor, data, pixels, rows, batch)
    scores, per_class = score(logits, targets, data.space)
    return Evaluation(scores, per_class, rows, logits)


def spread(rows: Ints, limit: int | None) -> Ints:
    """At most `limit` of the rows, evenly spread over them."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


def without_nan(value: Any) -> Any:
    """The same value with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_evaluations(
    results: dict[str, Evaluation], data: RunData, part: str, path: Path, about: dict[str, Any]
) -> None:
    """Write scores as JSON and, beside it, an `.npz` with rows, places, targets and every network's logits.

    The scores come last and name the other file's digest, so that files of two evaluations are never read together.

    Args:
        results: Evaluation of each network.
        data: Data that was scored.
        part: `train`, `validation` or `test`.
        path: JSON file to write.
        about: What to write down about the run and checkpoint.

    Raises:
        RunError: A file cannot be written.
    """
    first = next(iter(results.values()))
    chosen = torch.from_numpy(first.rows)
    logits: dict[str, Any] = {f"logits_{name}": result.logits.numpy() for name, result in results.items()}
    targets, buffer = data.targets[chosen], io.BytesIO()
    np.savez_compressed(
        buffer, rows=first.rows, metadata=data.metadata[chosen].numpy(), targets=targets.numpy(), **logits
    )
    write_whole(path.with_suffix(".npz"), buffer.getbuffer())
    scored = int((targets != IGNORED).any(1).sum())
    networks = {name: {"scores": result.scores, "per_class": result.per_class} for name, result in results.items()}
    about = {"part": part, "patches": scored, "arrays": array_digest(buffer.getbuffer()), **about}
    write_whole(path, json.dumps(without_nan(about | {"networks": networks}), indent=1))


def array_digest(data: bytes | memoryview) -> str:
    """Hash the bytes of a file of arrays; the scores beside it state this digest."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
