"""Test the page about runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from stssl.analysis import figures
from stssl.analysis.borders import borders_inside, world
from stssl.analysis.drawing import legend
from stssl.analysis.histories import CURVE_POINTS, averaged, thinned_history
from stssl.analysis.matrices import confusion
from stssl.analysis.outcomes import compare_with_labels
from stssl.analysis.page import SERIES
from stssl.analysis.patch_images import pick_patches
from stssl.analysis.run_groups import RunDigest, grouped_runs
from stssl.analysis.score_tables import class_table, score_tables
from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace
from stssl.training.run_files import ScoresFile

AB = LabelSpace(("a", "b"), False)


def test_patches_without_a_label_are_no_right_answers():
    """Two of four are labeled, and both are wrong."""
    logits, targets = np.array([[1.0, 0.0]] * 4), np.array([[1], [1], [IGNORED], [IGNORED]])
    outcome = compare_with_labels(logits, targets, AB)
    np.testing.assert_array_equal(outcome.wrong, [1, 1, np.nan, np.nan])
    place = np.arange(4.0)
    (drawn,) = figures.error_maps(place, place, {"student": outcome.wrong})
    assert "mean error 1.000" in drawn
    assert figures.error_maps(place, place, {"student": np.full(4, np.nan)}) == []
    assert list(pick_patches(outcome)) == ["Surest mistakes"]


def test_surest_mistakes_come_first_and_right_patches_are_none():
    logits = np.array([[5.0, 0.0], [1.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    outcome = compare_with_labels(logits, np.array([[1], [1], [0], [1]]), AB)
    picked = pick_patches(outcome)
    assert picked["Surest mistakes"].tolist() == [0, 1]
    assert picked["Right"].tolist() == [2, 3]
    assert "Wrong" not in picked  # both mistakes are shown as the surest


@pytest.mark.parametrize("name", [r"a $\frac$ b", "100$ {x$"])
def test_dollars_in_names_are_no_formulas(name):
    assert name.replace("{", "") in figures.class_bars({"student": {name: {"count": 3, "AP": 0.5}}}).replace("{", "")


def test_long_names_are_told_apart_by_what_they_do_not_share():
    end = "-schedule.steps=300-evaluation.batchnorm_batches=2-official"
    names = [f"fixmatch_teacher-model.metadata={kind}{end}-s0" for kind in ("none", "teacher")]
    assert figures.brief(names) == ["model.metadata=none", "model.metadata=teacher"]
    assert figures.brief(["a", "b"]) == ["a", "b"]
    assert all(len(name) <= 41 for name in figures.brief(["x" * 90 + "1" * 90, "y" * 90 + "2" * 90]))
    assert figures.brief(["x" * 90 + "1" + "x" * 90, "x" * 90 + "2" + "x" * 90]) == ["run 1", "run 2"]


def line(values, step=1.0):
    return averaged([np.array([[step * i, value] for i, value in enumerate(values)])])


def test_runs_beyond_the_colors_have_another_line():
    names = [f"run {number}" for number in range(7)]
    drawn = figures.curves("loss", "nats", dict.fromkeys(names, line([1, 2])), {})
    assert "stroke-dasharray" in drawn and "stroke-dasharray" in legend(names)
    assert "stroke-dasharray: 6.29" not in figures.curves("loss", "nats", {"run": line([1, 2])}, {})


def test_curves_name_themselves_on_hover_and_single_points_are_seen():
    drawn = figures.curves("loss", "nats", {"<b>": line([3]), "none": None}, {"<b>": line([4, 5])})
    assert "<title>&lt;b&gt;: 3 at step 0</title>" in drawn
    assert "<title>&lt;b&gt;, teacher: 5 at step 1</title>" in drawn
    assert drawn.count("<use") > 3  # the point has a marker, as ticks have
    assert figures.curves("loss", "nats", {"none": None}, {}) == ""


def test_figures_take_the_colors_of_the_page_and_leave_names_alone():
    drawn = figures.class_bars({"student": {"class #2563a8;": {"count": 3, "AP": 0.5}}})
    assert "class #2563a8;" in drawn and "var(--series-0)" in drawn
    assert f"{SERIES[0]}" not in re.sub(r">[^<]*<", "><", drawn)


def test_each_cell_of_a_map_says_what_it_is():
    lat, lon = np.array([48.0, 48.0, 50.0]), np.array([10.0, 10.0, 14.0])
    (drawn,) = figures.error_maps(lat, lon, {"student": np.array([1.0, 0.0, 0.0])})
    titles = re.findall(r"<title>([^<]*)</title>", drawn)
    assert len(titles) == 2 and any(title.startswith("0.500 of 2 patches near 48") for title in titles)


def test_borders_are_those_of_the_world_and_are_cut_to_the_frame():
    coasts, borders = borders_inside(-10.5, -5.4, 51.3, 55.5)  # Ireland
    assert len(borders) >= 1 and coasts
    points = np.concatenate(coasts)
    assert (np.abs(points - [-8, 53.4]) < [6, 5]).all()
    assert borders_inside(-40, -38, 30, 32) == ([], [])  # the Atlantic
    assert sum(map(len, borders_inside(-180, 180, -90, 90, 300).coasts)) < sum(map(len, world().coasts))


def test_long_histories_are_thinned_and_averaged_where_all_runs_have_steps():
    rows = [{"step": step, "kind": "train", "loss": step / 2} for step in range(1000)]
    thin = thinned_history(rows, "train", "loss")
    assert len(thin) == CURVE_POINTS and thin[-1].tolist() == [999, 499.5]
    assert len(thinned_history(rows, "validation", "loss")) == 0
    mean = averaged([np.array([[0, 1.0], [5, 3.0]]), np.array([[5, 5.0], [6, 0.0]])])
    assert mean.steps.tolist() == [5] and mean.mean.tolist() == [4] and (mean.low, mean.high) == (3, 5)


def digest(name, seed, accuracy, key="k", *, recall=0.5, classes=("a", "b")):
    scores = {"accuracy": accuracy, "balanced_accuracy": recall, "recall": recall, "loss": 1.0}
    network = {"scores": scores, "per_class": {one: {"count": 3.0, "recall": recall} for one in classes}}
    part = {"patches": 6, "checkpoint": "best", "step": 4, "networks": {"student": network}}
    parts = {"test": ScoresFile.model_validate(part)}
    return RunDigest(name, Path(name), key, (seed, seed), "", None, parts, False, {}, [])


def test_seeds_of_a_recipe_are_one_row_with_mean_and_spread():
    runs = [digest("x-s0", 0, 0.5), digest("x-s1", 1, 0.7), digest("y", 0, 0.9, "other"), digest("x-again", 1, 0.1)]
    groups = grouped_runs(runs)
    assert [group.label for group in groups] == ["x-s* (2 seeds)", "y", "x-again"]
    text = "".join(score_tables(groups))
    assert "0.6000 ± 0.1414" in text and "0.9000<" in text and "best>" not in text
    assert "balanced accuracy" in text and ">recall<" not in text


def test_runs_with_other_classes_have_their_own_tables():
    groups = grouped_runs([digest("x", 0, 0.5), digest("y", 0, 0.7, "2", classes=("a", "b", "c"))])
    assert "".join(score_tables(groups)).count("<table>") == 2
    assert class_table(groups) == []  # nothing to compare
    same = grouped_runs([digest("x", 0, 0.5), digest("y", 0, 0.7, "2")])
    assert "".join(score_tables(same)).count("<table>") == 1 and len(class_table(same)) == 2


def test_a_confusion_matrix_counts_and_ignores_what_is_unknown():
    targets = np.array([[0], [0], [0], [1], [IGNORED]])
    drawn = confusion(np.array([[0], [1], [1], [1], [0]]), targets, AB)
    assert "a predicted as b: 2 of 3 patches (66.7%)" in drawn and "b predicted as b: 1 of 1" in drawn
    assert confusion(np.zeros((1, 1), int), np.array([[IGNORED]]), AB) == ""


def test_a_matrix_of_several_labels_compares_with_how_often_they_are_labeled():
    space = LabelSpace(("a", "b", "never"), True)
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, IGNORED, 0]])
    drawn = confusion(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0]]), targets, space)
    assert "Patches with a: b is labeled in 50.0% of 2, and predicted in 100.0%" in drawn and "+50" in drawn
    assert "2 most frequent of 3 classes" in drawn
