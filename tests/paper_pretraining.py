"""What the pretraining recipes say, in the words of the geography-aware scripts' settings."""

import math
from collections.abc import Callable
from typing import Any

from stssl.recipes.pretraining import PretrainRecipe
from stssl.training.optim import learning_rate

COSINE = "lr * 0.5 * (1 + cos(pi * epoch / epochs)), constant within an epoch; no warm-up"
STEPS = "lr x 0.1 at epochs 60 and 80 of 100 (cos only with --cos)"
TWINS = {
    "main_moco_geo+tp.py": "moco_geo_tp",
    "main_moco_tp.py": "moco_tp",
    "main_lincls.py": "moco_geo_tp",
}
"""A recipe for each script; the probe's script is the section `probe` of one."""
IMAGE_PAIRS = "MoCo-v2 and MoCo-v2+Geo (README.md:80, :84)"
"""An entry with a note only, on crops, for two recipes without temporal pairs."""


PATCHES = 269_695
"""Training patches of BigEarthNet without snow and clouds."""


def epochs(r: PretrainRecipe) -> float:
    """Epochs of a run that drops the last batch of each."""
    return r.schedule.steps / (PATCHES // r.batch.size)


def schedule(r: PretrainRecipe) -> str:
    hold, count = r.schedule.hold, epochs(r)
    rates = [(s, learning_rate(s, r.schedule, 1.0)) for s in range(0, r.schedule.steps, r.schedule.steps // 97)]
    right = [(0.5 * (1 + math.cos(math.pi * (s // hold) / count)), rate) for s, rate in rates]
    same = hold == PATCHES // r.batch.size and all(math.isclose(*pair, abs_tol=1e-12) for pair in right)
    return COSINE if same else "another course"


def optimizer(r: PretrainRecipe) -> str:
    own = r.optimizer
    assert own.name == "sgd"
    which = "all parameters" if own.decayed == "all" else "kernels"
    return f"SGD momentum {own.momentum:g}, weight decay {own.weight_decay:.0e} on {which}".replace("e-04", "e-4")


Value = Callable[[PretrainRecipe], Any]
OURS: dict[str, Value] = {
    "arguments.arch": lambda r: r.model.backbone,
    "arguments.epochs": epochs,
    "arguments.batch_size": lambda r: r.batch.size,
    "arguments.lr": lambda r: r.optimizer.lr,
    "arguments.momentum": lambda r: getattr(r.optimizer, "momentum", None),
    "arguments.weight_decay": lambda r: r.optimizer.weight_decay,
    "arguments.moco_dim": lambda r: r.pretext.projection,
    "arguments.moco_k": lambda r: r.pretext.queue,
    "arguments.moco_m": lambda r: r.pretext.momentum,
    "arguments.moco_t": lambda r: r.pretext.temperature,
    "arguments.mlp": lambda r: r.pretext.mlp,
    "arguments.cos": lambda r: r.schedule.decay == "cosine",
    "arguments.loss": lambda r: r.pretext.loss,
    "arguments.ml_cpc_alpha": lambda r: r.pretext.alpha,
    "arguments.ml_cpc_alpha_low": lambda r: r.pretext.alpha_end,
    "arguments.ml_cpc_alpha_geo": lambda r: r.pretext.alpha_schedule == "geometric",
    "optimizer": optimizer,
    "schedule": schedule,
}
PROBE: dict[str, Value] = {
    "arguments.arch": lambda r: r.model.backbone,
    "arguments.epochs": lambda r: r.probe.epochs,
    "arguments.batch_size": lambda r: r.probe.batch,
    "arguments.lr": lambda r: r.probe.lr if r.probe.features == "raw" else f"{r.probe.lr} / width",
    "arguments.momentum": lambda _: 0.9,
    "arguments.weight_decay": lambda _: 0.0,
    "arguments.schedule": lambda r: [round(0.6 * r.probe.epochs), round(0.8 * r.probe.epochs)],
    "arguments.cos": lambda _: False,
    "optimizer": lambda _: "SGD momentum 0.9, weight decay 0",
    "schedule": lambda r: STEPS if r.probe.epochs == 100 else "another course",
}
"""Values of the linear probe; its optimizer is fixed in stssl/analysis/probe.py."""


def parts_of_views(r: PretrainRecipe) -> list[str]:
    """What the prose on views must say, by our keys."""
    v = r.views
    ratio = {4 / 3: "ratio (3/4, 4/3)"}[v.aspect]
    found = [
        f"scale ({v.smallest_crop:g}, 1)",
        f"ColorJitter({v.brightness:g}, {v.contrast:g}, {v.saturation:g}, {v.hue:g}) p {v.jitter:g}",
        f"grayscale p {v.gray:g}",
        f"radius U(0.1, 2) p {v.blur:g}",
        "hflip 0.5",
    ]
    assert not v.flip_vertical
    return [*found, ratio] if r.pretext.temporal else found[:1]
