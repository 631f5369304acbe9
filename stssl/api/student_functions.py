"""Load and export students, and predict and embed images with them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stssl.api.progress import counting, default_console
from stssl.api.run import Run, folder_of_run
from stssl.base.paths import is_url

Given = TypeVar("Given", Run | str | Path, str | Path)
"""Type of an argument that may be one thing or a sequence of things."""

if TYPE_CHECKING:
    from stssl.mapping.map_bands import Probabilities
    from stssl.students.student import Student


def load_student(place: Run | str | Path) -> "Student":
    """Load the student (the network to use) of a finished run. It needs neither the run's store nor its recipe.

    Args:
        place: A run, its folder, or a file `student.safetensors`.

    Returns:
        The student, in evaluation mode. It takes stored pixel values [n, bands, H, W] and gives logits [n, classes].
        See its `bands`, `classes`, `probabilities(images)` and `predict(array)`.

    Raises:
        ConfigError: The file is no student, is damaged, is of a newer format, or does not describe itself.
    """
    from stssl.students.loading import read_student

    return read_student(folder_of_run(place))


def export(
    run: Run | str | Path,
    format: str = "pt2",
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    license: str | None = None,
) -> Path | str:
    """Write a run's student (its trained network) in a format of other programs, with a model card.

    First compare the results of the new file with those of the student. If they differ, write nothing.

    Args:
        run: A run, its folder, or its weights file; a path or URL.
        format: `pt2` (torch.export), `onnx`, or `torchvision` (the layers of a ResNet, without its head).
        out: Path or URL of the folder to write; None takes the folder `export` inside the run's.
        bands: Three bands for `torchvision`; None takes all bands of the student.
        license: License of the weights (SPDX) for the card and the STAC item.

    Returns:
        Path of the model file, or its URL (a text) if it was written to an object store.

    Raises:
        StsslError: The run has no student, the format cannot hold it, or the folder holds other files.
    """
    from stssl.exports.writing import export_to

    return export_to(folder_of_run(run), format, out, bands=bands, license=license)


def predict(
    model: Run | str | Path | Sequence[Run | str | Path],
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | None = None,
    stride: int | None = None,
    bands: Sequence[str] = (),
    probabilities: "Probabilities | None" = None,
    preview: bool = False,
    resample: bool = False,
    pixel_size: float | None = None,
    batch: int = 64,
    device: str = "auto",
    workers: int = 0,
    ray_address: str | None = None,
    gpus: float = 0.0,
    progress: bool | None = None,
) -> Path | str:
    """Predict the classes of a scene as a map (`out` is `.tif`), or those of patches as a table (`out` is `.parquet`).

    Args:
        model: A run or its student; several average their probabilities.
        inputs: For a map: GeoTIFFs (one scene, one band each, or a mosaic), or a `.SAFE` folder of level 2A. For a
            table: a store, a table of images, a folder or pattern of images, or a scene, which is cut into patches.
        out: Map (a Cloud Optimized GeoTIFF) or table (a GeoParquet file, if patches have places): a path or URL.
        labels: For tables: label set to score against; None takes one with the model's classes.
        stride: Distance between windows in pixels; None blends windows at half their width.
        bands: Names of the bands of the files. Only files that do not name them need this.
        probabilities: `uint8` (scaled) or `float32` writes maps of probabilities. None writes classes.
        preview: True also writes a picture, beside the map.
        resample: True accepts another pixel size than the student was trained on.
        pixel_size: Pixel size in meters of the training images, for students that do not know it.
        batch: Number of windows or patches that a student sees at a time.
        device: `cpu`, `cuda` or `auto`.
        workers: For maps: number of Ray tasks at the same time; 0 predicts in this process.
        ray_address: Address of a Ray cluster.
        gpus: GPUs of a Ray task, such as 0.25.
        progress: False shows no progress.

    Returns:
        Absolute path of the map or table, or its URL (a text). The same call resumes an interrupted map on a disk, and
        leaves a finished result as it is.

    Raises:
        StsslError: The model or the inputs cannot be used, they do not fit, or the output cannot be written.
    """
    from stssl.mapping.prediction import MapOptions
    from stssl.predictions.choice import predict_inputs, unit_of

    windows = MapOptions(stride, tuple(bands), resample, pixel_size, probabilities, preview, batch, device)
    options = replace(windows, workers=workers, address=ray_address, gpus=gpus)
    models, given = [folder_of_run(one) for one in _listed(model)], list(_listed(inputs))
    with counting(default_console(progress), "predict", unit_of(given, out)) as follow:
        found = predict_inputs(models, given, out, options, labels=labels, progress=follow)
    return found.place if is_url(found.place) else found.path


def embed(
    model: Run | str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    stride: int | None = None,
    bands: Sequence[str] = (),
    resample: bool = False,
    batch: int = 64,
    device: str = "auto",
    progress: bool | None = None,
) -> Path:
    """Write the features of patches, pooled over each patch. They are the input of the model's last layer.

    Args:
        model: A run, its student, or a pretrained encoder.
        inputs: A store, a table of images, a folder or pattern of images, or a scene, which is cut into patches.
        out: Table (`.parquet`, a GeoParquet file if patches have places) or Zarr group (`.zarr`) to write.
        stride: Distance of a scene's patches in pixels; None lays them side by side.
        bands: Names of the bands of the files. Only files that do not name them need this.
        resample: True accepts patches of another size than the model was trained on.
        batch: Number of patches that the model sees at a time.
        device: `cpu`, `cuda` or `auto`.
        progress: False shows no progress.

    Returns:
        Absolute path of the table or group. Its column or array `features` is [patches, width]. The same
        call leaves a finished one as it is.

    Raises:
        StsslError: The model or the inputs cannot be used, they do not fit, or the output cannot be written.
    """
    from stssl.predictions.embedding import embed_patches
    from stssl.predictions.predicted_table import PatchOptions

    options = PatchOptions(tuple(bands), None, resample, stride, batch, device)
    with counting(default_console(progress), "embed", "patches") as follow:
        return embed_patches(folder_of_run(model), list(_listed(inputs)), out, options, follow).path


def _listed(given: Given | Sequence[Given]) -> Sequence[Given]:
    """Return an argument as a sequence: a single run or path becomes a sequence with this one item."""
    return [given] if isinstance(given, Run | str | Path) else given
