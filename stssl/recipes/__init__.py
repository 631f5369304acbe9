"""Describe a run by typed settings (its recipe), open its data, and build its networks and loaders.

`recipe` defines training recipes and the base of all recipes. `pretraining` defines recipes of pretraining. `sections`
and `optimizers` define the parts of recipes. `run_data` opens stores. `build` makes networks, loaders and scalers.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.recipes.build import build_step, check_recipe
    from stssl.recipes.pretraining import PretrainRecipe, kind_of
    from stssl.recipes.recipe import Recipe, RunRecipe, load_as, load_training_recipe
    from stssl.recipes.run_data import PixelData, RunData, open_data, open_pixels

__all__ = [
    "PixelData",
    "PretrainRecipe",
    "Recipe",
    "RunData",
    "RunRecipe",
    "build_step",
    "check_recipe",
    "kind_of",
    "load_as",
    "load_training_recipe",
    "open_data",
    "open_pixels",
]

_MODULES = {
    "build": ("build_step", "check_recipe"),
    "pretraining": ("PretrainRecipe", "kind_of"),
    "recipe": ("Recipe", "RunRecipe", "load_as", "load_training_recipe"),
    "run_data": ("PixelData", "RunData", "open_data", "open_pixels"),
}

__getattr__ = lazy_names(__name__, _MODULES)
