"""Decide by the ending of the output what `stssl predict` writes: a map of a scene, or a table of patches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stssl.base.errors import ConfigError
from stssl.base.outputs import local_output
from stssl.base.paths import is_url
from stssl.mapping.prediction import MAP_SUFFIXES, MapOptions, predict_scene
from stssl.predictions.inputs import TABLE_ENDINGS, is_store
from stssl.predictions.predicted_table import TABLE_SUFFIXES, OnPatch, PatchOptions, predict_patches


@dataclass(frozen=True)
class Predicted:
    """Say what `predict_inputs` wrote (a map of a scene or a table of patches) and where, with scores and remarks.

    Attributes:
        path: Local path of the map or table. If the output is a URL, path of this process's copy.
        place: Path or URL of the output.
        scores: Scores by name, for tables of patches with labels.
        lines: Remarks for the user, one line each.
    """

    path: Path
    place: str
    scores: dict[str, float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def unit_of(inputs: Sequence[str | Path], out: str | Path) -> str:
    """Return in what a prediction's progress is counted: `windows` for a map, `patches` for a table.

    Args:
        inputs: Paths or URLs that the prediction reads.
        out: Path or URL that the prediction writes. Its ending decides.

    Raises:
        ConfigError: The output is neither a map nor a table, or the inputs cannot become a map.
    """
    ending = Path(out).suffix.lower()
    if ending in TABLE_SUFFIXES:
        return "patches"
    if ending not in MAP_SUFFIXES:
        raise ConfigError(f"--out: '{out}' must end in .tif (map of a scene) or .parquet (table of patches).")
    for given in inputs:
        if is_store(str(given)) or Path(given).suffix.lower() in TABLE_ENDINGS:
            raise ConfigError(f"--out: {given} has patches, which become a table, not a map. Give --out FILE.parquet.")
    return "windows"


def predict_inputs(
    models: Sequence[str | Path],
    inputs: Sequence[str | Path],
    out: str | Path,
    options: MapOptions,
    *,
    labels: str | None = None,
    progress: OnPatch | None = None,
) -> Predicted:
    """Predict classes, and write them as a map of a scene or as a table of patches. The ending of `out` decides.

    Args:
        models: Runs, or files of students (trained networks). The probabilities of several are averaged.
        inputs: A scene, a store, a table of images, or a folder or pattern of images.
        out: Map (`.tif`) or table (`.parquet`) to write: a path or URL.
        options: Bands, windows, kind of map, workers, batch and device.
        labels: For tables: name of the label set to score against; None takes the one that shares most classes with the
            models.
        progress: Called with the number of finished windows or patches, and with the number of all.

    Returns:
        What was written and where, with scores and remarks for the user.

    Raises:
        StsslError: A model or an input cannot be used, they do not fit, or the output cannot be written.
    """
    if unit_of(inputs, out) == "windows":
        if labels is not None:
            raise ConfigError("--labels scores patches: give --out FILE.parquet.")
        with local_output(out, [".png"] if options.preview else []) as path:
            made = predict_scene(models, inputs, path, options, progress)
        return Predicted(made.map, str(out) if is_url(str(out)) else str(made.map), lines=made.notes)
    _refuse_map_options(options)
    chosen = PatchOptions(options.bands, labels, options.resample, options.stride, options.batch, options.device)
    with local_output(out) as path:
        found = predict_patches(models, inputs, path, chosen, progress)
    lines = list(found.notes)
    if found.failed:
        lines.append(f"{found.failed:,} of {found.patches:,} patches have no result: see the column error")
    if found.scores:
        lines.append(f"scores over all {found.scored:,} patches with a label; the column label has it")
    return Predicted(found.path, str(out) if is_url(str(out)) else str(found.path), found.scores, tuple(lines))


def _refuse_map_options(options: MapOptions) -> None:
    """Check that no option is set that has an effect only on maps of scenes, because the output is a table of patches.

    Args:
        options: Options of the command.

    Raises:
        ConfigError: Such an option is set.
    """
    defaults = MapOptions()
    flags = {
        "probabilities": "--probabilities",
        "preview": "--preview",
        "pixel_size": "--pixel-size",
        "workers": "--workers",
        "address": "--ray-address",
        "gpus": "--gpus",
    }
    for name, flag in flags.items():
        if getattr(options, name) != getattr(defaults, name):
            raise ConfigError(f"{flag} is for maps of scenes (--out MAP.tif), and this output is a table of patches.")
