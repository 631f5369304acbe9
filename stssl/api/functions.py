"""Define the functions that users call, in the usual sequence: from a recipe and a store to the report."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from stssl.api.progress import counting, default_console, run_with_progress
from stssl.api.run import Run, RunScores
from stssl.base.config import load_tree
from stssl.base.errors import ConfigError
from stssl.recipes.catalog import find_recipe, recipe_names
from stssl.recipes.pretraining import PretrainRecipe, kind_of
from stssl.recipes.recipe import Recipe, RunRecipe, load_as

__all__ = [
    "compare",
    "convert",
    "embed",
    "evaluate",
    "export",
    "inspect_weights",
    "load_recipe",
    "load_student",
    "open_store",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "recipe_names",
    "report",
    "sweep",
    "synthesize",
    "train",
]

Given = TypeVar("Given", Run | str | Path, str | Path)
"""What a function takes one or several of."""

if TYPE_CHECKING:
    from stssl.analysis.comparison import Difference
    from stssl.analysis.costs import CostEstimate
    from stssl.analysis.probe import Probed
    from stssl.analysis.weight_report import InspectedWeights
    from stssl.archives.conversion import Summary
    from stssl.mapping.map_bands import Probabilities
    from stssl.store.store import Store
    from stssl.students.student import Student
    from stssl.sweeps.run import SweepFiles


def load_recipe(name: str | Path, overrides: Iterable[str] = (), *, smoke: bool = False) -> RunRecipe:
    """Load a recipe for training or pretraining.

    Args:
        name: Name of a recipe of the package (see `recipe_names`), or path of a YAML file.
        overrides: Changes such as `"labels.per_class=5"`.
        smoke: True to make a run of seconds: four steps, without Ray, and without weights from a hub.

    Returns:
        The recipe, with all defaults. Its sections are attributes, such as `recipe.schedule.steps`.

    Raises:
        ConfigError: The recipe does not exist, or a key or value is wrong. The message names the key and what is
            allowed.
    """
    path = find_recipe(name)
    return load_as(kind_of(load_tree(path)), path, overrides, smoke)


def synthesize(
    out: str | Path, patches: int = 2000, seed: int = 0, *, placeless: bool = False, progress: bool | None = None
) -> Path:
    """Write a synthetic archive in the file layout of BigEarthNet v1.0.

    Args:
        out: Folder to write.
        patches: Number of patches.
        seed: Seed of the contents. The same seed writes the same bytes.
        placeless: True to let labels depend on pixels only. Place and date then tell nothing.
        progress: False shows no progress.

    Returns:
        Path of the folder.
    """
    from stssl.archives.synthetic import synthesize_archive

    with counting(default_console(progress), "write", "patches") as follow:
        return synthesize_archive(Path(out), patches, seed, placeless=placeless, progress=follow)


def convert(
    source: str,
    archive: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    codec: str = "lz4",
    shard: int = 512,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = 0,
    progress: bool | None = None,
    **about: object,
) -> "Summary":
    """Convert an archive to a Zarr store. The same call resumes an interrupted conversion.

    Args:
        source: Format of the archive: `bigearthnet-v1`, `bigearthnet-v2`, `eurosat`, `eurosat-ms`, `manifest` or
            `scenes`.
        archive: Folder or file of the archive; the format `scenes` takes several.
        store: Folder or URL to write.
        codec: Compression: `lz4`, `zstd` or `none`.
        shard: Number of patches in a shard file.
        limit: Number of patches to convert, from the first on; None converts all.
        strict: True to stop at the first bad patch.
        workers: Number of Ray tasks at the same time; 0 converts in this process, None uses all CPUs.
        progress: False shows no progress.
        **about: Options of the format, such as `coordinates=` or `size=`. `stssl convert FORMAT --help` lists them.

    Returns:
        What the conversion did. `patches` and `shards` are numbers; `converted` is the number of shards that this call
        wrote; `errors` has the number of patches by kind of error; `store` is the path or URL, and `report` the path of
        the CSV file of errors.

    Raises:
        ConfigError: The format, the codec or an option is unknown.
        DataError: The archive does not exist, or the store belongs to another conversion.
    """
    from stssl.archives.conversion import Options, convert_archive

    options = Options(codec=codec, shard=shard, limit=limit, strict=strict, workers=workers)
    with counting(default_console(progress), "convert", "shards") as follow:
        return convert_archive(source, archive, store, options, follow, **about)


def open_store(path: str | Path) -> "Store":
    """Open a store that `convert` wrote.

    Args:
        path: Folder or URL of the store.

    Returns:
        The store. For example, call `store.column("lat")`, `store.read([0, 1], ["B04"])` or `store.to_xarray()`.

    Raises:
        DataError: The path has no store, or the store is damaged.
    """
    from stssl.store.store import Store

    return Store.open(path)


def train(recipe: RunRecipe | str | Path, *, progress: bool | None = None) -> Run:
    """Train a recipe to its end. The same call resumes an interrupted run, and returns a finished run at once.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        progress: False shows no progress.

    Returns:
        The finished run.

    Raises:
        StsslError: The recipe, the data or the machine does not allow the run, or training failed.
    """
    return _carried_out(recipe, Recipe, progress)


def pretrain(recipe: RunRecipe | str | Path, *, progress: bool | None = None) -> Run:
    """Pretrain a backbone without labels. To start training from it, set `model.weights=run:FOLDER`.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        progress: False shows no progress.

    Returns:
        The finished run. `Run.networks` gives its encoders.

    Raises:
        StsslError: The recipe, the data or the machine does not allow the run, or training failed.
    """
    return _carried_out(recipe, PretrainRecipe, progress)


def _carried_out(recipe: RunRecipe | str | Path, kind: type[RunRecipe], progress: bool | None) -> Run:
    given = recipe if isinstance(recipe, RunRecipe) else load_recipe(recipe)
    if not isinstance(given, kind):
        other = "stssl.pretrain" if kind is Recipe else "stssl.train"
        raise ConfigError(f"{given.name} is a recipe of {given.what}, not of {kind.what}: use {other}")
    return Run.open(run_with_progress(default_console(progress), given))


def evaluate(
    run: Run | str | Path,
    part: str = "test",
    *,
    checkpoint: str = "best",
    device: str = "auto",
    store: str | None = None,
    metadata: str = "true",
    by: Sequence[str] = (),
    bootstrap: int = 0,
    resample: Literal["blocks", "patches"] = "blocks",
    degrees: float = 1.0,
    least: int = 30,
) -> RunScores:
    """Score a run's networks on a part of its split, and write the scores into its folder.

    Args:
        run: A run or its folder.
        part: `train`, `validation` or `test`.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda` or `auto`.
        store: Path of the run's store, if the store was moved after training.
        metadata: Metadata that the networks get: `true`, `absent`, `shuffled`, `moved:500km` or `moved:90d`.
        by: Columns of the store whose values make groups, such as `country` and `season`. `block` makes squares of
            latitude and longitude, `month` the months of the year. `Run.groups` reads the scores.
        bootstrap: Number of draws for the 95 % intervals of `Run.groups`; 0 computes none.
        resample: `blocks` draws squares of nearby patches, `patches` draws single ones.
        degrees: Side of these squares in degrees.
        least: Groups with fewer patches are pooled.

    Returns:
        Scores by network (`student`, `teacher`) and name, such as `scores["student"]["accuracy"]`. One label a patch
        gives `accuracy`, several labels give `mAP`. Scores are from 0 to 1, except `loss`, in nats. NaN means that a
        score is not defined.

    Raises:
        StsslError: The run, the part or the checkpoint does not exist, or the store has changed since training. Or the
            store lacks a column of `by`, no network sees the metadata to change, or there are too few blocks.
    """
    from stssl.scoring.groups import GroupOptions
    from stssl.training.trained_run import evaluate_fully

    groups = GroupOptions(tuple(by), bootstrap, least, degrees, resample) if by or bootstrap else None
    found = evaluate_fully(_folder(run), part, checkpoint, device, store, metadata=metadata, groups=groups)
    return found.scores


def load_student(place: Run | str | Path) -> "Student":
    """Load the student of a finished run. It needs neither the run's store nor its recipe.

    Args:
        place: A run, its folder, or a file `student.safetensors`.

    Returns:
        The student, in evaluation mode. It takes stored pixel values [n, bands, H, W] and gives logits [n, classes].
        See its `bands`, `classes`, `probabilities(images)` and `predict(array)`.

    Raises:
        ConfigError: The file is no student, is damaged, is of a newer format, or does not describe itself.
    """
    from stssl.students.loading import read_student

    return read_student(_folder(place))


def compare(
    runs: Sequence[Run | str | Path],
    against: Sequence[Run | str | Path],
    part: str = "test",
    *,
    network: str = "student",
    score: str | None = None,
    draws: int = 1000,
    degrees: float = 1.0,
) -> "list[Difference]":
    """Compare recipes by their evaluated runs, paired over seeds and over test blocks.

    Args:
        runs: Runs or their folders, of one or several recipes. Runs of one recipe differ only in seeds.
        against: Runs of one other recipe, with the same seeds.
        part: `train`, `validation` or `test`.
        network: `student` or `teacher`.
        score: Name of the score; None takes `accuracy` or `mAP`.
        draws: Number of draws for the 95 % intervals, and of swaps for the p-values.
        degrees: Side of a block of patches in degrees.

    Returns:
        One entry for each recipe of `runs`. It has the mean scores `value` and `other`, their `difference`, the ends
        `low` and `high` of its 95 % interval, `p` by permutation, `holm` (p corrected for several recipes) and
        `significant`.

    Raises:
        StsslError: A run was not evaluated, or the runs have other stores, splits, classes or seeds.
    """
    from stssl.analysis.comparison import ComparisonOptions, compare_runs

    own, others = ([_folder(run) for run in group] for group in (runs, against))
    return compare_runs(own, others, ComparisonOptions(part, network, score, draws, degrees))


def export(
    run: Run | str | Path,
    format: str = "pt2",
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    license: str | None = None,
) -> Path:
    """Write a run's student for other programs, with a model card. Compare the written file with the student.

    Args:
        run: A run, its folder, or its weights file.
        format: `pt2` (torch.export), `onnx`, or `torchvision` (the layers of a ResNet, without its head).
        out: Folder to write; None takes the folder `export` inside the run's.
        bands: Three bands for `torchvision`; None takes all bands of the student.
        license: License of the weights (SPDX) for the card and the STAC item.

    Returns:
        Path of the model file.

    Raises:
        StsslError: The run has no student, the format cannot hold it, or the folder holds other files.
    """
    from stssl.exports.writing import export_run

    return export_run(_folder(run), format, out, bands=bands, license=license)


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
) -> Path:
    """Predict the map of a scene (`out` is `.tif`), or a table of patches (`out` is `.parquet`).

    Args:
        model: A run or its student; several average their probabilities.
        inputs: For a map: GeoTIFFs (one scene, one band each, or a mosaic), or a `.SAFE` folder of level 2A. For a
            table: a store, a table of images, a folder or pattern of images, or a scene, which is cut into patches.
        out: Map (a Cloud Optimized GeoTIFF) or table (a GeoParquet file, if patches have places).
        labels: For tables: label set to score against; None takes one with the model's classes.
        stride: Distance between windows in pixels; None blends windows at half their width.
        bands: Names of the bands of the files, if the files do not say them.
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
        Absolute path of the map or table. The same call resumes an interrupted map.

    Raises:
        StsslError: The model or the inputs cannot be used, they do not fit, or the output cannot be written.
    """
    from stssl.mapping.prediction import MapOptions
    from stssl.predictions.choice import predict_inputs, unit_of

    windows = MapOptions(stride, tuple(bands), resample, pixel_size, probabilities, preview, batch, device)
    options = replace(windows, workers=workers, address=ray_address, gpus=gpus)
    models, given = [_folder(one) for one in _listed(model)], list(_listed(inputs))
    with counting(default_console(progress), "predict", unit_of(given, out)) as follow:
        return predict_inputs(models, given, out, options, labels=labels, progress=follow).path


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
    """Write the features of patches, pooled over each patch: what the last layer of the model sees.

    Args:
        model: A run, its student, or a pretrained encoder.
        inputs: A store, a table of images, a folder or pattern of images, or a scene, which is cut into patches.
        out: Table (`.parquet`, a GeoParquet file if patches have places) or Zarr group (`.zarr`) to write.
        stride: Distance of a scene's patches in pixels; None lays them side by side.
        bands: Names of the bands of the files, if the files do not say them.
        resample: True accepts patches of another size than the model was trained on.
        batch: Number of patches that the model sees at a time.
        device: `cpu`, `cuda` or `auto`.
        progress: False shows no progress.

    Returns:
        Absolute path of the table or group. Its column or array `features` is [patches, width].

    Raises:
        StsslError: The model or the inputs cannot be used, they do not fit, or the output cannot be written.
    """
    from stssl.predictions.embedding import embed_patches
    from stssl.predictions.predicted_table import PatchOptions

    options = PatchOptions(tuple(bands), None, resample, stride, batch, device)
    with counting(default_console(progress), "embed", "patches") as follow:
        return embed_patches(_folder(model), list(_listed(inputs)), out, options, follow).path


def _listed(given: Given | Sequence[Given]) -> Sequence[Given]:
    """Return what a caller gave as a sequence: one thing alone becomes a sequence of one."""
    return [given] if isinstance(given, Run | str | Path) else given


def probe(
    run: Run | str | Path | None = None,
    labels: Sequence[str] = ("all",),
    seed: int = 0,
    *,
    weights: str | None = None,
    store: str | Path | None = None,
    out: str | Path | None = None,
    random: bool = False,
    fine_tune: bool = False,
    overrides: Iterable[str] = (),
) -> "Probed":
    """Measure how good the features of a pretrained backbone are, by a linear layer and k-NN.

    Args:
        run: A pretraining run or its folder. Leave it out if you give `weights`.
        labels: Number of labels of each probe: `all`, `fraction=F`, `per-class=N` or `total=N`.
        seed: Seed of the draw of labels.
        weights: Weights to probe without a run, as in the recipe key `model.weights`. Needs `store`.
        store: Path or URL of a store with labels, for `weights`.
        out: File of the scores, for `weights`. The default is `probe-<backbone>-s<seed>.json`, in the current folder.
        random: True probes random weights, for comparison. This needs a run.
        fine_tune: True also trains the whole network. This needs a run.
        overrides: Changes of the probe's own settings, such as `"epochs=50"`. With `weights`, also changes of the
            recipe's data and network, such as `"model.image_size=128"`.

    Returns:
        `rows`, a list of dicts, one for each number of labels and method (`linear`, `k-NN`, `fine-tune`). The keys are
        `weights`, `method`, `labels`, `labeled` (number of labeled patches), and scores by name in `validation` and
        `test`, from 0 to 1. `path`, the file with these rows.

    Raises:
        StsslError: The folder has no pretraining run, the run has no checkpoint, the weights do not exist, or the store
            has no labels.
    """
    if weights is not None:
        from stssl.analysis.weights_probe import probe_weights

        if run is not None or store is None or random or fine_tune:
            raise ConfigError("probe: weights need a store, and go with no run, no random and no fine-tuning")
        target = None if out is None else Path(out)
        return probe_weights(weights, str(store), labels, seed, overrides=overrides, out=target)
    from stssl.analysis.probe import probe_run

    if run is None or store is not None or out is not None:
        raise ConfigError("probe: give the folder of a pretraining run, or weights and a store")
    return probe_run(_folder(run), labels, seed, random=random, fine_tune=fine_tune, overrides=overrides)


def inspect_weights(file: str | Path) -> "InspectedWeights":
    """Say what is in a file of weights, of this or another program. Run no code from it.

    Args:
        file: The file. See the recipe key `model.weights` for those that can be read.

    Returns:
        Layout, size, bands, the backbones that the weights fit, and what was not understood; `lines()` gives it as
        text.

    Raises:
        ConfigError: The file cannot be read, or it holds no network.
    """
    from stssl.analysis.weight_report import report_of_weights

    return report_of_weights(file)


def sweep(
    file: str | Path, overrides: Iterable[str] = (), *, top: int = 0, seeds: int = 5, progress: bool | None = None
) -> "SweepFiles":
    """Search recipe keys. The same call resumes an interrupted sweep.

    Args:
        file: Name of a sweep of the package, such as `sweeps/cpu`, or path of a YAML file.
        overrides: Changes such as `"trials=20"` or `"change.labels.per_class=5"`.
        top: Number of best trials to train again with other seeds; 0 trains none again.
        seeds: Number of seeds for each of these trials.
        progress: False shows no progress. By default, each trial that ends is shown as a line.

    Returns:
        `best`, the path of the best recipe (YAML), and `report`, the path of a page about the sweep.

    Raises:
        StsslError: The sweep file is wrong, or no trial reached its first validation.
    """
    from stssl.sweeps.run import run_sweep

    console = default_console(progress)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return run_sweep(find_recipe(file), overrides, say, top, seeds)


def plan(
    recipe: RunRecipe | str | Path,
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    link: float = 10.0,
    steps: int = 5,
) -> "CostEstimate":
    """Predict a run's time, memory and traffic from a few real steps on this machine.

    Args:
        recipe: Recipe from `load_recipe`, or a recipe's name or path.
        nodes: Number of machines.
        gpus_per_node: Number of workers on each machine; None divides the recipe's workers among the machines.
        link: Speed of the network between machines, in Gbit/s.
        steps: Number of steps to time.

    Returns:
        The estimate, with fields such as `steps` and `validations` (numbers), `share.step` (seconds of computing a
        step), `exchange` (seconds a step to sum gradients), `gradients` and `checkpoint` (bytes). The function
        `stssl.analysis.describe_costs(estimate)` makes the text of `stssl plan`.

    Raises:
        StsslError: The recipe is wrong, or a step does not fit into memory.
    """
    from stssl.analysis.planning import machines_for, plan_run

    given = recipe if isinstance(recipe, RunRecipe) else load_recipe(recipe)
    return plan_run(given, machines_for(given, nodes, gpus_per_node, link), steps)


def report(runs: Sequence[Run | str | Path], out: str | Path = "report.html") -> Path:
    """Write one HTML page about runs, with scores, curves, classes, maps of errors, and recipes.

    Args:
        runs: Runs or their folders.
        out: File to write.

    Returns:
        Absolute path of the page.

    Raises:
        StsslError: No folder has an evaluated training run, or the page cannot be written.
    """
    from stssl.analysis.report import write_report

    return write_report([_folder(run) for run in runs], Path(out))


def _folder(run: Run | str | Path) -> Path:
    return run.path if isinstance(run, Run) else Path(run)
