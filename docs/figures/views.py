"""Draw patches with their weak and strong views: `python docs/figures/views.py STORE` writes views.png beside it.

STORE is a store of EuroSAT. The views are those of the first step of `eurosat/fixmatch_cpu`.
"""

import sys
import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from stssl.base.batch import View
from stssl.recipes.catalog import find_recipe
from stssl.recipes.recipe import load_training_recipe
from stssl.training.state import open_train_state

ROWS = 6


def shown(image: Tensor) -> Tensor:
    """Turn normalized [3, H, W] values, -1 to 1, into an image [H, W, 3]."""
    return ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0)


def main() -> None:
    """Take one batch and draw its unlabeled patches."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"data.store={sys.argv[1]}", f"launch.storage={folder}", "batch.labeled=8", "model.image_size=64"]
        state = open_train_state(
            load_training_recipe(find_recipe("eurosat/fixmatch_cpu"), overrides), torch.device("cpu")
        )
        raw = next(iter(state.task.loader.batches(4000, 4001)))
        images = state.task.views(raw).images
    figure, axes = plt.subplots(2, ROWS, figsize=(1.45 * ROWS, 3.1))
    for row, (view, name) in enumerate(((View.UNLABELED_WEAK, "weak"), (View.UNLABELED_STRONG, "strong"))):
        for column in range(ROWS):
            axis = axes[row, column]
            axis.imshow(shown(images[view][column + 2]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(f"{name} view")
    figure.tight_layout(pad=0.4)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
