"""Load the networks of a trained run from a checkpoint, and score them on a part of its data, such as `test`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from stssl import __version__
from stssl.base.arrays import Ints
from stssl.base.batch import Progress
from stssl.base.errors import ConfigError, DataError, RunError
from stssl.base.json_types import JsonObject
from stssl.base.logs import LOG
from stssl.base.paths import store_given
from stssl.data.views import PixelScaler
from stssl.models.layout import placed
from stssl.recipes.build import as_trained, build_pixels, build_step
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import RunData, open_data, open_pixels, require_labels
from stssl.recipes.sections import DataConfig
from stssl.recipes.starting import choose_scaling
from stssl.scoring.changed_metadata import MetadataChange, changed_metadata, parse_change, require_known
from stssl.scoring.evaluation import (
    Evaluation,
    batches,
    predict_rows,
    save_evaluations,
    score_logits,
    share_of_batches,
)
from stssl.scoring.group_files import save_groups
from stssl.scoring.groups import GroupOptions, GroupScores, check_options, score_groups
from stssl.scoring.metrics import diverged
from stssl.steps.teacher_student import TeacherStudentStep
from stssl.training.checkpoints import CheckpointState, UnusableError, does_not_fit, read_state, require_state
from stssl.training.run_folder import RunFolder
from stssl.training.teacher_student_task import calibrate


@dataclass(frozen=True)
class TrainedRun:
    """Combine the networks of a trained run, with the weights of a checkpoint, and the data to score them on.

    Attributes:
        folder: Folder of the run.
        recipe: Recipe of the run. If the store was moved, the recipe names its new path.
        data: Open store, the numbers of its training, validation and test patches, and labels.
        step: Training step with the networks, which have the checkpoint's weights.
        pixels: Module that scales stored bands to images.
        steps: Number of steps taken before the checkpoint.
    """

    folder: RunFolder
    recipe: Recipe
    data: RunData
    step: TeacherStudentStep
    pixels: PixelScaler
    steps: int

    @property
    def progress(self) -> Progress:
        """Return the number of the last step that trained the weights and the number of all steps, as a `Progress`."""
        return Progress(self.steps - 1, self.recipe.schedule.steps)


def load_run(
    folder: RunFolder | str | Path,
    checkpoint: str = "best",
    device: torch.device | str = "auto",
    store: str | None = None,
) -> TrainedRun:
    """Load a run's recipe, data and trained networks, and return them.

    Args:
        folder: Folder of the run, or its path.
        checkpoint: `best` or `last`.
        device: Device of the networks, or one of `cpu`, `cuda` and `auto`.
        store: Path of the run's store, if the store was moved after training.

    Raises:
        ConfigError: The checkpoint or the device is unknown.
        RunError: The folder has no run, or a run of a release that is too old. The checkpoint is missing or damaged.
            Or the store has changed since the run was trained.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder.existing(folder)
    device = device if isinstance(device, torch.device) else device_of(device)
    require_name(checkpoint)
    path = folder.checkpoints.path(checkpoint)
    if not folder.checkpoints.has(checkpoint):
        if not folder.checkpoints.exist():
            raise RunError(f"{folder.place} has no {checkpoint} checkpoint yet. Train it to its first evaluation.")
        if checkpoint == "best" and never_finite(folder):
            raise RunError(
                f"{folder.place} has no best checkpoint: no validation had finite predictions so far. Give "
                "--checkpoint last to see the last one."
            )
    recipe = folder.recipe_as(Recipe)
    expected = recipe.hash()
    recipe = recipe.model_copy(update={"data": with_store(recipe.data, store)})
    data = open_data(recipe)
    folder.require_store(data.store)
    state = read_own_state(folder, path, expected)
    step = build_step(as_trained(recipe), data)
    # Skip the state of neighbor votes: only training uses it, and it is as large as the training part.
    weights = {name: value for name, value in state["step"].items() if not str(name).startswith("votes.")}
    try:
        step.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise does_not_fit(path, state, error) from None
    memory = placed(step, device)
    scaling = choose_scaling(recipe.data, data, recorded=folder.read_record()[1])
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, memory, scaling).to(device)
    return TrainedRun(folder, recipe, data, step, pixels, steps=int(state["progress"]["step"]))


def with_store(config: DataConfig, store: str | None) -> DataConfig:
    """Return `config`, the section `data` of a run's recipe, with `store` as the store's path; None keeps the path."""
    return config if store is None else config.model_copy(update={"store": store_given(store, "--store")})


def read_inputs(
    folder: RunFolder, rows: Ints, device: torch.device, store: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read patches of a run's store as its networks expect them, without augmentation.

    Args:
        folder: Folder of the run.
        rows: Numbers of n patches in the store, in any sequence.
        device: Device of the result.
        store: Path of the run's store, if the store was moved after training.

    Returns:
        Images [n, bands, H, W] and metadata [n, 4] (latitude, longitude, day, hour; NaN if unknown), in the sequence
        of `rows`.

    Raises:
        ConfigError: `rows` is empty.
        DataError: The store has no such row, or it is damaged.
        RunError: The store has changed since the run was trained.
    """
    recipe = folder.recipe()
    data = open_pixels(with_store(recipe.data, store))
    folder.require_store(data.store)
    if not len(rows):
        raise ConfigError("give the number of at least one row of the store")
    if rows.min() < 0 or rows.max() >= data.store.size:
        raise DataError(f"{data.store.path} has the rows 0 to {data.store.size - 1}, not {rows.min()} to {rows.max()}")
    scaling = choose_scaling(recipe.data, data, recorded=folder.read_record()[1])
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, torch.contiguous_format, scaling).to(device)
    read = list(batches(data, pixels, rows, recipe.evaluation.batch))
    return torch.cat([image for image, _ in read]), torch.cat([metadata for _, metadata in read])


def require_name(checkpoint: str) -> None:
    """Check that a checkpoint's name is `best` or `last`.

    Raises:
        ConfigError: The name is another one.
    """
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"unknown checkpoint '{checkpoint}': give best or last")


def never_finite(folder: RunFolder) -> bool:
    """Return True if a run has checkpoints but no best one, because no validation had finite predictions."""
    states = [state for _, state in folder.checkpoints.newest() if not isinstance(state, UnusableError)]
    return bool(states) and not states[0]["progress"].get("best_step")


def read_own_state(folder: RunFolder, path: Path, recipe: str, advice: str = "") -> CheckpointState:
    """Read a checkpoint of a run, check that it belongs to this run, and return its state.

    Args:
        folder: Folder of the run.
        path: File of the checkpoint. If the best checkpoint is lost, a copy of it is read.
        recipe: Hash of the run's recipe. If an earlier version wrote the checkpoint, the hash in the run's record is
            accepted, too.
        advice: Sentence that says what to do if the checkpoint cannot be used. The default names another checkpoint.

    Raises:
        RunError: The checkpoint is damaged or belongs to another run. The message says what to use instead.
    """
    best = path == folder.checkpoints.path("best")
    try:
        state = folder.checkpoints.best() if best else require_state(read_state(path), path)
        earlier = folder.read_record()[1].get("recipe_hash") if state.get("written_by") != __version__ else None
        return require_state(state, path, recipe if state["recipe"] != earlier else None)
    except UnusableError as error:
        other = "last" if best else "best"
        whole = f"Give --checkpoint {other}, or put" if folder.checkpoints.has(other) else "Put"
        raise RunError(f"{error}. {advice or f'{whole} a whole one back.'}") from None


@dataclass(frozen=True)
class EvaluationFiles:
    """Describe an evaluation of a run: its scores, and the path of the file with these scores.

    Attributes:
        scores: Scores by network and by name of the score.
        groups: Scores of groups of patches; None if no groups were asked for.
        path: JSON file with the scores. The other files lie beside it.
        patches: Number of scored patches.
    """

    scores: dict[str, dict[str, float]]
    groups: GroupScores | None
    path: Path
    patches: int


def evaluate_run(
    path: str | Path, part: str, checkpoint: str = "best", device: str = "auto", store: str | None = None
) -> dict[str, dict[str, float]]:
    """Score a run's networks on a part of the data, and write the scores and logits to the folder `evaluation`.

    The networks get the true metadata. `part` is `train`, `validation` or `test`, `checkpoint` is `best` or `last`, and
    `device` is `cpu`, `cuda` or `auto`. `store` is the path of the run's store, if it was moved after training.

    Returns:
        Scores by network and by score name.
    """
    return evaluate_fully(path, part, checkpoint, device, store).scores


def evaluate_fully(
    path: str | Path,
    part: str,
    checkpoint: str = "best",
    device: str = "auto",
    store: str | None = None,
    *,
    metadata: str = "true",
    groups: GroupOptions | None = None,
    elsewhere: "Elsewhere | None" = None,
) -> EvaluationFiles:
    """Score a run's networks on a part of the data, and write the scores and logits to the folder `evaluation`.

    Args:
        path: Path or URL of the run's folder.
        part: `train`, `validation` or `test`.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda` or `auto`.
        store: Path of the run's store, if the store was moved after training.
        metadata: Metadata that the networks get: `true`, `absent`, `shuffled`, `moved:500km` or `moved:90d`. Files of
            changed metadata get its name.
        groups: Groups of patches to score separately, and how to compute intervals; None scores no groups.
        elsewhere: Function that predicts on several workers, such as `predict_on_ray`; None predicts in this process.

    Returns:
        Scores by network and by score name, and scores of groups. The networks are the `student` (averaged weights),
        and the `teacher` if the run has one.

    Raises:
        ConfigError: The part, the checkpoint or the device is unknown. Or no network sees the metadata to change, or
            the groups cannot be made.
        DataError: No patch of the part has a known label.
        RunError: The folder has no run, or a run of a release that is too old. The checkpoint is missing or damaged.
            Or the store has changed since the run was trained.
    """
    change = parse_change(metadata)
    trained = load_run(path, checkpoint, "cpu" if elsewhere else device, store)
    recipe, data = trained.recipe, trained.data
    # Find an unknown part now: the computations below take minutes before they would raise an error.
    rows = torch.from_numpy(data.split.part(part))
    _require_seen(recipe, change)
    require_known(data.metadata[rows], change, part)
    if groups:
        check_options(data, part, groups)
    asked = AskedLogits(trained.folder.place, part, checkpoint, device, store, metadata)
    results = _evaluated_elsewhere(trained, asked, elsewhere) if elsewhere else _evaluated_here(trained, part, change)
    for network, result in results.items():
        if diverged(result.scores):
            LOG.warning("the %s's predictions on %s are not finite, so they have no scores", network, part)
    file = save_results(trained, results, part, change, checkpoint)
    found = score_groups(results, data, groups) if groups else None
    if found and groups:
        about = _about(trained, change, checkpoint)
        save_groups(found, groups, file.with_name(f"{file.stem}-groups"), about | {"part": part})
    trained.folder.publish()
    scores = {network: result.scores for network, result in results.items()}
    return EvaluationFiles(scores, found, file, len(results["student"].rows))


class AskedLogits(NamedTuple):
    """Say which logits other processes must compute.

    Attributes:
        path: Path or URL of the run's folder.
        part: Part of the data: `train`, `validation` or `test`.
        checkpoint: `best` or `last`.
        device: `cpu`, `cuda` or `auto`.
        store: Path of the run's store, if the store was moved after training.
        metadata: Metadata that the networks get, such as `true` or `moved:500km`.
    """

    path: str
    part: str
    checkpoint: str
    device: str
    store: str | None
    metadata: str


Elsewhere = Callable[[AskedLogits], dict[str, torch.Tensor]]
"""Type of a function that computes logits [patches, classes] of each network, by the network's name."""


def _evaluated_here(trained: TrainedRun, part: str, change: MetadataChange) -> dict[str, Evaluation]:
    """Score each network of `trained` in this process, on the patches of `part` with metadata changed by `change`.

    Return the evaluations by network.
    """
    calibrate(trained.step, trained.recipe, trained.data, trained.pixels, trained.progress)
    return score_networks(trained, part, trained.data.split.part(part), change)


def score_networks(
    trained: TrainedRun, part: str, rows: Ints, change: MetadataChange, known: Mapping[str, Evaluation] | None = None
) -> dict[str, Evaluation]:
    """Score the networks of a run on some patches with changed metadata. Call `calibrate` before.

    Args:
        trained: The run. `calibrate` has computed the BatchNorm statistics of its networks.
        part: Name of the patches, for messages.
        rows: [n] numbers of the patches in the store.
        change: How to change the metadata of the patches.
        known: Evaluations by network that the change cannot alter. They are not computed again.

    Returns:
        Evaluation of each network, by its name.

    Raises:
        DataError: No patch has a known label.
    """
    step, data, pixels, found = trained.step, trained.data, trained.pixels, dict(known or {})
    require_labels(data.targets[torch.from_numpy(rows)], part)
    shown, batch = _with_metadata(data, torch.from_numpy(rows), change), trained.recipe.evaluation.batch
    for name in _networks(step):
        if name not in found:
            logits = predict_rows(step.predictor(name), shown, pixels, rows, batch)
            found[name] = score_logits(logits, data, rows, pixels.low.device)
    return {name: found[name] for name in _networks(step)}


def save_results(
    trained: TrainedRun, results: Mapping[str, Evaluation], part: str, change: MetadataChange, checkpoint: str
) -> Path:
    """Write the scores and logits of a run's networks to its folder `evaluation`.

    Args:
        trained: The run.
        results: Evaluation of each network, by its name.
        part: Name of the patches.
        change: Change of their metadata.
        checkpoint: `best` or `last`.

    Returns:
        Path of the JSON file with the scores. The file with the logits lies beside it.
    """
    file = evaluation_file(trained.folder.path, part, change)
    # Pass the data with the true metadata, not with the changed one: maps need the true places.
    save_evaluations(results, trained.data, part, file, _about(trained, change, checkpoint))
    return file


def evaluation_file(folder: Path, part: str, change: MetadataChange) -> Path:
    """Return the path of the JSON file with a run's scores on a part, with changed metadata.

    Args:
        folder: Folder of the run.
        part: Name of the patches.
        change: Change of their metadata.
    """
    return folder / "evaluation" / f"{part}{change.suffix}.json"


def _about(trained: TrainedRun, change: MetadataChange, checkpoint: str) -> JsonObject:
    about: JsonObject = {"checkpoint": checkpoint, "step": trained.steps, "name": trained.recipe.name}
    return about | {"recipe_hash": trained.recipe.hash(), "metadata": str(change)}


def _evaluated_elsewhere(trained: TrainedRun, asked: AskedLogits, elsewhere: Elsewhere) -> dict[str, Evaluation]:
    """Score each network of `trained` from logits that other processes compute. Return the evaluations by network.

    `asked` says which logits; `elsewhere` is the function that lets other processes compute them.
    """
    rows = trained.data.split.part(asked.part)
    require_labels(trained.data.targets[torch.from_numpy(rows)], asked.part)
    return {name: score_logits(logits, trained.data, rows, logits.device) for name, logits in elsewhere(asked).items()}


def predict_share(asked: AskedLogits, share: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Compute the logits of each network of a run for one worker's share of the patches.

    Args:
        asked: Run, part of the data, and metadata of the logits to compute.
        share: Number of the worker, counted from 0, and number of workers.

    Returns:
        [patches of the share, classes] logits by network, on the CPU.
    """
    trained = load_run(asked.path, asked.checkpoint, asked.device, asked.store)
    recipe, data, step, pixels = trained.recipe, trained.data, trained.step, trained.pixels
    rows = data.split.part(asked.part)
    calibrate(step, recipe, data, pixels, trained.progress)
    shown = _with_metadata(data, torch.from_numpy(rows), parse_change(asked.metadata))
    own, batch = share_of_batches(rows, recipe.evaluation.batch, share), recipe.evaluation.batch
    return {name: predict_rows(step.predictor(name), shown, pixels, own, batch) for name in _networks(step)}


def _networks(step: TeacherStudentStep) -> tuple[str, ...]:
    """Return the names of the networks of `step` to score: `student` and, if the run has one, `teacher`."""
    return ("student", "teacher")[: len(step.networks)]


def _with_metadata(data: RunData, rows: torch.Tensor, change: MetadataChange) -> RunData:
    """Return a copy of the data in which the metadata of the patches numbered `rows` is changed as `change` says."""
    table = data.metadata.clone()
    table[rows] = changed_metadata(table[rows], change)
    return replace(data, metadata=table)


def _require_seen(recipe: Recipe, change: MetadataChange) -> None:
    """Check that a network of the run gets metadata, if `change` changes it. Otherwise, this would have no effect.

    Raises:
        ConfigError: The metadata must change, but the run has only a student, which sees only images.
    """
    if change.kind != "true" and recipe.model.metadata == "none":
        raise ConfigError(
            f"--metadata {change}: {recipe.name} has model.metadata=none, so its student sees no place and no date. "
            "Evaluate a run with a teacher, or with model.metadata=direct."
        )


def device_of(name: str) -> torch.device:
    """Return the device that `cpu`, `cuda` or `auto` names. `auto` means the GPU, if there is one, else the CPU.

    Raises:
        ConfigError: The name is unknown, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{name}': give cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no GPU that PyTorch can use: give device cpu or auto")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
