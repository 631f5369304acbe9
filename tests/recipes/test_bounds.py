import pytest

from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError
from stssl.recipes.recipe import Recipe

CASES = [("model", "image_size", 1), ("model", "image_size", 2**63), ("compute", "threads", 2**40)]
CASES += [("batch", "labeled", 2**63), ("batch", "unlabeled_ratio", 2**63)]


@pytest.mark.parametrize(("section", "key", "value"), CASES)
def test_sizes_that_nothing_can_have_name_their_key(recipe_tree, section, key, value):
    with pytest.raises(ConfigError, match=rf"{section}\.{key}"):
        validate(Recipe, merge(recipe_tree, {section: {key: value}}), "test")
    validate(Recipe, merge(recipe_tree, {section: {key: 16}}), "test")


def test_patches_of_a_step_are_bounded_together_and_both_keys_named(recipe_tree):
    with pytest.raises(ConfigError, match=r"batch\.labeled 1048576 times batch\.unlabeled_ratio 1024 are 1,07"):
        validate(Recipe, merge(recipe_tree, {"batch": {"labeled": 2**20, "unlabeled_ratio": 1024}}), "test")
    validate(Recipe, merge(recipe_tree, {"batch": {"labeled": 2**17, "unlabeled_ratio": 8}}), "test")
