"""What the recipes of "Context Matters" say, in the words of the authors' settings (tests/data/seed_settings.json).

`OURS` computes our value of each setting. Prose of the file stands here word by word, beside the key that means it: a
changed sentence equals nothing.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stssl.algorithms import ALGORITHMS
from stssl.archives.bigearthnet import PUBLISHED_STATISTICS
from stssl.archives.nomenclature import EUROSAT, LABELS_43
from stssl.models.published import PUBLISHED_WEIGHTS
from stssl.recipes.fine_tuning import backbone_factor
from stssl.recipes.recipe import Recipe, load_training_recipe
from stssl.scoring.metrics import HEADLINES
from stssl.training.optim import learning_rate, make_optimizer

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
AMOUNTS = {"0.005": "0.5pct", "0.01": "1pct", "0.02": "2pct", "0.04": "4pct", "0.08": "8pct"}


@dataclass(frozen=True)
class Twin:
    """A recipe of ours for a configuration of theirs."""

    path: Path
    recipe: Recipe

    @property
    def dataset(self) -> str:
        return self.path.parent.name

    @property
    def big(self) -> bool:
        return self.dataset == "bigearthnet"

    @property
    def teacher(self) -> bool:
        return self.recipe.model.metadata == "teacher"

    @property
    def algorithm(self) -> Any:
        return self.recipe.algorithm

    @property
    def matches(self) -> bool:
        """Whether the algorithm makes pseudo-labels."""
        return bool(ALGORITHMS[self.algorithm.name].views)

    @cached_property
    def patch(self) -> int:
        return int(self.recipe.model.backbone_args.get("patch_size", 16))  # type: ignore[arg-type]


def twin_of(config: str) -> Path:
    """The recipe for a configuration such as `config/bigearthnet/stssl_fixmatch0.01.yaml`."""
    found = re.fullmatch(r"config/(\w+)/(stssl_)?([a-z]+)([\d.]+)\.yaml", config)
    assert found, config
    dataset, teacher, name, amount = found.groups()
    kind = ("supervised" if name == "sup" else name) + ("_teacher" if teacher else "")
    return EXPERIMENTS / dataset / f"{kind}_{AMOUNTS.get(amount, amount)}.yaml"


def load_twin(path: Path, overrides: tuple[str, ...] = ()) -> Twin:
    return Twin(path, load_training_recipe(path, overrides))


BCE, CE = "binary cross-entropy, mean over B x C", "cross-entropy, mean over B"
COSINE = (
    "lr * step / warmup during warm-up, then lr * max(0, cos(7 pi / 16 * (step - warmup) / (steps - warmup))); "
    "step from 0, stepped after every update"
)
TOKEN = "last of the sequence, at the input of block 0, MLP 4-384-384 with GELU plus a learned position"
EXEMPT = {
    "kernels": "parameters with ndim <= 1 or name ending .bias, pos_embed, cls_token",
    "tokens": "parameters with ndim <= 1 or name ending .bias",
    "all": "none",
}
RESIZES = {
    "corners": "120 -> 128, kornia Resize, bilinear, align_corners True, no antialias",
    "pillow": "64 -> 32, torchvision Resize on PIL (bilinear, antialias, uint8)",
}
SCALES = {
    "sigmas": "(DN - (mean - 2 std)) / (4 std), clipped to 0..1, at 120 px before resizing",
    "bytes": "uint8 / 255",
}
DRAW = (
    "np.random seeded with `seed`: shuffle of trainval, then per class a shuffle; npy files are written, never read "
    "(load_exist=False)"
)


def schedule(t: Twin) -> str:
    """The prose, if our rates are those of its formula at every hundredth of the run."""
    plan, base = t.recipe.schedule, t.recipe.optimizer.lr
    steps, warmup = plan.steps, plan.warmup

    def rate(step: int) -> float:
        if step < warmup:
            return base * step / warmup
        return base * max(0.0, math.cos(7 * math.pi / 16 * (step - warmup) / (steps - warmup)))

    same = all(math.isclose(learning_rate(s, plan, base), rate(s)) for s in range(0, steps, steps // 100 + 1))
    return COSINE if same else "another course"


@cache
def optimizer(name: str) -> str:
    assert name == "adamw"
    from stssl.recipes.optimizers import AdamWConfig

    made = make_optimizer(nn.Linear(2, 2), AdamWConfig())
    group = made.param_groups[0]
    betas = "/".join(f"{beta:g}" for beta in group["betas"])
    return f"{type(made).__name__}(betas {betas}, eps {group['eps']:.0e}: torch defaults)".replace("e-08", "e-8")


@cache
def shape(backbone: str, patch: int, size: int) -> dict[str, Any]:
    import timm

    with torch.device("meta"):
        net = timm.create_model(backbone, patch_size=patch, img_size=size)
    return {
        "img_size": net.patch_embed.img_size[0],
        "patch": net.patch_embed.patch_size[0],
        "embed_dim": net.embed_dim,
        "depth": len(net.blocks),
        "heads": net.blocks[0].attn.num_heads,
        "class_token_pooling": net.global_pool == "token",
    }


def network(t: Twin) -> dict[str, Any]:
    model = t.recipe.model
    token = (model.injection.name, getattr(model.injection, "block", None), model.encoder.name) == ("token", 0, "raw")
    where = (TOKEN if token else "elsewhere") if model.metadata != "none" else None
    return shape(model.backbone, t.patch, model.image_size) | {"metadata_token": where}


def statistics(t: Twin) -> dict[str, Any]:
    data = t.recipe.data
    if data.scale == "bytes":
        return {"mean": 0.5, "std": 0.5, "scale": SCALES["bytes"]}
    held: Any = PUBLISHED_STATISTICS if data.statistics == "published" else {"bands": (), "mean": (), "std": ()}
    known = dict(zip(held["bands"], zip(held["mean"], held["std"], strict=True), strict=True))
    mean, std = ({band: known[band][i] for band in data.bands if band in known} for i in (0, 1))
    scale = SCALES[data.scale] if data.resize == "corners" else "after resizing"
    return {"scale": scale, "mean": mean, "std": std, "normalise": "(x - 0.5) / 0.25 after all augmentation"}


def views(t: Twin) -> dict[str, str]:
    augment, size = t.recipe.augment, t.recipe.model.image_size
    strong = augment.randaugment
    kinds = {
        ("kornia-0.7", 0.0): f"weak, then kornia RandAugment(n={strong.n}, m={strong.m:g})",
        ("fixmatch", 0.5): f"weak, then RandAugment({strong.n}, 5) of the file (m unused) with Cutout",
    }
    return {
        "resize": RESIZES.get(t.recipe.data.resize, t.recipe.data.resize),
        "weak": f"pad {int(size * augment.padding)} reflect + crop {size}, hflip 0.5, vflip 0.5",
        "strong": kinds.get((strong.style, augment.cutout), strong.style),
    }


def cutoff(t: Twin) -> float | list[float]:
    low, high = t.algorithm.absent_below, t.algorithm.present_above
    return [low, high] if t.big and low is not None and high is not None else t.algorithm.threshold


def selection(t: Twin) -> dict[str, Any]:
    own = cutoff(t)
    if isinstance(own, list):
        return {"kind": "pair", "p_cutoff": own, "rule": "p <= first or p >= second"}
    rule = "max(p, 1-p) >= p_cutoff" if t.big else "max softmax >= p_cutoff"
    return {"kind": "single", "p_cutoff": own, "rule": rule}


def targets(t: Twin) -> str:
    if t.algorithm.soft:
        return f"soft, probabilities of debiased logits, temperature {t.algorithm.temperature:g}"
    return "hard: logit >= 0 per class" if t.big else "hard: argmax"


def labeling(t: Twin) -> str | None:
    if not t.matches:
        return None
    live = {False: "live network", True: "live teacher with metadata"}[t.teacher]
    if t.recipe.model.labeler_mode != "training":
        return "evaluation mode"
    if t.algorithm.labeler == "ema":
        return f"EMA of the {'teacher' if t.teacher else 'network'} (in train mode: drop path active)"
    return f"{live}, weak view, train mode (drop path active), same forward pass"


def supervised_loss(t: Twin) -> str:
    if getattr(t.algorithm, "asymmetric", False):
        return "asymmetric loss, mean over all B x C decisions"
    if ALGORITHMS[t.algorithm.name].strong_labeled or t.recipe.augment.strong_labeled:
        return "mean of weak and strong labeled views"
    return BCE if t.big else CE


def distillation(t: Twin) -> dict[str, Any]:
    both = "weak labeled + strong labeled + strong unlabeled"
    strong = ALGORITHMS[t.algorithm.name].strong_labeled
    return {
        "type": t.recipe.loss.distance,
        "weight": t.recipe.loss.distillation,
        "between": "output of the metadata token (last token after the final norm), student's against the teacher's "
        "(detached)",
        "views": both if strong else "weak labeled + strong unlabeled",
        "mean": f"over rows and {network(t)['embed_dim']} dimensions",
    }


def labels(t: Twin) -> dict[str, Any]:
    rule = t.recipe.labels
    if rule.total is None:
        return {"fraction": rule.fraction, "drawn": "anew, by labels.seed"}
    drawn = DRAW if rule.seed_rule == "usb" else "by our own formula"
    return {"total": rule.total, "per_class": rule.total // len(EUROSAT), "draw": drawn}


def metadata(t: Twin) -> dict[str, Any]:
    encoder = t.recipe.model.encoder
    assert encoder.name == "raw"
    found: dict[str, Any] = {"latlng": ["lat / 90", "lng / 180"]} if encoder.place else {}
    if encoder.date:
        found |= {"date": ["sin(2 pi doy / 365)", "cos(2 pi doy / 365)"]}
    return found | {"missing_date": "a learned vector", "dropout": t.recipe.augment.metadata_dropout}


def best(t: Twin) -> str:
    name = {"mAP": "macro average precision (sklearn) on val", "accuracy": "top-1 accuracy on val"}[HEADLINES[t.big]]
    return name if t.recipe.evaluation.checkpoint == "best" else "none: the last checkpoint"


def weights_url(t: Twin) -> str | None:
    variable = Path(t.recipe.model.weights.removeprefix("file:")).name  # the test gives each variable its own name
    return PUBLISHED_WEIGHTS.get(variable)


Value = Callable[[Twin], Any]
OURS: dict[str, Value] = {
    "algorithm": lambda t: ("stssl_" if t.teacher else "") + t.algorithm.name,
    "bands": lambda t: list(t.recipe.data.bands),
    "best_metric": best,
    "class_statistics": statistics,
    "crop_ratio": lambda t: 1 - t.recipe.augment.padding,
    "dataset": lambda t: t.dataset,
    "drop_path": lambda t: t.recipe.model.backbone_args.get("drop_path_rate", 0.0),
    "dropout": lambda t: t.recipe.model.backbone_args.get("drop_rate", 0.0),
    "ema_m": lambda t: t.recipe.ema.decay,
    "ema_t": lambda t: t.recipe.ema.decay,
    "eval_batch_size": lambda t: t.recipe.evaluation.batch,
    "evaluated_network": lambda t: "student, without metadata" if t.teacher else "the network",
    "evaluated_weights": lambda t: (
        "EMA of all parameters (buffers taken from the live model), decay ema_m"
        if t.recipe.ema.decay
        else "live weights (ema_m 0)"
    ),
    "excluded": lambda t: (
        "patches with cloud, shadow or seasonal snow"
        if {*t.recipe.data.exclude} == {"seasonal_snow", "cloud_or_shadow"}
        else "others"
    ),
    "f1_threshold": lambda _: "probability > 0.5",
    "img_size": lambda t: t.recipe.model.image_size,
    "labels": labels,
    "layer_decay": lambda t: t.recipe.optimizer.layer_decay,
    "lr": lambda t: t.recipe.optimizer.lr if backbone_factor(t.recipe) == 1 else "a lower rate for the backbone",
    "metadata": metadata,
    "multilabel": lambda t: t.recipe.data.labels == "labels_43",
    "net": lambda t: (
        ("early_fusion_" if t.teacher else "")
        + f"{t.recipe.model.backbone.partition('_patch')[0]}_patch{t.patch}_{t.recipe.model.image_size}"
    ),
    "network": network,
    "num_classes": lambda t: len({"labels_43": LABELS_43, "label": EUROSAT}[t.recipe.data.labels]),
    "num_labels": lambda t: t.recipe.labels.total or t.recipe.labels.fraction,
    "optim": lambda t: {"adamw": "AdamW", "sgd": "SGD"}[t.recipe.optimizer.name],
    "optimizer": lambda t: optimizer(t.recipe.optimizer.name),
    "pretrain_path": weights_url,
    "pretrained_file": lambda t: Path(weights_url(t) or "").name,
    "pseudo_labels_from": labeling,
    "sampling": lambda _: (
        "each stream: whole random permutations of its rows one after another, seeded by seed and epoch number"
    ),
    "schedule": schedule,
    "seed": lambda t: t.recipe.seed,
    "split": lambda t: (
        "first 80 % of each class (ImageFolder order) trainval, rest test"
        if t.recipe.data.split == "published"
        else "70 % train, 10 % validation, 20 % test"
    ),
    "supervised_loss": supervised_loss,
    "unlabeled_batch": lambda t: t.recipe.batch.labeled * t.recipe.batch.unlabeled_ratio if t.matches else None,
    "unlabeled_loss": lambda t: (
        "asymmetric loss, sum over selected / (number selected + 1e-8)"
        if getattr(t.algorithm, "asymmetric", False)
        else "(B)CE against the target times mask, mean over ALL decisions (not the selected ones)"
    ),
    "uratio": lambda t: t.recipe.batch.unlabeled_ratio,
    "use_pretrain": lambda t: t.recipe.model.weights != "none",
    "views": views,
    "weight_decay": lambda t: t.recipe.optimizer.weight_decay,
    "weight_decay_exempt": lambda t: EXEMPT[t.recipe.optimizer.decayed],
    "with_teacher": lambda t: t.teacher,
    # cut-offs and targets
    "p_cutoff": cutoff,
    "selection": selection,
    "targets": targets,
    "T": lambda t: t.algorithm.temperature,
    "hard_label": lambda t: not t.algorithm.soft,
    # CAP
    "cap_queue": lambda t: t.algorithm.rows,
    "clip": lambda t: t.algorithm.clip,
    "disable_torch_grad_focal_loss": lambda t: t.algorithm.detach_focus,
    "eps": lambda t: t.algorithm.epsilon,
    "gamma_neg": lambda t: t.algorithm.gamma_negative,
    "gamma_pos": lambda t: t.algorithm.gamma_positive,
    "neg_per": lambda t: t.algorithm.negative_share,
    "pos_per": lambda t: t.algorithm.positive_share,
    "pseudolabel_from_ema": lambda t: t.algorithm.labeler == "ema",
    "use_asl": lambda t: t.algorithm.asymmetric,
    # CDMAD
    "cdmad_bias": lambda t: (
        "logits of an image of ones in NORMALISED space; train mode in training, eval mode in evaluation; from it >= "
        "debias_start_iter"
        if t.recipe.model.labeler_mode == "training"
        else "evaluation mode"
    ),
    "cdmad_bias_head": lambda _: "the trained head of each network",
    "debias_start_iter": lambda t: t.algorithm.debias_after,
    # FreeMatch, SoftMatch, UDAL
    "clip_thresh": lambda t: t.algorithm.clip,
    "ema_p": lambda t: t.algorithm.ema_decay,
    "ent_loss_ratio": lambda t: t.algorithm.fairness_weight,
    "supervised_warmup_steps": lambda t: t.algorithm.supervised_steps,
    "use_quantile": lambda t: t.algorithm.quantile is not None,
    "alignment_target": lambda t: (
        "frequencies of the labeled set (gt), fixed" if t.algorithm.target == "labeled" else t.algorithm.target
    ),
    "dist_align": lambda t: t.algorithm.align,
    "dist_uniform": lambda t: t.algorithm.target == "uniform",
    "n_sigma": lambda t: t.algorithm.sigmas,
    "per_class": lambda t: t.algorithm.by_side,
    "a_min": lambda t: t.algorithm.least_exponent,
    "k": lambda t: t.algorithm.power,
    "udal_student_marginal": lambda _: "the student's own marginal",
    # distillation
    "distill_loss_type": lambda t: t.recipe.loss.distance,
    "distillation": distillation,
    "feat_dim": lambda t: network(t)["embed_dim"],
    "lambda_d": lambda t: t.recipe.loss.distillation,
}
SAME: dict[str, str] = {
    "labeled_batch": "batch.labeled",
    "batch_size": "batch.labeled",
    "num_train_iter": "schedule.steps",
    "steps": "schedule.steps",
    "num_warmup_iter": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
    "num_eval_iter": "schedule.evaluate_every",
    "evaluate_every": "schedule.evaluate_every",
    "patience_iters": "schedule.patience",
    "early_stopping": "schedule.patience",
    "ulb_loss_ratio": "loss.unlabeled",
    "sup_warmup_iters": "algorithm.supervised_steps",
    "clip_grad": "optimizer.clip",
}
"""Settings that are one key of the recipe."""


def at(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


OURS |= {name: lambda t, key=key: at(t.recipe, key) for name, key in SAME.items()}  # type: ignore[misc]
OURS |= {
    "clip_grad": lambda t: t.recipe.optimizer.clip or 0,
    "grad_clip": lambda t: "none" if t.recipe.optimizer.clip is None else t.recipe.optimizer.clip,
    "amp": lambda t: t.recipe.compute.precision != "fp32",
    "mixed_precision": lambda t: t.recipe.compute.precision != "fp32",
    "udal_target": OURS["alignment_target"],
    "no_loc": lambda t: not t.recipe.model.encoder.place if t.big else None,
    "no_time": lambda t: not t.recipe.model.encoder.date if t.big else None,
}
THEIR_NAMES = {"fullysupervised": "supervised"}
