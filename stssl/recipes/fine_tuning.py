"""Decide how networks learn that start from given weights, as far as a recipe leaves this open."""

from stssl.base.json_types import JsonObject
from stssl.recipes.recipe import Recipe, RunRecipe

BACKBONE_FACTOR = 0.1
"""Learning rate of a backbone with given weights, relative to that of the new head. On EuroSAT with 20 labels a class,
ImageNet weights gave a test accuracy of 85.5 % with it, and of 68.6 % with one rate for all layers."""


def backbone_factor(recipe: RunRecipe) -> float:
    """Return the learning rate of the backbone, relative to that of the new layers.

    This is `optimizer.backbone_factor`, or its default: 0.1 if a training recipe gives weights and no layer decay.
    """
    given = recipe.optimizer.backbone_factor
    if given is not None:
        return given
    tuned = isinstance(recipe, Recipe) and recipe.model.weights != "none" and recipe.optimizer.layer_decay == 1
    return BACKBONE_FACTOR if tuned else 1.0


def encoder_factor(recipe: RunRecipe) -> float:
    """Return the learning rate of a pretrained encoder of places that is trained, relative to that of the new layers.

    This is `optimizer.backbone_factor`, or 0.1.
    """
    given = recipe.optimizer.backbone_factor
    return BACKBONE_FACTOR if given is None else given


def about_fine_tuning(recipe: RunRecipe) -> JsonObject:
    """Describe for a run's record how the networks learn from given weights. Return {} if a recipe gives no weights."""
    if not isinstance(recipe, Recipe):
        return {}
    model = recipe.model
    if model.weights == "none" and not model.freeze:
        return {}
    start = "random" if model.weights == "none" else "zero"
    rates: JsonObject = (
        {}
        if model.freeze
        else {
            "backbone_factor": backbone_factor(recipe),
            "layer_decay": recipe.optimizer.layer_decay,
            "head_steps": recipe.schedule.head_steps,
        }
    )
    return {"fine_tuning": {"head": "weights" if model.head == "weights" else start, "freeze": model.freeze, **rates}}
