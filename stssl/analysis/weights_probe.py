"""Probe weights that come from no run: score k-NN and a linear layer on their frozen features of a store's patches."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stssl.analysis.probe import Probed, ProbeResult, freeze, label_rule, score_features
from stssl.base.config import Tree, apply_overrides, merge, validate
from stssl.base.errors import ConfigError, RunError
from stssl.base.json_types import JsonObject
from stssl.base.labels import LabelSpace
from stssl.base.whole_files import is_there
from stssl.contrastive.step import PretrainEncoder
from stssl.models.layout import placed
from stssl.models.weight_sources import open_checkpoint
from stssl.models.weights import FirstWeights
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.run_data import PixelData, labels_of, open_pixels, require_labels
from stssl.recipes.starting import ChosenScaling, choose_scaling, first_weights_of
from stssl.scoring.evaluation import without_nan
from stssl.store.store import Store
from stssl.training.contrastive_task import build_encoder
from stssl.training.run_folder import write_text

LEAST_SIZE = 64
"""Smallest default side of images in pixels. Smaller patches are enlarged: pretrained features need this."""
REQUEST = "request"
"""Key of the file that has the settings of the probe."""
SECTIONS = ("data", "model", "evaluation")
"""Sections of a recipe that overrides may change. Other keys are the probe's own settings."""


@dataclass(frozen=True)
class WeightsProbe:
    """Hold the opened data and the network with the weights to probe, on whose features classifiers are scored.

    Attributes:
        recipe: Recipe with the data, the network and the settings of the probe.
        data: Open store and its split.
        space: Classes of the task, and whether it is single-label or multi-label.
        targets: Labels of all patches of the store: [rows, 1] class ids (single-label) or [rows, classes] zeros and
            ones (multi-label); `IGNORED` if unknown.
        encoder: Network with the weights, in evaluation mode.
        scaling: Numbers that scale the images.
    """

    recipe: PretrainRecipe
    data: PixelData
    space: LabelSpace
    targets: Tensor
    encoder: PretrainEncoder
    scaling: ChosenScaling


def probe_weights(
    weights: str,
    store: str,
    labels: Sequence[str],
    seed: int = 0,
    *,
    overrides: Iterable[str] = (),
    out: Path | None = None,
) -> Probed:
    """Train and score classifiers on the features of given weights. Write the scores to a file, and return them.

    Args:
        weights: Weights to probe: a value of `model.weights`.
        store: Path or URL of a store with labels.
        labels: Number of labels of each probe: `all`, `fraction=F`, `per-class=N` or `total=N`.
        seed: Seed of the random choice of labels, of the new layer and of its batches.
        overrides: Changes of the form `key=value`. Keys such as `model.backbone` or `data.split` are those of a recipe.
            Others, such as `epochs`, are those of its section `probe`.
        out: File of the scores; None is `probe-<backbone>-<number>-s<seed>.json` in the current folder. The number
            differs if the store, the weights, the labels or a setting differ.

    Raises:
        ConfigError: A setting is wrong, or the weights do not exist, or do not name their network.
        DataError: The store cannot be read, or no validation patch or no test patch has a label.
        RunError: The features of some patches are not finite, the file cannot be written, or it holds other scores.
    """
    rules = {text: label_rule(text, seed) for text in labels}
    found = _open(weights, store, overrides)
    recipe, options = found.recipe, found.recipe.probe
    request = _request(weights, recipe, labels, seed)
    number = hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=4).hexdigest()
    target = out or Path(f"probe-{recipe.model.backbone}-{number}-s{seed}.json")
    _refuse_other(target, request)
    standardize = options.features == "standardized"
    frozen = freeze(found.encoder, recipe, found.data, found.targets, standardize=standardize, scaling=found.scaling)
    rows: list[ProbeResult] = []
    about = {"weights": weights, "backbone": recipe.model.backbone, "image_size": recipe.model.image_size, "step": 0}
    for text, rule in rules.items():
        rows += score_features(
            frozen,
            (found.space, found.targets),
            found.data.split.train,
            rule=rule,
            options=options,
            about=about | {"labels": text},
        )
    content: JsonObject = {"rows": [*rows], "scaling": found.scaling.about(), REQUEST: request}
    write_text(target, json.dumps(without_nan(content), indent=1))
    return Probed(rows, target)


def _request(weights: str, recipe: PretrainRecipe, labels: Sequence[str], seed: int) -> JsonObject:
    """Return all settings of a probe (recipe, weights, numbers of labels, seed) as JSON values, to write to its file.

    A probe overwrites a file of scores only if the settings in it are equal.
    """
    parts: JsonObject = {name: getattr(recipe, name).model_dump(mode="json") for name in (*SECTIONS, "probe")}
    return parts | {"weights": weights, "labels": [*labels], "seed": seed}


def _refuse_other(target: Path, request: JsonObject) -> None:
    """Check that a probe may write its file: there is none yet, or it has the scores of a probe with equal settings.

    Args:
        target: File to write.
        request: All settings of the probe.

    Raises:
        RunError: The file has something else in it.
    """
    if not is_there(target):
        return
    try:
        tree = json.loads(target.read_bytes())
    except (OSError, ValueError):
        tree = None
    if not isinstance(tree, dict) or tree.get(REQUEST) != request:
        raise RunError(
            f"{target} is there already, and holds no scores of this probe (store, weights, labels and settings). "
            "Remove it, or give another --out."
        )


def _open(weights: str, store: str, overrides: Iterable[str]) -> WeightsProbe:
    """Open the store and load the weights into their network; return both with the labels and settings of the probe.

    Arguments are the weights to probe (a value of `model.weights`), the path of the store, and `key=value` changes.

    Raises:
        ConfigError: A setting is wrong, or the weights do not exist, or do not name their network.
        DataError: The store cannot be read, or no validation patch or no test patch has a label.
    """
    given = list(overrides)
    own = [text for text in given if text.partition("=")[0].partition(".")[0] not in SECTIONS]
    tree = apply_overrides({"probe": apply_overrides({}, own)}, [text for text in given if text not in own])
    tree = merge(_defaults(weights, store, tree), tree)
    recipe = validate(PretrainRecipe, tree, "probe")
    if recipe.probe.threads is not None:
        torch.set_num_threads(recipe.probe.threads)
    data = open_pixels(recipe.data)
    space, targets = labels_of(data.store, recipe.data.labels)
    for part in ("validation", "test"):
        require_labels(targets[torch.from_numpy(data.split.part(part))], part)
    first: FirstWeights = first_weights_of(recipe.model, recipe.data.bands)
    scaling = choose_scaling(recipe.data, data, first)
    encoder = build_encoder(recipe.model, len(recipe.data.bands), 2, False, first)
    placed(encoder.eval(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return WeightsProbe(recipe, data, space, targets, encoder, scaling)


def _defaults(weights: str, path: str, tree: Tree) -> Tree:
    """Return the values of recipe keys that the user need not give, because the store and the weights imply them.

    These are the labels (if the store has one set of them), the image size and the backbone.

    Args:
        weights: Weights to probe: a value of `model.weights`.
        path: Path or URL of the store.
        tree: Values that the user gave, by section and key of a recipe. If a backbone is among them, none is looked up.
    """
    store = Store.open(path)
    sets = list(store.label_sets)
    side = max(group.height for group in store.groups.values())
    given = tree.get("model")
    data: Tree = {"store": path}
    model: Tree = {"weights": weights, "image_size": max(side, LEAST_SIZE)}
    if len(sets) == 1:
        data["labels"] = sets[0]
    if not (isinstance(given, dict) and "backbone" in given):
        model["backbone"] = backbone_of(weights)
    return {"name": "probe", "data": data, "model": model, "optimizer": {"name": PretrainRecipe.optimizer_name}}


def backbone_of(weights: str) -> str:
    """Return timm's name of the network to which weights belong, as their tag or file says it.

    Args:
        weights: A value of `model.weights`, such as `timm:NAME`.

    Raises:
        ConfigError: The weights do not exist, or do not say their network.
    """
    kind, _, tag = weights.partition(":")
    if kind == "timm":
        return tag.partition(".")[0]
    found = open_checkpoint(weights, "", {}, size=LEAST_SIZE, classes=2) if kind not in ("none", "imagenet") else None
    if found is None or found.arch is None:
        raise ConfigError(f"--weights: {weights} does not say of which network it is: give --set model.backbone=NAME")
    return found.arch
