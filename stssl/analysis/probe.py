"""Probe a pretrained backbone with labels: k-NN and a linear layer on frozen features, or fine-tuning.

The linear layer follows Ayush et al., ICCV 2021 (arXiv:2011.09980). It is trained for 100 epochs by SGD without weight
decay. The learning rate is divided by ten after 60 epochs, and again after 80. By default it is 30 / width on
standardized features; the authors' is 1 on raw features (`lr: 1, features: raw`). The epoch with the best validation
score is scored once on test. Features are computed once.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stssl.algorithms.losses import cross_entropy
from stssl.base.arrays import Ints
from stssl.base.config import apply_overrides, merge, validate
from stssl.base.errors import ConfigError, RunError
from stssl.base.labels import LabelSpace
from stssl.base.logs import LOG
from stssl.base.paths import below
from stssl.base.randomness import RandomStream, permutation
from stssl.base.whole_files import is_there
from stssl.contrastive.step import PretrainEncoder
from stssl.data.draws import LabelsConfig, draw_labeled
from stssl.data.splits import PARTS
from stssl.models.layout import memory_format
from stssl.recipes.build import build_pixels
from stssl.recipes.pretraining import PretrainRecipe, ProbeConfig
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import PixelData, labels_of, open_pixels, require_labels
from stssl.recipes.starting import ChosenScaling, choose_scaling
from stssl.scoring.evaluation import without_nan
from stssl.scoring.knn import features_of_rows, vote
from stssl.scoring.metrics import headline, score
from stssl.training.launch import run
from stssl.training.pretrained_run import COOLER, load_pretrained
from stssl.training.run_files import ProbeFile, read_run_file
from stssl.training.run_folder import RunFolder, write_text
from stssl.training.trained_run import evaluate_run

ProbeResult = dict[str, Any]
"""Settings and scores of one probing method with one number of labels, as in the probe's file."""


@dataclass(frozen=True)
class Probed:
    """Hold the scores of all probes of one pretrained backbone, and the path of the file with these scores.

    Attributes:
        rows: One entry for each method (such as `linear` or `k-NN`) and number of labels. It has the keys `weights`,
            `method`, `labels`, `labeled` (number of labeled patches), `validation` and `test` (scores by name).
        path: File with these entries: its path, or its URL in an object store.
    """

    rows: list[ProbeResult]
    path: Path | str


@dataclass(frozen=True)
class Frozen:
    """Hold the features of all patches, computed once by the pretrained backbone, and their labels.

    Attributes:
        features: By part of the data (`train`, `validation`, `test`): [n, width] features of its n patches.
        targets: By part: labels of its n patches, [n, 1] class ids (single-label) or [n, classes] zeros and ones
            (multi-label); `IGNORED` if unknown.
        train: [n] row numbers of the training patches in the store, ascending.
    """

    features: dict[str, Tensor]
    targets: dict[str, Tensor]
    train: Ints

    def labeled(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the features [n, width] and the labels, [n, 1] or [n, classes], of n training patches.

        Args:
            rows: [n] row numbers of these patches in the store.
        """
        places = torch.from_numpy(np.searchsorted(self.train, rows))
        return self.features["train"][places], self.targets["train"][places]


def probe_run(
    path: str | Path,
    labels: Sequence[str],
    seed: int = 0,
    *,
    random: bool = False,
    fine_tune: bool = False,
    overrides: Iterable[str] = (),
) -> Probed:
    """Train and score classifiers on the features of a pretraining run's backbone (`stssl probe`).

    Write the scores to `probe/<weights>-s<seed>.json` in the run's folder (`<weights>`: `pretrained` or `random`), and
    return them with scores of earlier probes in this file that are still valid.

    Args:
        path: Path or URL of the folder of the pretraining run.
        labels: Number of labels of each probe: `all`, `fraction=F`, `per-class=N` or `total=N`.
        seed: Seed of the random choice of labels, of the new layer and of its batches.
        random: True to probe random weights instead of the best checkpoint, for comparison.
        fine_tune: True to also train the whole network, in a supervised run in the folder `probe`.
        overrides: `key=value` changes to the recipe's section `probe`.

    Raises:
        ConfigError: A number of labels or a setting is wrong.
        DataError: No validation patch or no test patch has a label.
        RunError: The folder has no pretraining run, or the run has no checkpoint yet.
    """
    folder = RunFolder.existing(path)
    recipe = folder.recipe_as(PretrainRecipe)
    options = validate(ProbeConfig, apply_overrides(recipe.probe.model_dump(), overrides), "probe")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rules = {text: label_rule(text, seed) for text in labels}
    data = open_pixels(recipe.data)
    folder.require_store(data.store)
    space, targets = labels_of(data.store, recipe.data.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretrained = load_pretrained(folder, device, random=random)
    for part in ("validation", "test"):
        require_labels(targets[torch.from_numpy(data.split.part(part))], part)
    scaling = choose_scaling(recipe.data, data, recorded=folder.read_record()[1])
    standardize = options.features == "standardized"
    frozen = freeze(pretrained.encoder, recipe, data, targets, standardize=standardize, scaling=scaling)
    weights = "random" if random else "pretrained"
    target = folder.path / "probe" / f"{weights}-s{seed}.json"
    rows: list[ProbeResult] = []
    for text, rule in rules.items():
        about = {"weights": weights, "labels": text, "step": pretrained.steps}
        fresh = score_features(frozen, (space, targets), data.split.train, rule=rule, options=options, about=about)
        if fine_tune:
            scores = tuned(folder, recipe, rule, options, random=random, name=text)
            described = {key: fresh[0][key] for key in (*about, "labeled", "seed", "protocol")}
            fresh.append(described | {"method": "fine-tune"} | scores)
        rows += fresh
        # Write the file after each number of labels, so that an interrupted probe does not lose its earlier results.
        written = _kept(target, rows) + rows
        write_text(target, json.dumps(without_nan({"rows": [*written]}), indent=1))
        folder.publish()
    return Probed(written, target if folder.mirror is None else below(folder.place, "probe", target.name))


def score_features(
    frozen: Frozen,
    labels: tuple[LabelSpace, Tensor],
    train: Ints,
    *,
    rule: LabelsConfig,
    options: ProbeConfig,
    about: ProbeResult,
) -> list[ProbeResult]:
    """Choose labeled training patches by a rule, and score a linear layer and a k-NN classifier that use only these.

    Args:
        frozen: Features and labels of the patches of all parts of the data.
        labels: Classes of the task, and labels of all patches of the store: [rows, 1] class ids (single-label) or
            [rows, classes] zeros and ones (multi-label); `IGNORED` if unknown.
        train: [n] row numbers of the training patches in the store.
        rule: Rule that chooses the labels at random. Its seed is also that of the linear layer.
        options: Settings of the probe.
        about: Entries to copy into each result.

    Returns:
        Scores and settings of both classifiers, one entry for each.
    """
    space, targets = labels
    positives = space.positives(targets).numpy()
    labeled = np.sort(draw_labeled(positives, train, rule, None))
    about = about | {"labeled": len(labeled), "seed": rule.seed, "protocol": options.model_dump()}
    own = frozen.labeled(labeled)
    return [
        about | {"method": "linear"} | linear(own, frozen, space, options, rule.seed),
        about | {"method": "k-NN"} | knn_rows(own, frozen, space, options),
    ]


def _kept(path: Path, fresh: list[ProbeResult]) -> list[ProbeResult]:
    """Return the results in a probe's file `path` that stay valid beside the new results `fresh`.

    Leave out results that `fresh` replaces, and results of another checkpoint or of other settings. Without a file,
    return an empty list.
    """
    new = {(row["method"], row["labels"]) for row in fresh}
    same = {(row["step"], json.dumps(row["protocol"])) for row in fresh}
    before = read_run_file(ProbeFile, path, "Remove it, and probe again.")[1]["rows"] if is_there(path) else []
    return [
        row
        for row in before
        if (row["method"], row["labels"]) not in new and (row.get("step"), json.dumps(row.get("protocol"))) in same
    ]


def label_rule(text: str, seed: int) -> LabelsConfig:
    """Return the rule that chooses a probe's labeled patches, made from a text such as `per-class=10`.

    `seed` is the seed of the random choice.

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


def freeze(
    encoder: PretrainEncoder,
    recipe: PretrainRecipe,
    data: PixelData,
    targets: Tensor,
    *,
    standardize: bool,
    scaling: ChosenScaling | None = None,
) -> Frozen:
    """Compute an encoder's features of all patches of the train, validation and test parts.

    Args:
        encoder: Network to probe, in evaluation mode.
        recipe: Recipe of the pretraining run.
        data: Open store and its split.
        targets: Labels of all patches of the store: [rows, 1] class ids (single-label) or [rows, classes] zeros and
            ones (multi-label); `IGNORED` if unknown.
        standardize: True to subtract the mean of the training patches' features and divide by their standard deviation.
        scaling: Numbers that scale the images; None chooses them by the section `data` alone.

    Returns:
        Features and labels of each part.

    Raises:
        RunError: The features of some patches are not finite.
    """
    device = next(encoder.parameters()).device
    memory = memory_format(encoder, device)
    pixels = build_pixels(recipe.data, recipe.model.image_size, data, memory, scaling).to(device)
    rows = {part: np.sort(data.split.part(part)) for part in PARTS}
    found = {
        part: features_of_rows(encoder.features, data, pixels, rows[part], recipe.evaluation.batch) for part in PARTS
    }
    if not all(bool(torch.isfinite(values).all()) for values in found.values()):
        raise RunError(f"features of some patches are not finite, so there is nothing to probe. {COOLER}")
    if standardize:
        mean, deviation = found["train"].mean(0), found["train"].std(0).clamp_min(1e-6)
        found = {part: (values - mean) / deviation for part, values in found.items()}
    features = {part: values.cpu() for part, values in found.items()}
    return Frozen(features, {part: targets[torch.from_numpy(rows[part])].long() for part in PARTS}, rows["train"])


def linear(
    labeled: tuple[Tensor, Tensor], frozen: Frozen, space: LabelSpace, options: ProbeConfig, seed: int
) -> ProbeResult:
    """Train a linear layer on frozen features, and score it with the weights of the epoch that is best on validation.

    Args:
        labeled: Features [n, width] and labels of the n training patches whose labels the layer may use.
        frozen: Features and labels of all parts of the data.
        space: Classes of the task, and whether it is single-label or multi-label.
        options: Settings of the layer's training.
        seed: Seed of the layer's weights and batches.

    Returns:
        A dict: the number of the best epoch in `epoch`, and its scores in `validation` and `test`.
    """
    features, targets = labeled
    torch.manual_seed(seed)
    layer = nn.Linear(features.shape[1], len(space.classes))
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    # Divide the rate by the mean squared length of the feature vectors, because the largest stable rate falls with it.
    # It is about the number of features if they are standardized: each then has a variance of 1.
    rate = options.lr / (features.shape[1] if options.features == "standardized" else 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    # Count the untrained layer as epoch 0, so that there is a result even if no epoch has a finite score.
    best, chosen, at = -float("inf"), layer, 0
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
def knn_rows(labeled: tuple[Tensor, Tensor], frozen: Frozen, space: LabelSpace, options: ProbeConfig) -> ProbeResult:
    """Classify validation and test patches by their nearest labeled patches (k-NN), and return the scores.

    Args:
        labeled: Features [n, width] and labels of the n labeled training patches, which may be neighbors.
        frozen: Features and labels of all parts of the data.
        space: Classes of the task, and whether it is single-label or multi-label.
        options: Settings of the probe; `k` is the number of neighbors.

    Returns:
        Scores by name, under the keys `validation` and `test`.
    """
    bank, targets = labeled
    found = {}
    for part in ("validation", "test"):
        query = frozen.features[part]
        logits = vote(query, bank, targets, space, k=options.k, temperature=options.temperature)
        found[part] = score(logits, frozen.targets[part], space)[0]
    return found


def tuned(
    folder: RunFolder, recipe: PretrainRecipe, rule: LabelsConfig, options: ProbeConfig, *, random: bool, name: str
) -> ProbeResult:
    """Train the whole network with labels in a supervised run, from pretrained or random weights, and score it.

    Args:
        folder: Folder of the pretraining run.
        recipe: Recipe of that run.
        rule: Rule that chooses the labels at random.
        options: Settings of the probe, such as the number of steps and the learning rate.
        random: True to start from random weights, for comparison.
        name: Number of labels as text, for the name of the supervised run.

    Returns:
        Scores of the student by name, under the keys `validation` and `test`.
    """
    steps = options.fine_tune_steps
    tree = {
        "name": f"fine_tune-{'random' if random else 'pretrained'}-{name.replace('=', '')}-s{rule.seed}",
        "data": recipe.data.model_dump(mode="json"),
        "labels": rule.model_dump() | {"allow_missing_classes": True},
        "model": merge(recipe.model.model_dump(), {"weights": "none" if random else f"run:{folder.place}"}),
        "algorithm": {"name": "supervised"},
        "batch": {"labeled": 64, "unlabeled_ratio": 0},
        "augment": {"strong_labeled": True},
        "optimizer": {"lr": options.fine_tune_lr, "backbone_factor": 1.0},
        "schedule": {"steps": steps, "evaluate_every": max(1, steps // 8)},
        "ema": {"decay": 0.0},
        "evaluation": recipe.evaluation.model_dump(),
        "compute": recipe.compute.model_dump(),
        "launch": merge(recipe.launch.model_dump(mode="json"), {"storage": below(folder.place, "probe")}),
        "logging": {"tensorboard": False},
        "seed": rule.seed,
    }
    done = run(validate(Recipe, tree, f"fine-tuning of {folder.place}"))
    return {part: evaluate_run(done.place, part)["student"] for part in ("validation", "test")}
