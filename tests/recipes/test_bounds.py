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


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"style": "kornia", "m": 31}, r"augment\.randaugment.*30"),
        ({"style": "stssl", "m": 10.5}, r"augment\.randaugment: m is 10\.5, but in the style stssl it may be 0 to 10"),
        ({"style": "kornia-0.7", "n": 16}, r"augment\.randaugment\.n.*15"),
        ({"style": "fixmatch", "m": -1}, r"augment\.randaugment\.m.*0"),
        ({"style": "korna"}, r"augment\.randaugment\.style: .*'kornia-0\.7'.*'fixmatch'.*did you mean kornia"),
        ({"style": "pil"}, r"augment\.randaugment\.style: .*'stssl', 'kornia-0\.7', 'kornia' or 'fixmatch'"),
    ],
)
def test_strong_views_that_no_style_has_name_what_is_allowed(recipe_tree, augment, words):
    with pytest.raises(ConfigError, match=words) as error:
        validate(Recipe, merge(recipe_tree, {"augment": {"randaugment": augment}}), "test")
    assert "\n" not in str(error.value)
    for style, m in (("kornia", 30), ("kornia-0.7", 15.5), ("fixmatch", 5), ("stssl", 10)):
        validate(Recipe, merge(recipe_tree, {"augment": {"randaugment": {"style": style, "m": m}}}), "test")


def test_pillow_resizes_bytes_only(recipe_tree):
    with pytest.raises(ConfigError, match=r"data: resize is pillow, which resizes bytes: set scale to bytes"):
        validate(Recipe, merge(recipe_tree, {"data": {"resize": "pillow", "scale": "sigmas"}}), "test")
    for scale, resize in (("bytes", "pillow"), ("bytes", "corners"), ("sigmas", "corners")):
        validate(Recipe, merge(recipe_tree, {"data": {"resize": resize, "scale": scale}}), "test")
