"""Test what a sweep writes: the best recipe, tables, and a page that draws stopped trials differently."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stssl.analysis.page import SCRIPT
from stssl.base.errors import RunError
from stssl.recipes.recipe import load_training_recipe
from stssl.sweeps import charts
from stssl.sweeps.confirmation import Candidate, Confirmation
from stssl.sweeps.report import _importances, _spread, effect, write_sweep_report
from stssl.sweeps.results import pareto, ranked, rows, write_best, write_table

MODES = {1: "max", -1: "min"}
TWO = {"metric": ["accuracy", "calibration_error"], "scheduler": {"name": "none"}}


@pytest.fixture
def book(open_book, carry_out):
    """Make six trials: four complete, one stopped while it was far ahead, one failed."""
    book = open_book(trials=7)
    carry_out(book, [0.1, 0.2])
    carry_out(book, [0.1, 0.6, 0.4])
    carry_out(book, [0.99], end="stopped")
    carry_out(book, [], end="failed")
    carry_out(book, [0.3])
    carry_out(book, [0.5, 0.5])
    book.next()
    return book


def test_states_and_scores_of_best_checkpoints(book):
    found = rows(book)
    states = ["complete", "complete", "stopped", "failed", "complete", "complete", "unfinished"]
    assert [row.state for row in found] == states
    assert [row.values for row in found] == [[0.2], [0.6], [0.99], None, [0.3], [0.5], None]
    assert (found[1].step, found[1].last, found[5].step) == (8, 12, 4)
    assert math.isclose(sum(row.cpu_hours for row in found[:3]), 3 * 60 / 3600)


def test_a_stopped_trial_is_not_the_best(book):
    order = ranked(rows(book), ["max"])
    assert [row.number for row in order] == [1, 5, 4, 0]
    assert ranked(rows(book), ["min"])[0].number == 0
    only_stopped = [row for row in rows(book) if row.state == "stopped"]
    assert ranked(only_stopped, ["max"]) == only_stopped


def test_best_yaml_is_a_recipe(book):
    path = write_best(book, rows(book))
    recipe = load_training_recipe(path)
    about = json.loads((path.parent / "best.json").read_text())
    assert about["trial"] == 1 and about["accuracy"] == 0.6 and recipe.name == "s-best"
    assert recipe.algorithm.threshold == about["values"]["algorithm.threshold"]
    assert recipe.launch == book.sweep.recipe.launch
    assert str((path.parent / "best").resolve()) == rows(book)[1].run


def test_without_any_score_the_error_says_why(open_book, carry_out):
    book = open_book()
    carry_out(book, [], end="failed")
    with pytest.raises(RunError, match="Trial 0 failed: loss is not finite at step 3"):
        write_best(book, rows(book))


def test_several_metrics_give_the_trials_that_no_other_dominates(open_book, carry_out):
    book = open_book(**TWO)
    for accuracy, error in ((0.5, 0.3), (0.6, 0.2), (0.7, 0.4), (0.4, 0.1), (0.65, 0.45)):
        carry_out(book, [{"accuracy": accuracy, "calibration_error": error}])
    found = rows(book)
    assert {row.number for row in pareto(found, ["max", "min"])} == {1, 2, 3}
    assert [row.number for row in ranked(found, ["max", "min"])] == [2, 1, 3, 4, 0]
    write_best(book, found)
    names = {path.stem for path in (book.sweep.folder / "pareto").iterdir()}
    assert names == {"trial-0001", "trial-0002", "trial-0003"}
    page = write_sweep_report(book, found).read_text()
    assert "Trials that no other dominates" in page


def test_tables_hold_every_trial(book):
    write_table(book, rows(book))
    with (book.sweep.folder / "trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["state"] for line in lines][2:4] == ["stopped", "failed"]
    assert lines[3]["reason"] == "loss is not finite at step 3"
    table = pq.read_table(book.sweep.folder / "trials.parquet")
    assert table.num_rows == 7 and table["accuracy"].to_pylist()[1] == 0.6
    assert {"algorithm.threshold", "optimizer.lr", "model.injection.name", "gpu_hours"} <= set(table.column_names)


def test_the_page_is_whole_and_needs_nothing_else(book):
    path = write_sweep_report(book, rows(book))
    page = path.read_text()
    for heading in ("Best trials", "History", "What mattered", "Effect of each injection site", "Slices", "Time"):
        assert f"<h2>{heading}</h2>" in page
    assert "4 complete, 1 stopped, 1 failed, 1 unfinished" in page
    assert "are not comparable with complete trials" in page
    assert "more &lt;words&gt;" in page and "<words>" not in page
    links = set(re.findall(r"<a href='([^']*)'>", page))
    folders = [Path(row.run) for row in rows(book) if Path(row.run).is_dir()]
    assert {(path.parent / link).resolve() for link in links} == {folder.resolve() for folder in folders}
    assert 0 < len(folders) < 7  # a trial that failed at once has no folder
    assert not re.search(r"<script|<link|(src|href)=.https?:", page.replace(SCRIPT, ""))
    assert page.count("<svg") >= 4


EVIL = "<script>alert('x')</script><!--\x1b[31m$\\frac{&amp;"


def test_no_words_of_a_sweep_become_html(book):
    """Parameters, choices, names of sweep, metric, recipe, trials, candidates and folders, and reasons of failures."""
    evil = [f"{i}{EVIL}" for i in range(2)]
    axes = [
        replace(axis, domain=replace(axis.domain, choices=tuple(evil))) if axis.domain.choices else axis
        for axis in book.space.axes
    ]
    book.space = replace(book.space, axes=tuple(replace(axis, key=f"{axis.key}{EVIL}") for axis in axes))
    config = book.sweep.config.model_copy(update={"name": EVIL, "metric": EVIL, "mode": "max", "study": f"{EVIL}:x"})
    recipe = book.sweep.recipe.model_copy(update={"name": EVIL})
    trials = [
        replace(
            row,
            params={f"{k}{EVIL}": evil[row.number % 2] if isinstance(v, str) else v for k, v in row.params.items()},
            reason=row.reason and f"{EVIL}\n{EVIL}",
            run=f"{row.run}/{EVIL}",
        )
        for row in rows(book)
    ]
    book.sweep = replace(book.sweep, config=config, recipe=recipe)
    found = Confirmation([1], [Candidate(EVIL, {EVIL: [0.5]}, {EVIL: [0.4]})], [{"time": EVIL, "runs": [EVIL]}])
    page = write_sweep_report(book, trials, found).read_text().replace(SCRIPT, "")
    assert "<script" not in page and "\x1b" not in page
    assert "<!--" not in re.sub(r"(?s)<svg.*?</svg>", "", page)  # matplotlib names its texts in comments
    assert page.count("&lt;script&gt;") > 20 and "<h1>&lt;script&gt;" in page and "<pre>&lt;script&gt;" in page


def test_effects_leave_stopped_trials_out(book):
    groups = effect(rows(book), "model.injection.name", ("late", "film"))
    assert sum(map(len, groups.values())) == 4
    assert not any(0.99 in values for values in groups.values())


def test_the_page_shows_runs_with_other_seeds(book):
    found = Confirmation(
        [1, 2],
        [
            Candidate("trial-0001", {"accuracy": [0.5, 0.7]}, {"accuracy": [0.4, 0.6]}),
            Candidate("recipe", {"accuracy": [0.3]}),
        ],
        [{"time": "2026-01-01T00:00", "runs": ["trial-0001"]}],
    )
    page = write_sweep_report(book, rows(book), found).read_text()
    assert "0.6000 ± 0.1414" in page and "<td>0.3000</td>" in page and "2026-01-01T00:00: trial-0001" in page


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("loss", -1)])
def test_importances_are_of_what_makes_trials_good(open_book, metric, sign):
    """The rate alone decides which trials are good, the decay alone which are bad."""
    search = {"optimizer.lr": {"low": 0.0001, "high": 1.0}, "ema.decay": {"low": 0.5, "high": 0.9}}
    options = {"sampler": {"name": "random"}, "scheduler": {"name": "none"}, "points": [], "trials": 60}
    book = open_book(search=search, metric=metric, **options)
    for number in range(60):
        trial, values = book.next()
        good, bad = values["optimizer.lr"] > 0.8, values["ema.decay"] < 0.6
        book.complete(trial, [sign * (0.9 if good else 0.1 if bad else 0.5 + number / 1000)])
    good = _importances(book, 0)
    assert good["optimizer.lr"] > 0.8
    control = open_book(search=search, metric=metric, **options)
    control.sweep = replace(control.sweep, config=control.sweep.config.model_copy(update={"mode": MODES[-sign]}))
    assert _importances(control, 0)["ema.decay"] > 0.8


def test_best_and_worst_follow_the_mode(open_book, carry_out):
    groups = {"late": [0.2, 0.4]}
    assert cells(_spread(groups, "loss", "min"))[-2:] == ["0.2", "0.4"]
    assert cells(_spread(groups, "mAP", "max"))[-2:] == ["0.4", "0.2"]


def cells(table):
    return re.findall(r"<td[^>]*>([^<]*)</td>", table)


def test_the_page_of_several_metrics_needs_no_complete_trial(open_book, carry_out):
    book = open_book(**TWO)
    for accuracy, error in ((0.5, 0.3), (0.6, 0.4)):
        carry_out(book, [{"accuracy": accuracy, "calibration_error": error}], end="unfinished")
    assert "No trial is complete" in write_sweep_report(book, rows(book)).read_text()
    carry_out(book, [{"accuracy": 0.7, "calibration_error": 0.1}])
    assert "No trial is complete" not in write_sweep_report(book, rows(book)).read_text()


def test_a_chart_has_room_for_the_values_of_every_part(open_book):
    search = {"optimizer.name": None, "optimizer.lr": None}
    (name, lr) = charts.wholes(open_book(search=search).space.axes)
    assert name.domain.choices == ("adamw", "sgd")
    assert (lr.domain.low, lr.domain.high, lr.domain.log) == (1e-5, 1.0, True)
    bands = [["B04"], ["B04", "B03"]]
    kept, rate = charts.wholes(open_book("alone", search={"data.bands": bands, "optimizer.lr": None}).space.axes)
    assert (rate.domain.low, rate.domain.high) == (1e-5, 1e-2) and list(kept.domain.choices) == bands
