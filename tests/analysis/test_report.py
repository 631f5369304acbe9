"""Test the page about runs."""

import numpy as np
import pytest

from stssl.analysis import figures
from stssl.analysis.report import _outcome
from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace


def test_patches_without_a_label_are_no_right_answers():
    """Two of four are labeled, and both are wrong."""
    space = LabelSpace(("a", "b"), False)
    logits, targets = np.array([[1.0, 0.0]] * 4), np.array([[1], [1], [IGNORED], [IGNORED]])
    wrong = _outcome(logits, targets, space).wrong
    np.testing.assert_array_equal(wrong, [1, 1, np.nan, np.nan])
    place = np.arange(4.0)
    assert "mean error 1.000" in figures.error_maps(place, place, {"student": wrong})
    assert figures.error_maps(place, place, {"student": np.full(4, np.nan)}) == ""


@pytest.mark.parametrize("name", [r"a $\frac$ b", "100$ {x$"])
def test_dollars_in_names_are_no_formulas(name):
    assert name.replace("{", "") in figures.class_bars({name: {name: {"count": 3, "AP": 0.5}}}).replace("{", "")


def test_long_names_are_told_apart_by_what_they_do_not_share():
    end = "-schedule.steps=300-evaluation.batchnorm_batches=2-official"
    names = [f"fixmatch_teacher-model.metadata={kind}{end}-s0" for kind in ("none", "teacher")]
    assert figures.brief(names) == ["model.metadata=none", "model.metadata=teacher"]
    assert figures.brief(["a", "b"]) == ["a", "b"]
    assert all(len(name) <= 41 for name in figures.brief(["x" * 90 + "1" * 90, "y" * 90 + "2" * 90]))
    assert figures.brief(["x" * 90 + "1" + "x" * 90, "x" * 90 + "2" + "x" * 90]) == ["run 1", "run 2"]


def test_runs_beyond_the_colors_have_another_line():
    rows = [{"step": step, "kind": "train", "loss": 1.0} for step in (1, 2)]
    page = figures.curves({f"run {number}": rows for number in range(7)}, "train", ["loss"])
    assert "stroke-dasharray" in page
    assert "stroke-dasharray: 5.55" not in figures.curves({"run": rows}, "train", ["loss"])
