"""Compute features of patches, and write them as a table or a Zarr group: `stssl embed MODEL PATCHES --out FILE`."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import torch
import zarr
from numpy.typing import NDArray

from stssl import __version__
from stssl.base.arrays import Floats
from stssl.base.errors import RunError
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import cannot_write, require_writable
from stssl.mapping.kept_blocks import sole_prediction
from stssl.predictions.common_columns import CommonColumns, output_path
from stssl.predictions.geoparquet import write_places_table
from stssl.predictions.inputs import open_patches
from stssl.predictions.patches import PatchSource
from stssl.predictions.predicted_table import DEFAULTS, TABLE_SUFFIXES, OnPatch, PatchOptions, batches_of
from stssl.predictions.preparation import PatchInputs, metadata_for
from stssl.predictions.requests import REQUEST_KEY, made_already, made_note, request_hash
from stssl.predictions.usable import broken_notes, require_usable, with_broken
from stssl.students.features import FeatureModel, read_features
from stssl.students.loading import weights_hashes
from stssl.training.trained_run import device_of

ZARR = ".zarr"
CHUNK_ROWS = 4096
"""Number of patches in a chunk of the array of features."""


@dataclass(frozen=True)
class EmbeddedPatches:
    """Say what `embed_patches` wrote: in which file, and for how many patches.

    Attributes:
        path: The table or Zarr group with the features.
        patches: Number of patches, each of which has one row.
        width: Number of features of a patch.
        failed: Number of patches without features: they could not be read, or the model gives no finite numbers.
        notes: Remarks for the user, one line each.
    """

    path: Path
    patches: int
    width: int
    failed: int
    notes: tuple[str, ...]


def embed_patches(
    model: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    options: PatchOptions = DEFAULTS,
    progress: OnPatch | None = None,
) -> EmbeddedPatches:
    """Compute the features of patches, and write them as a Parquet table or a Zarr group.

    If an earlier call with the same model, patches and options has finished the output, leave it as it is.

    Args:
        model: Run, or file of a student (a trained network) or of a pretrained encoder.
        inputs: A store, a table of images, a folder or pattern of images, or a scene.
        out: Table (`.parquet`) or Zarr group (`.zarr`) to write.
        options: Bands, sizes, batch and device. Its `labels` has no effect.
        progress: Called with the number of finished patches and the number of all patches.

    Returns:
        Path of the output, numbers of patches and features, and remarks.

    Raises:
        ConfigError: The model cannot be used, an option does not fit, or the output is another file.
        DataError: The patches cannot be used, or none of them has features.
        RunError: The output cannot be written.
    """
    path = output_path(out, inputs, (*TABLE_SUFFIXES, ZARR), "features are a table or a Zarr group")
    network = read_features(model).to(device_of(options.device))
    source = open_patches(inputs, network.description, options.bands, wanted=network.bands, stride=options.stride)
    plan = PatchInputs(network, source, resample=options.resample)
    hashes = weights_hashes([model])
    request = request_hash(hashes, source, ("embed", options.bands, options.resample, options.stride))
    with sole_prediction(path):
        made = made_already(path, request)
        if made is not None:
            failed = int(str(made["failed"]))
            return EmbeddedPatches(path, source.size, network.width, failed, (made_note(path),))
        require_writable(path)
        columns, usable, features = _features(network, plan, source, options.batch, progress)
        require_usable(source, usable, columns.errors)
        failed = int((~usable).sum())
        about: JsonObject = {"stssl": __version__, "models": {**hashes}, "input": source.place}
        about |= {"failed": failed, REQUEST_KEY: request}
        if path.suffix.lower() == ZARR:
            _write_group(path, columns, features, about)
        else:
            rows = pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(features.reshape(-1)), network.width, mask=pyarrow.array(~usable)
            )
            table = pyarrow.table({**columns.first(), "features": rows, **columns.last()})
            write_places_table(path, table, columns.centers, columns.rings, about)
    notes = (*source.notes, *broken_notes(columns.errors))
    return EmbeddedPatches(path, source.size, network.width, failed, notes)


@torch.inference_mode()
def _features(
    network: FeatureModel, plan: PatchInputs, source: PatchSource, batch: int, progress: OnPatch | None
) -> tuple[CommonColumns, NDArray[np.bool_], Floats]:
    """Compute the features of all patches of a source.

    Args:
        network: Model that computes features.
        plan: Object that arranges the stored pixels as the model's images.
        source: Source of n patches.
        batch: Number of patches that the model sees at a time.
        progress: Called with the number of finished patches and the number of all patches; None calls nothing.

    Returns:
        Columns that describe the patches; booleans [n], False for patches without features; and the features
            [n, width], NaN for patches without features.
    """
    columns, usable, done = CommonColumns(source), [], 0
    out = np.full((source.size, network.width), np.nan, np.float32)
    for read in batches_of(source, batch):
        values = network(plan.images(read.pixels), metadata_for(network, read, source)).float().cpu().numpy()
        found = with_broken(read, np.isfinite(values).all(1))
        columns.add(found)
        usable.append(found.usable)
        out[done : done + len(values)][found.usable] = values[found.usable]
        done += len(values)
        if progress:
            progress(done, source.size)
    return columns, np.concatenate(usable), out


def _write_group(path: Path, columns: CommonColumns, features: Floats, about: JsonObject) -> None:
    """Write a Zarr group with the arrays `features`, `patch_id`, `lat`, `lon` and `error`, whole or not at all.

    Args:
        path: Path of the group.
        columns: Columns that describe the n patches.
        features: [n, width] features; NaN for patches without features.
        about: What made the features, and from what: the entry `stssl` of the group's attributes.

    Raises:
        RunError: The group cannot be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        group = zarr.create_group(str(fresh), zarr_format=3, attributes={"stssl": json.loads(json.dumps(about))})
        options = {"chunks": (CHUNK_ROWS, features.shape[1]), "dimension_names": ("patch", "feature")}
        group.create_array("features", data=features, **options)  # type: ignore[arg-type]  # one dict for two options
        for name, values in {"lon": columns.centers[:, 0], "lat": columns.centers[:, 1]}.items():
            group.create_array(name, data=values, dimension_names=("patch",))
        for name, texts in {"patch_id": columns.names, "error": columns.errors}.items():
            array = group.create_array(name, shape=(len(texts),), dtype="string", dimension_names=("patch",))
            array[:] = np.array(texts, object)
        fresh.replace(path)
    except OSError as problem:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunError(cannot_write(path, problem)) from None
