"""A run says what it trains on, and warns of parts that are not as asked."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from stssl.base.config import Config, apply_overrides, validate
from stssl.base.errors import ConfigError
from stssl.base.paths import Word
from stssl.data.splits import BlockSplit, LeaveOutSplit, Split, make_split
from stssl.recipes.part_counts import announce, part_lines, part_warnings
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data


def recipe_of(tree, *overrides):
    return validate(Recipe, apply_overrides(tree, overrides), "test")


def test_counts_labels_and_unused_bands_are_said(recipe_tree):
    recipe = recipe_of(recipe_tree, "data.bands=[B04]", "model.weights=none")
    data = open_data(recipe)
    counts, bands = part_lines(recipe, data)
    assert f"{len(data.split.train):,} train ({len(data.labeled)} labeled)" in counts
    assert f"{len(data.split.test):,} test (" in counts
    assert "not used: B03, B02" in bands
    every = recipe_of(recipe_tree, f"data.bands=[{','.join(data.store.bands)}]")
    assert len(part_lines(every, open_data(every))) == 1  # the control: no band is left


def test_parts_far_from_their_share_and_without_patches_are_warned_of(recipe_tree, caplog):
    recipe = recipe_of(recipe_tree, "data.split={name: blocks, degrees: 0.1}")
    data = open_data(recipe)
    rows = np.concatenate([data.split.train, data.split.validation, data.split.test])
    tenth = len(rows) // 10
    good = replace(data, split=Split(rows[3 * tenth :], rows[:tenth], rows[tenth : 3 * tenth]))
    assert not part_warnings(recipe, good)
    bad = replace(data, split=Split(rows[: 6 * tenth], rows[6 * tenth :], rows[:0]))
    with caplog.at_level(logging.WARNING):
        announce(recipe, bad)
    assert "validation (4" in caplog.text and "lower data.split.degrees (now 0.1)" in caplog.text
    assert "no patch for test" in caplog.text and "0%, asked: 20%" in caplog.text


def test_more_labels_than_there_are_is_warned_of(recipe_tree):
    asked = recipe_of(recipe_tree, "labels={per_class: 2000, total: null}")
    (warning,) = part_warnings(asked, open_data(asked))
    assert "labels.per_class=2000" in warning and "patches are labeled" in warning
    total = recipe_of(recipe_tree, "labels={total: 20000, per_class: null}")
    assert "all are taken" in part_warnings(total, open_data(total))[0]
    fits = recipe_of(recipe_tree, "labels={per_class: 1, total: null}")
    assert not part_warnings(fits, open_data(fits))


class OneSquare:
    """A store whose patches all lie in one square."""

    path, size, split_names = "one.zarr", 50, ()

    def column(self, name):
        return {"error_code": np.zeros(50, np.uint8), "country": np.array(["A"] * 49 + ["B"])}.get(
            name, np.full(50, 8.5)
        )

    def has_column(self, name):
        return True


@pytest.mark.parametrize(
    "split", [BlockSplit(name="blocks"), LeaveOutSplit(name="leave_out", column="country", values=("B",))]
)
def test_one_square_for_three_parts_is_a_mistake_in_one_line(split):
    with pytest.raises(ConfigError, match=r"smaller ones, such as data\.split\.degrees=0\.") as caught:
        make_split(OneSquare(), split)
    assert "\n" not in str(caught.value) and "BlockSplit" not in str(caught.value)


class Bands(Config):
    bands: tuple[Word, ...] = ("B04",)


def test_numbers_are_names_in_lists():
    assert validate(Bands, {"bands": [1, 2, "B03"]}, "test").bands == ("1", "2", "B03")
    for wrong in ([1.5], [True], [None]):
        with pytest.raises(ConfigError, match="give names"):
            validate(Bands, {"bands": wrong}, "test")


def test_an_override_that_the_shell_split_is_told_so():
    for piece, form in (("data.split={name:", "'data.split={...}'"), ("data.bands=[B04,", "'data.bands=[...]'")):
        with pytest.raises(ConfigError, match="quote it") as caught:
            apply_overrides({}, [piece])
        assert form in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        apply_overrides({}, ["a={b}}"])
    assert "quote it" not in str(caught.value)
