"""Probe a pretrained backbone: k-NN and a linear layer on frozen features, or fine-tuning.

The linear layer follows Ayush et al., ICCV 2021 (arXiv:2011.09980): SGD with learning rate 30 and no weight decay, 100
epochs, a tenth of the rate after 60 epochs and again after 80. The best epoch on validation is scored once on test.
Features are computed once.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stssl.algorithms.losses import cross_entropy
from stssl.base.arrays import Ints
from stssl.base.config import Config, Positive, Threads, apply_overrides, merge, validate
from stssl.base.errors import ConfigError, RunError
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.randomness import RandomStream, permutation
from stssl.base.whole_files import is_there
from stssl.contrastive.step import PretrainEncoder
from stssl.data.draws import LabelsConfig, draw_labeled
from stssl.data.splits import PARTS
from stssl.models.layout import memory_format, placed
from stssl.recipes.build import build_pixels
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import PixelData, labels_of, open_pixels, require_labels
from stssl.scoring.evaluation import without_nan
from stssl.scoring.knn import embed, vote
from stssl.scoring.metrics import headline, score
from stssl.training.checkpoints import does_not_fit
from stssl.training.contrastive_task import QUERY, build_encoder
from stssl.training.launch import run
from stssl.training.run_files import ProbeFile, read_run_file
from stssl.training.run_folder import RunFolder, write_text
from stssl.training.trained_run import evaluate_run, never_finite, read_own_state

ProbeResult = dict[str, Any]
"""Results of one method and number of labels, as their file has them: settings, and scores by part."""
COOLER = "Pretrain with a lower optimizer.lr, optimizer.clip=1.0 or compute.precision=fp32, as name=ANOTHER."
"""Advice where pretraining diverged."""


class LinearConfig(Config):
    """Configure a probe.

    Attributes:
        lr: Learning rate of the linear layer, for features of unit size.
        epochs: Epochs of the linear layer.
        batch: Patches of one of its steps.
        k: Neighbors that vote in k-NN.
        temperature: Similarities are divided by it before neighbors vote.
        fine_tune_lr: Learning rate of fine-tuning.
        fine_tune_steps: Steps of fine-tuning.
        threads: CPU threads; None for as many as torch takes.
    """

    lr: Annotated[float, Field(gt=0)] = 30.0
    epochs: Positive = 100
    batch: Positive = 256
    k: Positive = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    fine_tune_lr: Annotated[float, Field(gt=0)] = 1e-3
    fine_tune_steps: Positive = 2_000
    threads: Threads | None = None


@dataclass(frozen=True)
class Probed:
    """Hold the results of a probe.

    Attributes:
        rows: One for each method and number of labels: weights, method, labels, labeled, validation and test scores.
        path: File that has them.
    """

    rows: list[ProbeResult]
    path: Path


@dataclass(frozen=True)
class Frozen:
    """Hold the frozen features of all patches.

    Attributes:
        features: [n, width] of each part.
        targets: [n, G] choice ids of each part.
        train: [n] store rows of the training part, ascending.
    """

    features: dict[str, Tensor]
    targets: dict[str, Tensor]
    train: Ints

    def labeled(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return features [n, width] and choice ids [n, G] of labeled store rows [n]."""
        places = torch.from_numpy(np.searchsorted(self.train, rows))
        return self.features["train"][places], self.targets["train"][places]


def probe_run(
    path: Path,
    labels: Sequence[str],
    seed: int = 0,
    *,
    random: bool = False,
    fine_tune: bool = False,
    overrides: Iterable[str] = (),
) -> Probed:
    """Probe a pretraining run and write `probe/<weights>-s<seed>.json` in its folder.

    Args:
        path: Folder of the pretraining run.
        labels: Number of labels of each probe: `all`, `fraction=F`, `per-class=N` or `total=N`.
        seed: Seed of the draw of labels, of the new layer and of its batches.
        random: True to probe random weights, as a control, instead of the best checkpoint.
        fine_tune: True to train the whole network too, in a supervised run in the same folder.
        overrides: `key=value` changes to `LinearConfig`.

    Raises:
        ConfigError: A number of labels or a setting is wrong.
        DataError: No validation patch or no test patch has a label.
        RunError: The folder is no pretraining run's, or has no checkpoint yet.
    """
    folder = RunFolder.existing(path)
    recipe = folder.recipe_as(PretrainRecipe)
    options = validate(LinearConfig, apply_overrides({}, overrides), "probe")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rules = {text: label_rule(text, seed) for text in labels}
    data = open_pixels(recipe.data)
    folder.require_store(data.store)
    space, targets = labels_of(data.store, recipe.data.labels)
    encoder, step = load_encoder(folder, recipe, random)
    for part in ("validation", "test"):
        require_labels(targets[torch.from_numpy(data.split.part(part))], part)
    frozen = freeze(encoder, recipe, data, targets)
    weights = "random" if random else "pretrained"
    target = folder.path / "probe" / f"{weights}-s{seed}.json"
    rows: list[ProbeResult] = []
    for text, rule in rules.items():
        positives = space.positives(targets).numpy().astype(np.int64)
        labeled = np.sort(draw_labeled(positives, data.split.train, rule, None))
        about = {"weights": weights, "labels": text, "labeled": len(labeled), "seed": seed, "step": step}
        own = frozen.labeled(labeled)
        rows.append(about | {"method": "linear"} | linear(own, frozen, space, options, seed))
        rows.append(about | {"method": "k-NN"} | knn_rows(own, frozen, space, options))
        if fine_tune:
            rows.append(
                about | {"method": "fine-tune"} | tuned(folder, recipe, rule, options, random=random, name=text)
            )
        rows = [row | {"protocol": options.model_dump()} for row in rows]
        # Written after each number of labels, so that an interrupted probe keeps the earlier ones.
        written = _kept(target, rows) + rows
        write_text(target, json.dumps(without_nan({"rows": [*written]}), indent=1))
    return Probed(written, target)


def _kept(path: Path, fresh: list[ProbeResult]) -> list[ProbeResult]:
    """Read the rows of the same weights and settings that an earlier call wrote and this one does not replace."""
    new = {(row["method"], row["labels"]) for row in fresh}
    same = {(row["step"], json.dumps(row["protocol"])) for row in fresh}
    before = read_run_file(ProbeFile, path, "Remove it, and probe again.")[1]["rows"] if is_there(path) else []
    return [
        row
        for row in before
        if (row["method"], row["labels"]) not in new and (row.get("step"), json.dumps(row.get("protocol"))) in same
    ]


def label_rule(text: str, seed: int) -> LabelsConfig:
    """Parse how many labels a probe learns from.

    Raises:
        ConfigError: The text is not `all`, `fraction=F`, `per-class=N` or `total=N`.
    """
    name, _, value = text.partition("=")
    key = name.replace("-", "_")
    if text == "all":
        return LabelsConfig(seed=seed)
    if key not in ("fraction", "per_class", "total") or not value:
        raise ConfigError(f"--labels {text}: give all, fraction=0.01, per-class=20 or total=80")
    return validate(LabelsConfig, apply_overrides({"seed": seed}, [f"{key}={value}"]), f"--labels {text}")


def load_encoder(folder: RunFolder, recipe: PretrainRecipe, random: bool) -> tuple[PretrainEncoder, int]:
    """Load the best checkpoint's encoder in evaluation mode, or make a random one.

    Args:
        folder: Folder of the pretraining run.
        recipe: Recipe of that run.
        random: True for random weights, the control.

    Returns:
        The encoder and the step it was saved at, 0 for a random one.

    Raises:
        RunError: The run has no checkpoint yet, or its features never were finite.
    """
    path = folder.checkpoints.path("best")
    if not folder.checkpoints.exist() and not is_there(path):
        raise RunError(f"{folder.path} has no checkpoint yet. Pretrain it to its first evaluation.")
    if not is_there(path) and never_finite(folder):
        raise RunError(f"{folder.path} is of no use so far: its features were not finite. {COOLER}")
    state = read_own_state(
        folder, path, recipe.hash(), f"Put a whole one back, or delete {folder.path} and pretrain it again."
    )
    torch.manual_seed(recipe.seed)
    model = recipe.model.model_copy(update={"weights": "none"})
    encoder = build_encoder(model, len(recipe.data.bands), recipe.pretext.projection, recipe.pretext.mlp)
    if not random:
        own = {key.removeprefix(QUERY): value for key, value in state["step"].items() if str(key).startswith(QUERY)}
        try:
            encoder.backbone.load_state_dict(own)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise does_not_fit(path, state, error) from None
    placed(encoder.eval(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return encoder, 0 if random else int(state["progress"]["step"])


def freeze(encoder: PretrainEncoder, recipe: PretrainRecipe, data: PixelData, targets: Tensor) -> Frozen:
    """Compute the features of all parts, standardized by the training part's mean and standard deviation.

    Args:
        encoder: Network whose features are probed, in evaluation mode.
        recipe: Recipe of its run.
        data: Store and split.
        targets: [N, G] choice ids of all store rows.
    """
    device = next(encoder.parameters()).device
    memory = memory_format(encoder, device)
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, memory).to(device)
    rows = {part: np.sort(data.split.part(part)) for part in PARTS}
    found = {part: embed(encoder.features, data, pixels, rows[part], recipe.evaluation.batch) for part in PARTS}
    if not all(bool(torch.isfinite(values).all()) for values in found.values()):
        raise RunError(f"features of some patches are not finite, so there is nothing to probe. {COOLER}")
    mean, deviation = found["train"].mean(0), found["train"].std(0).clamp_min(1e-6)
    features = {part: ((values - mean) / deviation).cpu() for part, values in found.items()}
    return Frozen(features, {part: targets[torch.from_numpy(rows[part])] for part in PARTS}, rows["train"])


def linear(
    labeled: tuple[Tensor, Tensor], frozen: Frozen, space: LabelSpace, options: LinearConfig, seed: int
) -> ProbeResult:
    """Train a linear layer on frozen features and score it at its best epoch on validation.

    Args:
        labeled: Features [n, width] and choice ids [n, G] to learn from.
        frozen: Features and choice ids of all parts.
        space: Classes and kind of task.
        options: Settings of the layer's training.
        seed: Seed of the layer's weights and batches.

    Returns:
        The `epoch` that was best, and its scores on `validation` and `test`.
    """
    features, targets = labeled
    torch.manual_seed(seed)
    layer = nn.Linear(features.shape[1], len(space.classes))
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    # The protocol's rate is for features of unit size; standardized ones are larger by the root of their number.
    rate = options.lr / features.shape[1]
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    best, chosen, at = -float("inf"), layer, 0  # epoch 0 and the untrained layer, if no epoch has a finite score
    for epoch in range(options.epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.1 ** ((epoch >= 0.6 * options.epochs) + (epoch >= 0.8 * options.epochs))
        order = torch.from_numpy(permutation(len(features), seed, RandomStream.PROBE, epoch).copy())
        for rows in torch.split(order, options.batch):
            loss: Tensor = cross_entropy(space.grouped(layer(features[rows])), targets[rows]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimizer.step()
        value = _scores(layer, frozen, space, "validation")[headline(space)]
        if value > best:
            best, chosen, at = value, copy.deepcopy(layer), epoch + 1
    if not at:
        LOG.warning(
            "the linear layer had finite predictions at no epoch, so it has no scores: try a lower --set lr=..."
        )
    return {"epoch": at} | {part: _scores(chosen, frozen, space, part) for part in ("validation", "test")}


@torch.no_grad()
def _scores(layer: nn.Module, frozen: Frozen, space: LabelSpace, part: str) -> dict[str, float]:
    return score(layer(frozen.features[part]), frozen.targets[part], space)[0]


@torch.no_grad()
def knn_rows(labeled: tuple[Tensor, Tensor], frozen: Frozen, space: LabelSpace, options: LinearConfig) -> ProbeResult:
    """Score k-NN among the labeled patches on validation and test.

    Args:
        labeled: Features [n, width] and choice ids [n, G] to vote with.
        frozen: Features and choice ids of all parts.
        space: Classes and kind of task.
        options: Settings of the probe, with the number of neighbors.
    """
    bank, targets = labeled
    found = {}
    for part in ("validation", "test"):
        query = frozen.features[part]
        logits = vote(query, bank, targets, space, k=options.k, temperature=options.temperature)
        found[part] = score(logits, frozen.targets[part], space)[0]
    return found


def tuned(
    folder: RunFolder, recipe: PretrainRecipe, rule: LabelsConfig, options: LinearConfig, *, random: bool, name: str
) -> ProbeResult:
    """Fine-tune the whole network in a supervised run, from pretrained or random weights, and score it.

    Args:
        folder: Folder of the pretraining run.
        recipe: Recipe of that run.
        rule: Labels to learn from.
        options: Settings of the probe.
        random: True for random weights, the control.
        name: Name of the supervised run.
    """
    steps = options.fine_tune_steps
    tree = {
        "name": f"fine_tune-{'random' if random else 'pretrained'}-{name.replace('=', '')}-s{rule.seed}",
        "data": recipe.data.model_dump(mode="json"),
        "labels": rule.model_dump() | {"allow_missing_classes": True},
        "model": merge(recipe.model.model_dump(), {"weights": "none" if random else f"run:{folder.path}"}),
        "algorithm": {"name": "supervised"},
        "batch": {"labeled": 64, "unlabeled_ratio": 0},
        "augment": {"strong_labeled": True},
        "optimizer": {"lr": options.fine_tune_lr},
        "schedule": {"steps": steps, "evaluate_every": max(1, steps // 8)},
        "ema": {"decay": 0.0},
        "evaluation": recipe.evaluation.model_dump(),
        "compute": recipe.compute.model_dump(),
        "launch": merge(recipe.launch.model_dump(mode="json"), {"storage": str(folder.path / "probe")}),
        "logging": {"tensorboard": False},
        "seed": rule.seed,
    }
    done = run(validate(Recipe, tree, f"fine-tuning of {folder.path}"))
    return {part: evaluate_run(done.path, part)["student"] for part in ("validation", "test")}
