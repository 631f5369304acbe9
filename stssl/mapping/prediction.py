"""Predict the map of a scene: `stssl predict MODEL SCENE --out MAP.tif`."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from stssl import __version__
from stssl.archives.band_numbers import shift_remarks
from stssl.base.errors import ConfigError, DataError
from stssl.base.hashing import settings_hash
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import is_there, write_whole
from stssl.mapping.assembly import FinishedRows, MapAssembly
from stssl.mapping.block_tasks import run_here, run_on_ray
from stssl.mapping.blocks import BlockPlan, BlockPredictor, OnWindows, plan_blocks
from stssl.mapping.ensemble import Ensemble
from stssl.mapping.kept_blocks import KeptBlocks, sole_prediction
from stssl.mapping.map_bands import Probabilities, map_bands
from stssl.mapping.map_file import MAP_REQUEST, MapFile, request_of
from stssl.mapping.needs import SceneNeeds, common_needs
from stssl.mapping.opening import open_scene
from stssl.mapping.preview import draw_preview, sampled_classes
from stssl.mapping.scene import Scene, pixel_meters
from stssl.students.loading import different_models, read_student
from stssl.training.trained_run import device_of

MAP_SUFFIXES = (".tif", ".tiff")
KEPT_FORMAT = 2
"""Version of the files of kept blocks. Blocks of another version are predicted again."""
OnWindow = Callable[[int, int], None]
"""Function that gets the number of predicted windows and of all windows."""


@dataclass(frozen=True)
class MapOptions:
    """Set how `predict_scene` predicts a map.

    Attributes:
        stride: Distance between windows, in pixels of the student's finest band; None takes half a window.
        bands: Names of the bands of the scene's files; empty to read them from the files.
        resample: True to accept a scene with another pixel size than the student's.
        pixel_size: Pixel size in meters of the images that the students were trained on; only if they do not say it.
        probabilities: Type of the probabilities to write; None writes classes.
        preview: True to write a picture too.
        batch: Number of windows that a student sees at a time.
        device: `auto`, `cpu` or `cuda`, for a prediction in this process.
        workers: Number of Ray tasks at the same time; 0 predicts in this process or, with `address`, takes all CPUs.
        address: Address of a Ray cluster; None for none.
        gpus: Share of a GPU for each Ray task, such as 0.5.
    """

    stride: int | None = None
    bands: tuple[str, ...] = ()
    resample: bool = False
    pixel_size: float | None = None
    probabilities: Probabilities | None = None
    preview: bool = False
    batch: int = 64
    device: str = "auto"
    workers: int = 0
    address: str | None = None
    gpus: float = 0.0


@dataclass(frozen=True)
class MapFiles:
    """Say which files a finished prediction wrote.

    Attributes:
        map: Path of the map.
        preview: Path of the map's picture; None if none was asked for.
        windows: Number of windows of the scene.
        notes: Remarks for the user, one line each.
    """

    map: Path
    preview: Path | None
    windows: int
    notes: tuple[str, ...] = ()


def predict_scene(
    models: Sequence[str | Path],
    inputs: Sequence[str | Path],
    out: str | Path,
    options: MapOptions = MapOptions(),
    progress: OnWindow | None = None,
) -> MapFiles:
    """Predict the map of a scene. The same call resumes an interrupted prediction, and leaves a finished map as it is.

    Args:
        models: Folders of runs, or files of students. The probabilities of several models are averaged.
        inputs: A `.SAFE` folder, or files, folders and patterns of GeoTIFFs.
        out: Map to write (`.tif`).
        options: Distance of windows, kind of map, device and workers.
        progress: Called with two numbers: how many windows are predicted, and how many the scene has.

    Returns:
        Paths of the map and its picture, number of windows, and notes for the user.

    Raises:
        ConfigError: An option does not fit, a model cannot be used, or the output is another file.
        DataError: The scene cannot be used, or a model gives numbers that are not finite.
        RunError: The map cannot be written, or Ray cannot be used.
    """
    target = map_path(out, inputs)
    device = _device(options)
    hashes = different_models(models)
    students = [read_student(place) for place in models]
    needs = common_needs([student.description for student in students], options.pixel_size)
    scene = open_scene(inputs, needs, options.bands, resample=options.resample)
    if target in scene.files:
        raise ConfigError(f"--out: {target} is a file of the scene. Give another name.")
    plan = plan_blocks(scene, _stride(options, needs), needs.window)
    ensemble, names = Ensemble(students, scene.layers), [str(place) for place in models]
    predictor = BlockPredictor(scene, plan, ensemble, batch=options.batch, models=names)
    job = _MapJob(target, scene, needs, predictor, options, device, hashes)
    with sole_prediction(target):
        return job.run(progress)


def _device(options: MapOptions) -> torch.device:
    """Return the device for a prediction in this process. With Ray, return the CPU: `gpus` decides for each task.

    Args:
        options: Options of the prediction, such as `device`, `workers` and `gpus`.

    Raises:
        ConfigError: The options contradict each other, or the device does not exist.
    """
    if not options.workers and options.address is None:
        if options.gpus:
            raise ConfigError("--gpus: only Ray tasks take a share of a GPU. Give --workers or --ray-address too.")
        return device_of(options.device)
    if options.device != "auto" and (options.device == "cuda") != (options.gpus > 0):
        raise ConfigError(
            f"--device {options.device} does not fit --gpus {options.gpus:g}. For Ray tasks, --gpus alone decides: "
            "give a share such as --gpus 0.5, or leave it out for CPUs."
        )
    return torch.device("cpu")


def map_path(out: str | Path, inputs: Sequence[str | Path]) -> Path:
    """Check the path of a map, and return it as an absolute path.

    Args:
        out: Path that the user gave.
        inputs: Files, folders and patterns from which the map is predicted.

    Raises:
        ConfigError: The path is a folder, does not end in `.tif` or `.tiff`, or lies inside an input folder.
    """
    path = Path(out).absolute()
    if path.suffix.lower() not in MAP_SUFFIXES:
        raise ConfigError(f"--out: '{out}' must end in .tif: the map of a scene is a GeoTIFF.")
    if path.is_dir():
        raise ConfigError(f"--out: {path} is a folder. Give the name of a file.")
    for given in inputs:
        folder = Path(given).resolve()
        if folder.is_dir() and path.resolve().is_relative_to(folder):
            raise ConfigError(f"--out: {path} lies inside the input {given}. Give a file outside of it.")
    return path


def _stride(options: MapOptions, needs: SceneNeeds) -> int:
    if options.stride is None:
        return max(1, needs.window // 2)
    if not 1 <= options.stride <= needs.window:
        raise ConfigError(
            f"--stride {options.stride}: give 1 to {needs.window}, the side of the student's windows in pixels. A "
            "larger stride would leave gaps."
        )
    return options.stride


@dataclass
class _MapJob:
    """Hold all that is needed to predict one map: its path, the scene, the students and the options."""

    out: Path
    scene: Scene
    needs: SceneNeeds
    predictor: BlockPredictor
    options: MapOptions
    device: torch.device
    models: dict[str, str]

    @property
    def plan(self) -> BlockPlan:
        return self.predictor.plan

    def run(self, progress: OnWindow | None) -> MapFiles:
        """Predict the blocks (groups of windows) that no earlier call has finished, and write the map meanwhile.

        Predict nothing if an earlier call has finished the map. When the map is finished, remove the saved blocks.
        Return the paths of the map and its picture.

        Args:
            progress: Called with the number of predicted windows, and the number of all windows. None for none.

        Raises:
            ConfigError: Another file has the name of the map or of its picture.
        """
        kept = KeptBlocks(self.out, self.plan)
        if self._is_made(kept):
            note = f"{self.out.name} is already made: by the same models, from the same scene, with the same options"
            return MapFiles(self.out, self._picture, self.plan.grid.count, (note,))
        try:
            return self._run(kept, progress)
        except BaseException:
            kept.clean()
            raise

    @property
    def _picture(self) -> Path | None:
        """Return the path of the map's picture; None if the options ask for no picture."""
        return self.out.with_suffix(".png") if self.options.preview else None

    def _is_made(self, kept: KeptBlocks) -> bool:
        """Return True if an earlier call has finished this map, with its picture if one is asked for.

        `kept` are the saved blocks of an unfinished prediction.

        Raises:
            ConfigError: Another file has the name of the map or of its picture, which is not replaced.
        """
        picture = self._picture
        if is_there(self.out):
            if request_of(self.out) != self._request():
                raise ConfigError(
                    f"--out: {self.out} is there already, and is no whole map of this scene by these models and "
                    "options. Remove it, or give another name."
                )
            if picture is not None and not picture.is_file():
                raise ConfigError(
                    f"--out: {self.out} is there already, without its picture. Remove it, or give another name."
                )
            return True
        if picture is not None and is_there(picture) and kept.begun(self._identity()) is None:
            raise ConfigError(f"--preview: {picture} is there already. Remove it, or give --out another name.")
        return False

    def _notes(self) -> tuple[str, ...]:
        """Return lines of text for the user on an offset that was applied, and on a scene smaller than a window."""
        scene = self.scene
        sources = [source for layer in scene.layers for piece in layer.pieces for source in piece.sources]
        remarks = tuple(shift_remarks(scene.name, (source.numbers for source in sources)))
        if scene.height >= scene.window[0] and scene.width >= scene.window[1]:
            return remarks
        return (
            *remarks,
            f"{scene.name} has {scene.height} x {scene.width} pixels, fewer than a window of the student "
            f"({scene.window[0]} x {scene.window[1]}). It is reflected at its edges. The student never saw such "
            "images.",
        )

    def _run(self, kept: KeptBlocks, progress: OnWindow | None) -> MapFiles:
        about = kept.prepare(self._identity(), {"date": f"{datetime.now(UTC):%Y-%m-%d}"})
        bands = map_bands(self.needs, self.options.probabilities)
        target, shape = MapFile(kept.folder, self.out, bands), (self.scene.height, self.scene.width)
        with target.writing(self.scene.crs, self.scene.transform, shape, self._tags(about)) as file:
            assembly = MapAssembly(kept, bands, target, file)
            self._blocks(kept, assembly, progress)
        if not assembly.measured:
            kept.remove()
            raise DataError(f"{self.scene.name} has no measured pixel: all are nodata or masked. No map is written.")
        if self._picture is not None:
            self._preview(kept, self._picture)
        target.finish()
        kept.remove()
        return MapFiles(self.out, self._picture, self.plan.grid.count, self._notes())

    def _blocks(self, kept: KeptBlocks, assembly: MapAssembly, progress: OnWindow | None) -> None:
        """Predict the missing blocks. Meanwhile, a thread saves finished blocks and writes the map's complete rows.

        Args:
            kept: Folder of the saved blocks.
            assembly: Writer of the map's rows.
            progress: Called with the number of predicted windows, and the number of all windows. None for none.
        """
        missing = kept.missing()
        rows, count = FinishedRows(self.plan, missing), _WindowCount(self.plan, missing, progress)
        with ThreadPoolExecutor(1) as writer:
            last = writer.submit(assembly.advance, rows.windows)
            for number, data in self._predicted(missing, count.add):
                last.result()  # wait for the last block: otherwise a slow disk would fill the memory with blocks
                rows.add(number)
                last = writer.submit(_keep, kept, assembly, number, data, rows.windows)
                count.finish(number)
            last.result()

    def _predicted(self, missing: Sequence[int], progress: OnWindows) -> Iterator[tuple[int, bytes]]:
        """Predict the missing blocks in this process or by Ray.

        Args:
            missing: Numbers of the blocks.
            progress: Called after each batch of windows, with the number of windows in it. Ray does not call it.

        Returns:
            Iterator over the finished blocks: number of each block, and its predictions as bytes.
        """
        options = self.options
        if not missing:
            return iter(())
        if options.workers == 0 and options.address is None:
            return run_here(self.predictor.to(self.device), missing, progress)
        return run_on_ray(
            self.predictor, missing, workers=options.workers or None, address=options.address, gpus=options.gpus
        )

    def _identity(self) -> str:
        """Return a hash of all that changes the predictions: models, files, windows, batch size, CPU or GPU."""
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.scene.files]
        gpu = self.options.gpus > 0 if self.options.workers or self.options.address else self.device.type == "cuda"
        parts = (KEPT_FORMAT, sorted(self.models.items()), files, self.scene, self.plan, self.options.batch, gpu)
        return settings_hash(parts)

    def _request(self) -> str:
        """Return a hash of all that changes the map or its picture: predictions, classes, and what is to be written."""
        return settings_hash((self._identity(), self.options.probabilities, self.options.preview, self.needs))

    def _tags(self, about: JsonObject) -> dict[str, str]:
        """Return the metadata to store in the map's file: texts by name, such as its models, classes and date.

        `about` has the date on which the prediction began.
        """
        tags = {
            "STSSL_VERSION": __version__,
            "STSSL_MODELS": json.dumps(self.models),
            "STSSL_CLASSES": json.dumps(self.needs.classes),
            "STSSL_TASK": "multi-label" if self.needs.multilabel else "single-label",
            "STSSL_DATE": str(about["date"]),
            MAP_REQUEST: self._request(),
            "STSSL_SCENE": self.scene.name,
            "STSSL_WINDOW_METERS": f"{self.needs.ground:g}",
            "STSSL_STRIDE_METERS": f"{self.needs.pixel * _stride(self.options, self.needs):g}",
        }
        if self.scene.date:
            tags["STSSL_SCENE_DATE"] = self.scene.date.isoformat()
        return tags

    def _preview(self, kept: KeptBlocks, path: Path) -> None:
        """Draw a small picture of the map from the saved blocks in `kept`, and write it as the PNG file `path`."""
        classes, step = sampled_classes(kept)
        down, across = pixel_meters(self.scene.crs, self.scene.transform, self.scene.height, self.scene.width)
        date = f", {self.scene.date:%Y-%m-%d}" if self.scene.date else ""
        names, colors = self.needs.classes, self.needs.colors
        picture = draw_preview(classes, names, colors, f"{self.scene.name}{date}", (step * down, step * across))
        write_whole(path, picture)


class _WindowCount:
    """Count the windows that are predicted so far, and report the count to the user's function `progress`."""

    def __init__(self, plan: BlockPlan, missing: Sequence[int], progress: OnWindow | None) -> None:
        """Start the count with the windows that an earlier call has predicted: all but those in missing blocks.

        Args:
            plan: Blocks (groups of windows) of the map.
            missing: Numbers of the blocks that must still be predicted.
            progress: Called with the number of predicted windows, and the number of all windows. None for none.
        """
        self.plan, self.progress, self.within, self.shown = plan, progress, 0, -1
        self.done = plan.grid.count - sum(map(plan.windows, missing))
        self._report()

    def add(self, count: int) -> None:
        """Add `count` windows, which were predicted in a block that is not finished yet."""
        self.within += count
        self._report()

    def finish(self, number: int) -> None:
        """Count all windows of the finished block `number`. They replace those that `add` counted for it."""
        self.done, self.within = self.done + self.plan.windows(number), 0
        self._report()

    def _report(self) -> None:
        now = self.done + self.within
        if self.progress and now != self.shown:
            self.shown = now
            self.progress(now, self.plan.grid.count)


def _keep(kept: KeptBlocks, assembly: MapAssembly, number: int, data: bytes, ready: int) -> None:
    """Save a finished block to disk, and write the rows of the map that are complete now.

    Args:
        kept: Folder of the saved blocks.
        assembly: Writer of the map's rows.
        number: Number of the block.
        data: Predictions of the block as bytes.
        ready: Number of finished rows of windows, counted from the map's top.
    """
    kept.write(number, data)
    assembly.advance(ready)
