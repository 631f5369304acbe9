"""Draw patches with their weak and strong views: `python docs/figures/views.py STORE` writes two images beside it.

STORE is a store of EuroSAT. The views of `views.png` are those of the first step of `eurosat/fixmatch_cpu`. The file
`view_styles.png` has strong views of one patch in each style.
"""

import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from stssl.base.batch import View
from stssl.base.randomness import RandomStream, uniforms
from stssl.data.augment import RandAugmentConfig, Style, apply_view, draw_view, numbers_needed
from stssl.recipes.catalog import find_recipe
from stssl.recipes.recipe import load_training_recipe
from stssl.store import Store
from stssl.training.state import open_train_state

ROWS = 6
STYLED = 9


def shown(image: Tensor) -> Tensor:
    """Turn normalized [3, H, W] values, -1 to 1, into an image [H, W, 3]."""
    return ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0)


def draw_grid(images: dict[str, list[Tensor]], file: Path) -> None:
    """Write a file with a row of images [H, W, 3] for each label."""
    columns = max(map(len, images.values()))
    figure, axes = plt.subplots(len(images), columns, figsize=(8.7, 8.7 / columns * len(images) + 0.2))
    for row, (label, parts) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, parts, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, fontsize=8 if columns > ROWS else 10)
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=110)


def weak_and_strong(store: str) -> dict[str, list[Tensor]]:
    """Return unlabeled patches of one batch in both views."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"data.store={store}", f"launch.storage={folder}", "batch.labeled=8", "model.image_size=64"]
        recipe = load_training_recipe(find_recipe("eurosat/fixmatch_cpu"), overrides)
        state = open_train_state(recipe, torch.device("cpu"))
        raw = next(iter(state.task.loader.batches(4000, 4001)))
        images = state.task.views(raw).images
    views = {"weak view": View.UNLABELED_WEAK, "strong view": View.UNLABELED_STRONG}
    return {label: [shown(image) for image in images[view][2 : 2 + ROWS]] for label, view in views.items()}


def in_styles(store: str) -> dict[str, list[Tensor]]:
    """Return one patch, and strong views of it in each style."""
    pixels = Store.open(store).read([0], bands=["B04", "B03", "B02"])
    image = torch.from_numpy(pixels).float().div(255).expand(STYLED, -1, -1, -1)
    found = {}
    for style in get_args(Style):
        strong, cutout = RandAugmentConfig(style=style, n=3, m=5), 0.5 if style == "fixmatch" else 0
        numbers = uniforms((1, RandomStream.PROBE, np.arange(STYLED)), numbers_needed(strong, cutout))
        views = apply_view(image, draw_view(numbers, image.shape[-1], 0.125, strong, cutout))
        found[style] = [view.permute(1, 2, 0) for view in views]
    return found


def main() -> None:
    """Draw both images."""
    draw_grid(weak_and_strong(sys.argv[1]), Path(__file__).with_suffix(".png"))
    draw_grid(in_styles(sys.argv[1]), Path(__file__).with_name("view_styles.png"))


if __name__ == "__main__":
    main()
