"""Predict the map of a scene: `stssl predict MODEL SCENE --out MAP.tif`."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from stssl import __version__
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import write_whole
from stssl.mapping.assembly import FinishedRows, MapAssembly
from stssl.mapping.block_tasks import run_here, run_on_ray
from stssl.mapping.blocks import BlockPlan, BlockPredictor, plan_blocks
from stssl.mapping.ensemble import Ensemble
from stssl.mapping.kept_blocks import KeptBlocks, sole_prediction
from stssl.mapping.map_bands import Probabilities, map_bands
from stssl.mapping.map_file import MapFile
from stssl.mapping.needs import SceneNeeds, common_needs
from stssl.mapping.opening import open_scene
from stssl.mapping.preview import draw_preview, sampled_classes
from stssl.mapping.scene import Scene, pixel_meters
from stssl.students.loading import read_student, weights_hashes
from stssl.training.trained_run import device_of

MAP_SUFFIXES = (".tif", ".tiff")
KEPT_FORMAT = 1
"""Version of the files of kept blocks. Blocks of another version are predicted again."""
OnBlock = Callable[[int, int], None]
"""Function that gets the number of finished blocks and of all blocks."""


@dataclass(frozen=True)
class MapOptions:
    """Set how to predict a map.

    Attributes:
        stride: Distance between windows in pixels of the student; None takes half a window.
        bands: Names of the bands of the scene's files; empty to read them from the files.
        resample: True to accept a scene with another pixel size than the student's.
        pixel_size: Pixel size in meters of the images that the students were trained on, if they do not say it.
        probabilities: Type of the probabilities to write; None writes classes.
        preview: True to write a picture too.
        batch: Number of windows that a student sees at a time.
        device: `auto`, `cpu` or `cuda`.
        workers: Number of Ray tasks at the same time; 0 predicts in this process.
        address: Address of a Ray cluster.
        gpus: GPUs of a Ray task.
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
    """Name the files of a finished map.

    Attributes:
        map: The map.
        preview: Picture of the map; None if none was asked for.
        windows: Number of windows of the scene.
    """

    map: Path
    preview: Path | None
    windows: int


def predict_scene(
    models: Sequence[str | Path],
    inputs: Sequence[str | Path],
    out: str | Path,
    options: MapOptions = MapOptions(),
    progress: OnBlock | None = None,
) -> MapFiles:
    """Predict the map of a scene. The same call resumes an interrupted prediction.

    Args:
        models: Runs or students. The probabilities of several are averaged.
        inputs: A `.SAFE` folder, or files, folders and patterns of GeoTIFFs.
        out: Map to write (`.tif`).
        options: Distance of windows, kind of map, device and workers.
        progress: Called with the number of finished blocks and of all blocks.

    Raises:
        ConfigError: An option does not fit, or a model cannot be used.
        DataError: The scene cannot be used.
        RunError: The map cannot be written, or Ray cannot be used.
    """
    target = map_path(out, inputs)
    device = _device(options)
    students = [read_student(place) for place in models]
    needs = common_needs([student.description for student in students], options.pixel_size)
    scene = open_scene(inputs, needs, options.bands, resample=options.resample)
    if target in scene.files:
        raise ConfigError(f"--out: {target} is a file of the scene. Give another name.")
    plan = plan_blocks(scene, _stride(options, needs), needs.window)
    predictor = BlockPredictor(scene, plan, Ensemble(students, scene.layers), batch=options.batch)
    job = _MapJob(target, scene, needs, predictor, options, device, weights_hashes(models))
    with sole_prediction(target):
        return job.run(progress)


def _device(options: MapOptions) -> torch.device:
    """Return the device of a prediction in this process. With Ray, `gpus` decides where each task predicts."""
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
    """Check the path of a map, and make it absolute.

    Args:
        out: Path that the user gave.
        inputs: Inputs of the prediction.

    Raises:
        ConfigError: The path is no GeoTIFF, or lies inside an input folder.
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
    """Hold the scene, the students and the output of one prediction."""

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

    def run(self, progress: OnBlock | None) -> MapFiles:
        """Predict missing blocks, write the map while they finish, and remove the kept blocks."""
        kept = KeptBlocks(self.out, self.plan)
        try:
            return self._run(kept, progress)
        except BaseException:
            kept.clean()
            raise

    def _run(self, kept: KeptBlocks, progress: OnBlock | None) -> MapFiles:
        about = kept.prepare(self._identity(), {"date": f"{datetime.now(UTC):%Y-%m-%d}"})
        bands = map_bands(self.needs, self.options.probabilities)
        target, shape = MapFile(kept.folder, self.out, bands), (self.scene.height, self.scene.width)
        with target.writing(self.scene.crs, self.scene.transform, shape, self._tags(about)) as file:
            assembly = MapAssembly(kept, bands, target, file)
            self._blocks(kept, assembly, progress)
        if not assembly.measured:
            kept.remove()
            raise DataError(f"{self.scene.name} has no measured pixel: all are nodata or masked. No map is written.")
        preview = self._preview(kept) if self.options.preview else None
        target.finish()
        kept.remove()
        return MapFiles(self.out, preview, self.plan.grid.count)

    def _blocks(self, kept: KeptBlocks, assembly: MapAssembly, progress: OnBlock | None) -> None:
        """Predict the missing blocks. Meanwhile, a thread writes them to disk, and writes the map."""
        missing = kept.missing()
        rows, done = FinishedRows(self.plan, missing), self.plan.count - len(missing)
        if progress:
            progress(done, self.plan.count)
        with ThreadPoolExecutor(1) as writer:
            last = writer.submit(assembly.advance, rows.windows)
            for number, data in self._predicted(missing):
                last.result()  # wait for the last block: otherwise a slow disk would fill the memory with blocks
                rows.add(number)
                last = writer.submit(_keep, kept, assembly, number, data, rows.windows)
                done += 1
                if progress:
                    progress(done, self.plan.count)
            last.result()

    def _predicted(self, missing: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the numbers and bytes of predicted blocks, from this process or from Ray."""
        options = self.options
        if not missing:
            return iter(())
        if options.workers == 0 and options.address is None:
            return run_here(self.predictor.to(self.device), missing)
        return run_on_ray(
            self.predictor, missing, workers=options.workers or None, address=options.address, gpus=options.gpus
        )

    def _identity(self) -> str:
        """Hash everything that changes the kept blocks: models, files, windows, batch size and device."""
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.scene.files]
        gpu = self.options.gpus > 0 if self.options.workers or self.options.address else self.device.type == "cuda"
        parts = (KEPT_FORMAT, sorted(self.models.items()), files, self.scene, self.plan, self.options.batch, gpu)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _tags(self, about: JsonObject) -> dict[str, str]:
        """Return the metadata of the map."""
        tags = {
            "STSSL_VERSION": __version__,
            "STSSL_MODELS": json.dumps(self.models),
            "STSSL_CLASSES": json.dumps(self.needs.classes),
            "STSSL_TASK": "multi-label" if self.needs.multilabel else "single-label",
            "STSSL_DATE": str(about["date"]),
            "STSSL_SCENE": self.scene.name,
            "STSSL_WINDOW_METERS": f"{self.needs.ground:g}",
            "STSSL_STRIDE_METERS": f"{self.needs.pixel * _stride(self.options, self.needs):g}",
        }
        if self.scene.date:
            tags["STSSL_SCENE_DATE"] = self.scene.date.isoformat()
        return tags

    def _preview(self, kept: KeptBlocks) -> Path:
        """Draw the picture of the map, and write it beside the map."""
        classes, step = sampled_classes(kept)
        down, across = pixel_meters(self.scene.crs, self.scene.transform, self.scene.height, self.scene.width)
        date = f", {self.scene.date:%Y-%m-%d}" if self.scene.date else ""
        names, colors = self.needs.classes, self.needs.colors
        picture = draw_preview(classes, names, colors, f"{self.scene.name}{date}", (step * down, step * across))
        path = self.out.with_suffix(".png")
        write_whole(path, picture)
        return path


def _keep(kept: KeptBlocks, assembly: MapAssembly, number: int, data: bytes, ready: int) -> None:
    """Write a finished block to disk, and write the rows of the map that this block completes."""
    kept.write(number, data)
    assembly.advance(ready)
