"""Choose the learning rates of networks that start from given weights, and check that a given head fits the classes."""

from collections.abc import Sequence

from stssl.base.errors import ConfigError
from stssl.base.json_types import JsonObject
from stssl.models.sealed import UNREADABLE, read_with_header
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.students.description import KEY, parse_description
from stssl.students.loading import weights_file

BACKBONE_FACTOR = 0.1
"""Learning rate of a backbone with given weights, relative to that of the new head. On EuroSAT with 20 labels a class,
ImageNet weights gave a test accuracy of 85.5 % with it, and of 68.6 % with one rate for all layers."""


def backbone_factor(recipe: RunRecipe) -> float:
    """Return the learning rate of a run's backbone, divided by the learning rate of the new layers.

    This is `optimizer.backbone_factor` if the recipe sets it. Else it is 0.1 if a training recipe gives weights and no
    layer decay, and 1 in all other cases.
    """
    given = recipe.optimizer.backbone_factor
    if given is not None:
        return given
    tuned = isinstance(recipe, Recipe) and recipe.model.weights != "none" and recipe.optimizer.layer_decay == 1
    return BACKBONE_FACTOR if tuned else 1.0


def encoder_factor(recipe: RunRecipe) -> float:
    """Return the learning rate of a pretrained encoder of places, divided by the learning rate of the new layers.

    This is `optimizer.backbone_factor` if the recipe sets it, else 0.1.
    """
    given = recipe.optimizer.backbone_factor
    return BACKBONE_FACTOR if given is None else given


def about_fine_tuning(recipe: RunRecipe) -> JsonObject:
    """Describe for a run's record how the networks learn from given weights, or with a frozen backbone.

    Return a dict with one key, `fine_tuning`: a dict that says how the head starts, whether the backbone is frozen, and
    how slowly it learns. Return {} if the recipe gives no weights and freezes nothing, or is one of pretraining.
    """
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


def require_same_classes(recipe: Recipe, classes: Sequence[str]) -> None:
    """Check that a head from given weights was trained on the classes of the store, in the same sequence.

    Do nothing if the recipe takes a new head. Accept files of weights that do not name their classes.

    Args:
        recipe: Recipe of the run.
        classes: Names of the store's classes.

    Raises:
        ConfigError: The head was trained on other classes, or the weights have no head.
    """
    if recipe.model.head != "weights":
        return
    path = weights_file(recipe.model.weights.partition(":")[2])
    try:
        header = read_with_header(path)[1] if path.suffix == ".safetensors" else {}
    except (OSError, *UNREADABLE):  # the code that loads the weights reports a damaged file
        return
    if KEY not in header:
        return
    own = [described.name for described in parse_description(header[KEY], path).classes]
    if not own:
        raise ConfigError(f"model.head: {path} is a pretrained encoder and has no head. Set model.head=new.")
    for number, (name, wanted) in enumerate(zip(own, classes, strict=False), 1):
        if name != wanted:
            raise ConfigError(
                f"model.head: in {path} class {number} is {name}, and class {number} of the store is {wanted}. "
                "Set model.head=new."
            )
