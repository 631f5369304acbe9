"""Load the encoders of a pretraining run from a checkpoint."""

from dataclasses import dataclass

import torch

from stssl.base.errors import RunError
from stssl.contrastive.step import PretrainEncoder
from stssl.models.layout import placed
from stssl.recipes.pretraining import PretrainRecipe
from stssl.training.checkpoints import does_not_fit
from stssl.training.contrastive_task import build_encoder
from stssl.training.run_folder import RunFolder
from stssl.training.trained_run import never_finite, read_own_state, require_name

COOLER = "Pretrain with a lower optimizer.lr, optimizer.clip=1.0 or compute.precision=fp32, as name=ANOTHER."
"""Advice if pretraining diverged."""
PREFIXES = {"encoder": "networks.query.", "momentum": "momentum.network."}
"""Encoders of a checkpoint by the name that users give them. The values are the beginnings of their tensors' names."""


@dataclass(frozen=True)
class PretrainedRun:
    """Describe the encoders that were loaded from a pretraining run, in evaluation mode.

    Attributes:
        encoder: Encoder of queries. `encoder.safetensors` has the weights of its backbone.
        momentum: Momentum encoder, which made the keys.
        steps: Number of steps taken before the checkpoint; 0 for random weights.
    """

    encoder: PretrainEncoder
    momentum: PretrainEncoder
    steps: int


def load_pretrained(
    folder: RunFolder, device: torch.device, checkpoint: str = "best", *, random: bool = False
) -> PretrainedRun:
    """Return the encoders of a pretraining run, loaded from a checkpoint, or the same encoders with random weights.

    Args:
        folder: Folder of the pretraining run.
        device: Device of the encoders.
        checkpoint: `best` or `last`.
        random: True for random weights, for comparison.

    Raises:
        ConfigError: The name of the checkpoint is neither `best` nor `last`.
        RunError: The run is a training run, or has no usable checkpoint, or its features were never finite.
    """
    require_name(checkpoint)
    recipe = folder.recipe_as(PretrainRecipe)
    path = folder.checkpoints.path(checkpoint)
    if not folder.checkpoints.exist() and not folder.checkpoints.has(checkpoint):
        raise RunError(f"{folder.place} has no checkpoint yet. Pretrain it to its first evaluation.")
    if checkpoint == "best" and not folder.checkpoints.has(checkpoint) and never_finite(folder):
        raise RunError(f"{folder.place} is of no use so far: its features were not finite. {COOLER}")
    state = read_own_state(
        folder, path, recipe.hash(), f"Put a whole one back, or delete {folder.place} and pretrain it again."
    )
    encoders = {name: _fresh(recipe) for name in PREFIXES}
    for name, encoder in encoders.items():
        if not random:
            prefix = PREFIXES[name]
            own = {key.removeprefix(prefix): value for key, value in state["step"].items() if key.startswith(prefix)}
            try:
                encoder.load_state_dict(own)
            except (RuntimeError, TypeError, AttributeError) as error:
                raise does_not_fit(path, state, error) from None
        placed(encoder.eval(), device)
    return PretrainedRun(**encoders, steps=0 if random else int(state["progress"]["step"]))


def _fresh(recipe: PretrainRecipe) -> PretrainEncoder:
    """Return an encoder with random weights, which the recipe's seed determines."""
    torch.manual_seed(recipe.seed)
    model = recipe.model.model_copy(update={"weights": "none"})
    return build_encoder(model, len(recipe.data.bands), recipe.pretext.projection, recipe.pretext.mlp)
