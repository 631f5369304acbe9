"""Evaluate a network on a part of the data (such as `test`): compute logits and scores, and write them to files."""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from stssl.base.arrays import AnyArray, Ints
from stssl.base.batch import IGNORED
from stssl.base.distributed import gather_rows, rank, rows_of, world_size
from stssl.base.json_types import JsonMapping
from stssl.base.whole_files import write_whole
from stssl.data.loader import prefetch
from stssl.data.views import PixelScaler
from stssl.recipes.run_data import PixelData, RunData, require_labels
from stssl.scoring.metrics import score_once
from stssl.store.lists import as_text

Predictor = Callable[[Tensor, Tensor], Tensor]
"""Function that takes images [n, bands, height, width] and metadata [n, 4], and returns logits [n, classes]."""


@dataclass(frozen=True)
class Evaluation:
    """Hold the scores and logits of one network on one part of the data, such as `test`.

    Attributes:
        scores: Scores over all classes, by the name of the score; NaN if a score is not defined.
        per_class: Scores of each class: by the name of the class, then by the name of the score.
        rows: [n] row numbers of the scored patches in the store.
        logits: [n, classes] the network's logits for these patches.
    """

    scores: dict[str, float]
    per_class: dict[str, dict[str, float]]
    rows: Ints
    logits: Tensor


def batches(data: PixelData, pixels: PixelScaler, rows: Ints, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the given patches in batches: images [n, bands, height, width], and metadata (place and date) [n, 4].

    Images are not augmented. Batches have the order of `rows` and are on the device of `pixels`. A thread reads the
    next batches while the caller works with one.

    Args:
        data: Open data: the reader of pixels, and the metadata of all patches.
        pixels: Module that scales stored bands to images.
        rows: Row numbers of the patches in the store.
        batch: Number of patches in a batch; the last batch may be smaller.
    """
    device = pixels.low.device
    chunks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    for chunk, arrays in zip(chunks, prefetch((partial(data.reader.read, chunk) for chunk in chunks), 2), strict=True):
        groups = {name: array.to(device, non_blocking=True) for name, array in arrays.items()}
        yield pixels(groups), data.metadata[torch.from_numpy(chunk)].to(device, non_blocking=True)


@torch.no_grad()
def predict_rows(predictor: Predictor, data: RunData, pixels: PixelScaler, rows: Ints, batch: int) -> Tensor:
    """Compute a network's logits for some patches of the store. All ranks (training processes) must call this together.

    Each rank predicts a share of the patches, and gets the logits of all.

    Args:
        predictor: The network, as a function that takes images and metadata, and returns logits.
        data: Open data: the reader of pixels, the metadata and the classes.
        pixels: Module that scales stored bands to images.
        rows: [n] row numbers of the patches in the store.
        batch: Number of patches in a batch.

    Returns:
        [n, classes] logits, on the CPU.
    """
    own = rows[rows_of(len(rows), rank(), world_size())]
    parts = [predictor(image, metadata).float() for image, metadata in batches(data, pixels, own, batch)]
    classes = len(data.space.classes)
    logits = torch.cat(parts) if parts else torch.zeros(0, classes, device=pixels.low.device)
    return gather_rows(logits).cpu()


def score_part(
    predictor: Predictor, data: RunData, pixels: PixelScaler, part: str, *, batch: int, limit: int | None
) -> Evaluation:
    """Score a network on a part of the data. All ranks (training processes) must call this together.

    Args:
        predictor: The network, as a function that takes images and metadata, and returns logits.
        data: Open data: the reader of pixels, the split, the metadata and the labels.
        pixels: Module that scales stored bands to images.
        part: `train`, `validation` or `test`.
        batch: Number of patches in a batch.
        limit: Largest number of patches to score. They are evenly spread over the part. None scores all patches.

    Returns:
        The network's scores and logits.

    Raises:
        DataError: No patch of the part has a known label.
    """
    rows = spread(data.split.part(part), limit)
    require_labels(data.targets[torch.from_numpy(rows)], part)
    logits = predict_rows(predictor, data, pixels, rows, batch)
    return score_logits(logits, data, rows, pixels.low.device)


def score_logits(logits: Tensor, data: RunData, rows: Ints, device: torch.device) -> Evaluation:
    """Compute scores from a network's logits and the labels of their patches.

    All ranks (training processes) must call this together: only rank 0 computes the scores, and the others get them.

    Args:
        logits: [n, classes] logits, the same on all ranks.
        data: Open data: the classes and the labels of all patches.
        rows: [n] row numbers of the n patches in the store.
        device: Device of the tensors that the ranks exchange.

    Returns:
        The scores with the given logits and rows.
    """
    targets = data.targets[torch.from_numpy(rows)].long()
    scores, per_class = score_once(logits, targets, data.space, device)
    return Evaluation(scores, per_class, rows, logits)


def share_of_batches(rows: Ints, batch: int, share: tuple[int, int]) -> Ints:
    """Return the numbers of the patches that one of several workers predicts: those in its share of the batches.

    Workers share whole batches, so that their batches are those of a single process: other batches could change the
    last digits of logits.

    Args:
        rows: [n] row numbers in the store of all patches to predict.
        batch: Number of patches in a batch.
        share: Number of the worker, counted from 0, and number of workers.
    """
    whole = rows_of(-(-len(rows) // batch), *share)
    return rows[whole.start * batch : whole.stop * batch]


def spread(rows: Ints, limit: int | None) -> Ints:
    """Return at most `limit` of the row numbers `rows`, evenly spread over them; all of them if `limit` is None."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]


def without_nan(value: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of `value` (nested mappings and lists) with None in place of NaN and infinite numbers.

    JSON cannot express these numbers.
    """
    return {key: _without_nan(item) for key, item in value.items()}


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return without_nan(value)
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_evaluations(
    results: Mapping[str, Evaluation], data: RunData, part: str, path: Path, about: JsonMapping
) -> None:
    """Write the results of an evaluation into two files: scores as JSON, and arrays as `.npz`.

    The arrays are `logits_<network>` of each network and, for the scored patches, `targets` (labels as numbers),
    `metadata`, `rows` (in the store) and `patch_ids`, and the names of the `classes`. NumPy reads them with
    `allow_pickle=False`.

    Args:
        results: Evaluation of each network on the same patches, by the name of the network.
        data: Open data, with the store, labels and metadata of these patches.
        part: Part of the data, such as `test`.
        path: JSON file to write. The other file has the same name, with the suffix `.npz`.
        about: Entries about the run and the checkpoint to add to the JSON.

    Raises:
        RunError: A file cannot be written.
    """
    first = next(iter(results.values()))
    chosen = torch.from_numpy(first.rows)
    targets, buffer = data.targets[chosen].long(), io.BytesIO()
    arrays: dict[str, AnyArray] = {"rows": first.rows, "metadata": data.metadata[chosen].numpy()}
    names = as_text(data.store.column("patch_id")[first.rows])
    arrays |= {"targets": targets.numpy(), "patch_ids": names, "classes": np.array(data.space.classes, np.str_)}
    arrays |= {f"logits_{name}": result.logits.numpy() for name, result in results.items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs take a keyword for `allow_pickle`
    # Write the scores last, with the digest of the arrays. If the process dies between the two files, readers see by
    # the digest that the old scores do not belong to the new arrays.
    write_whole(path.with_suffix(".npz"), buffer.getbuffer())
    content: dict[str, JsonValue] = {
        "part": part,
        "patches": int((targets != IGNORED).any(1).sum()),
        "arrays": array_digest(buffer.getbuffer()),
        **about,
        "networks": {name: _as_json(result) for name, result in results.items()},
    }
    write_whole(path, json.dumps(without_nan(content), indent=1))


def _as_json(result: Evaluation) -> dict[str, JsonValue]:
    return {"scores": {**result.scores}, "per_class": {name: {**scores} for name, scores in result.per_class.items()}}


def array_digest(data: bytes | memoryview) -> str:
    """Return the hash of `data`, the bytes of an `.npz` file, as text.

    The JSON file with the scores holds it, so that readers can check that both files are of one evaluation.
    """
    return hashlib.blake2b(data, digest_size=16).hexdigest()
