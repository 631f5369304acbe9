"""A study on tiny data: what is trained, kept, compared and refused. Two trainings of steps without meaning."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import parquet
from tiny import tiny_recipe

from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError, DataError, RunError, UnreachableError
from stssl.base.exclusive import alone
from stssl.base.labels import LabelSpace
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import labels_of
from stssl.shifts import settings
from stssl.shifts.claims import claim_sentences
from stssl.shifts.distances import gain_by_place, nearest_km
from stssl.shifts.effects import CLAIMS, ShiftEffect, all_effects, study_of
from stssl.shifts.run import plan_shift, run_shift
from stssl.shifts.settings import ShiftOptions, choose_setting
from stssl.shifts.trainings import finished_runs, trainings_of
from stssl.store.store import Store

OPTIONS = ShiftOptions(2, ("random",), ("absent", "moved:500km"), degrees=0.5, draws=100)
SHORT = {"schedule": {"steps": 2, "warmup": 0, "supervised_start": 1, "evaluate_every": 2}}


def recipe_of(store, folder, **changes):
    return validate(Recipe, merge(merge(tiny_recipe(store, folder), SHORT), changes), "test")


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """A finished study, and what it said."""
    folder, said = tmp_path_factory.mktemp("study"), []
    recipe = recipe_of(store, folder)
    return recipe, folder, run_shift(recipe, OPTIONS, said.append, folder, workers=0), said


def test_every_network_is_scored_for_each_seed_and_kind_of_metadata(made):
    _, folder, study, said = made
    table = parquet.read_table(study.scores).to_pylist()
    found = {(one["model"], one["metadata"], one["seed"]) for one in table if one["part"] == "test"}
    seen = [(model, change) for model in ("teacher", "direct") for change in ("true", "absent", "moved:500km")]
    unseen = [(model, "none") for model in ("student", "control", "control teacher")]
    assert found == {(*one, seed) for one in [*seen, *unseen] for seed in (0, 1)}
    value = next(one for one in table if (one["model"], one["seed"], one["score"]) == ("direct", 1, "accuracy"))
    file = json.loads((folder / "runs" / "random-direct-s1" / "evaluation" / f"{value['part']}.json").read_text())
    assert file["networks"]["student"]["scores"]["accuracy"] == value["value"]
    assert any("6 of 6 runs to train" in line for line in said)


def test_the_page_begins_with_three_sentences_and_needs_no_network(made):
    text = made[2].report.read_text()
    first = text[: text.index("<h2>")]
    for sentence in made[2].claims.values():
        assert "95 % intervals, 2 seeds" in sentence and sentence in first
    assert "default-src &#39;none&#39;" in text and len(text) < 1_000_000
    assert json.loads((made[1] / "study.json").read_text())["claims"] == made[2].claims


def test_the_control_sees_nothing_and_direct_has_one_network(made):
    recipe, folder, _, _ = made
    of = {one.kind: one.recipe for one in trainings_of(recipe, choose_setting(recipe, OPTIONS), OPTIONS, folder)}
    assert of["direct"].model.metadata == "direct" and of["control"].votes.name == "none"
    assert not (of["control"].model.encoder.place or of["control"].model.encoder.date)
    teacher = of["teacher"].identity()
    for key in ("model", "data", "seed", "labels"):
        teacher.pop(key)
    assert all(teacher[key] == recipe.identity()[key] for key in teacher)


def test_finished_runs_are_found_by_their_recipe_and_scored_once(made):
    recipe, folder, first, _ = made
    runs = folder / "runs"
    (runs / "random-direct-s1").rename(runs / "elsewhere")
    (runs / "elsewhere" / "evaluation" / "test-absent.npz").write_bytes(b"damaged")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.suffix in (".pt", ".npz")}
    said: list[str] = []
    again = run_shift(recipe, OPTIONS, said.append, folder, workers=0)
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert [path.name for path in changed] == ["test-absent.npz"]
    assert again.claims == first.claims and any("0 of 6 runs to train" in line for line in said)
    (runs / "elsewhere").rename(runs / "random-direct-s1")
    assert len(finished_runs(runs)) == 6


def test_claims_are_about_the_score_asked_for(made):
    """Other scores need no other runs. A smaller loss is a gain; a smaller F1 (the control) is none."""
    recipe, folder, first, _ = made

    def effects(score):
        options = replace(OPTIONS, score=score)
        setting = choose_setting(recipe, options)
        trainings = trainings_of(recipe, setting, options, folder / "runs")
        done = finished_runs(folder / "runs")
        folders = [done[one.recipe.hash()].path for one in trainings]
        space = labels_of(Store.open(recipe.data.store), recipe.data.labels).space
        return all_effects(study_of(trainings, folders, setting, options, space))

    by_loss, by_f1 = effects("loss"), effects("F1")
    assert [one.score for one in (first.findings.effects[0], by_loss[0], by_f1[0])] == ["accuracy", "loss", "F1"]
    for one in by_loss:
        assert one.difference == one.against - one.value and one.low <= one.high
    assert any(one.low <= one.difference <= one.high and one.difference != 0 for one in by_loss)
    assert all(one.difference == one.value - one.against for one in by_f1)
    assert "points of loss, where less is better and counts as plus" in claim_sentences(by_loss)[CLAIMS[1]]


def test_a_study_that_cannot_be_is_refused_in_a_line(made, store, tmp_path):
    recipe, folder, _, _ = made
    for changes, words in (
        ({"model": {"metadata": "none"}}, "needs a recipe with a teacher"),
        ({"model": {"metadata": "direct"}}, "needs a recipe with a teacher"),
        ({"model": {"encoder": {"name": "raw", "place": False, "date": False}}}, "its teacher sees nothing"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_shift(recipe_of(store, tmp_path, **changes), OPTIONS, print, tmp_path, workers=0)
    for options, words in (
        (ShiftOptions(2, ("lat",)), r"--splits lat: lat is no column of groups"),
        (ShiftOptions(2, ("label:",)), r"--splits label:: give a value of label after the colon"),
        (ShiftOptions(2, ("country",)), r"--splits country: .* has no column 'country'"),
        (ShiftOptions(2, ("random",), ("moved:90d",)), "no test patch has a date"),
        (ShiftOptions(2, ("random",), ("gone",)), "'gone' is unknown"),
        (ShiftOptions(2, ("random", "blocks"), draws=110), "--draws: 110 .* give 121 or more"),
        (ShiftOptions(2, ("random",), score="mAP"), "--score: unknown score 'mAP'. There are: loss, accuracy, "),
    ):
        with pytest.raises(ConfigError, match=words):
            choose_setting(recipe, options)
    with pytest.raises(RunError, match="of another recipe"):
        run_shift(recipe_of(store, folder, optimizer={"lr": 0.1}), OPTIONS, print, folder, workers=0)
    with alone(folder, "study"), pytest.raises(RunError, match="running the study in"):
        run_shift(recipe, OPTIONS, print, folder, workers=0)


def test_what_the_store_does_not_allow_is_left_out_and_said(made):
    setting = choose_setting(made[0], ShiftOptions(2))
    assert [split.name for split in setting.splits] == ["random", "blocks"]
    assert [str(change) for change in setting.changes] == ["true", "absent", "shuffled", "moved:500km"]
    words = " ".join(setting.notes)
    assert (
        "split country is left out" in words and "moved:90d is left out" in words and "too few for intervals" in words
    )


def test_a_split_with_two_names_is_studied_once(made):
    (left,) = choose_setting(made[0], ShiftOptions(1, ("label",))).splits
    value = left.name.removeprefix("label ")
    two = choose_setting(made[0], ShiftOptions(1, ("label", f"label:{value}", "random"))).splits
    assert [split.name for split in two] == [left.name, "random"]


def test_a_store_that_does_not_answer_ends_the_study(made, monkeypatch):
    def fail(*given):
        raise error("no answer")

    monkeypatch.setattr("stssl.shifts.settings.make_split", fail)
    error = UnreachableError
    with pytest.raises(UnreachableError):
        choose_setting(made[0], ShiftOptions(2))
    error = DataError  # control: every usual split is left out
    with pytest.raises(ConfigError, match="allows none of the splits"):
        choose_setting(made[0], ShiftOptions(2))


def test_a_missing_value_is_not_left_out_as_a_country():
    values = np.array([-1] * 20 + [0] * 50 + [1] * 30)
    about = {"missing": -1}
    store = SimpleNamespace(column=lambda name: values, column_attributes=lambda name: about, path="s")
    assert settings._usual_value(store, "land") == "1"
    about = {}  # the control: -1 is a value like others
    assert settings._usual_value(store, "land") == "-1"


def test_the_plan_counts_runs_and_writes_nothing(made, tmp_path):
    text = plan_shift(made[0], ShiftOptions(2, ("random",), ("absent",)), tmp_path / "new")
    assert "6: teacher, direct, control" in text and "0 are finished" in text and "together" in text
    assert not (tmp_path / "new").exists()
    assert "6 are finished" in plan_shift(made[0], OPTIONS, made[1])


def test_the_plan_says_how_much_room_checkpoints_need(made, tmp_path, monkeypatch, caplog):
    options = ShiftOptions(2, ("random",), ("absent",))
    text = plan_shift(made[0], options, tmp_path / "new")
    assert "for checkpoints of finished runs; " in text and f"free in {tmp_path}" in text and not caplog.records
    size = max(file.stat().st_size for file in made[1].glob("runs/*/checkpoints/last.pt"))
    said = float(re.search(r"disk +up to ([0-9.]+) MB", text)[1]) * 1e6
    assert 0.3 * 12 * size < said < 1.1 * 12 * size, "files of such small networks are mostly names"
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "1.0 kB free" in plan_shift(made[0], options, tmp_path / "new")
    assert "the study needs up to" in caplog.text


def test_a_finished_run_is_not_scored_again_and_gives_up_room(made):
    recipe, folder = made[:2]
    runs = folder / "runs"
    for place in runs.glob("*/checkpoints"):  # these runs are too short to have one
        (place / "previous.pt").write_bytes(b"x")
    before = {file: file.stat().st_mtime_ns for file in runs.glob("*/evaluation/*")}
    run_shift(recipe, OPTIONS, lambda line: None, folder, workers=0)
    kept = [{file.name for file in place.glob("*.pt")} for place in runs.glob("*/checkpoints")]
    assert kept == [{"last.pt", "best.pt"}] * 6
    assert {file: file.stat().st_mtime_ns for file in runs.glob("*/evaluation/*")} == before


def effect(claim, split, low, high, holm):
    value = 0.5 if low is None or high is None else 0.45 if high < 0 else 0.55
    about = (claim, split, split == "random", "test", "one", "other", "mAP", 3, 100, 20)
    return ShiftEffect(*about, value, 0.5, low, high, holm, holm)


def test_sentences_say_what_intervals_show():
    found = claim_sentences(
        [
            effect(CLAIMS[1], "random", 0.02, 0.08, 0.01),
            effect(CLAIMS[1], "country", -0.09, -0.02, 0.01),
            effect(CLAIMS[1], "blocks", -0.01, 0.1, 0.01),
            effect(CLAIMS[1], "season", 0.01, 0.1, 0.2),
            effect(CLAIMS[2], "random", None, None, None),
        ]
    )
    words = found[CLAIMS[1]]
    assert "helps on random (not shifted) +5.0 (+2.0 to +8.0)" in words
    assert "harms on country -5.0 (-9.0 to -2.0)" in words
    assert "no difference shown on blocks +5.0 (-1.0 to +10.0), season" in words
    assert "no interval on random +0.0" in found[CLAIMS[2]] and "nothing could be compared" in found[CLAIMS[0]]


def test_less_is_better_for_some_scores_and_worse_for_others():
    about = (CLAIMS[1], "country", False, "test", "one", "other")
    harmed = ShiftEffect(*about, "loss", 3, 100, 20, 0.46, 0.40, -0.09, -0.03, 0.01, 0.01)
    control = ShiftEffect(*about, "mAP", 3, 100, 20, 0.46, 0.40, 0.03, 0.09, 0.01, 0.01)
    assert "harms on country -6.0 (-9.0 to -3.0) (points of loss, where less" in claim_sentences([harmed])[CLAIMS[1]]
    assert "helps on country +6.0 (+3.0 to +9.0) (points of mAP, 95" in claim_sentences([control])[CLAIMS[1]]


def test_distances_are_those_on_the_sphere():
    places = np.array([[0.0, 0.0], [0.0, 179.9], [np.nan, 3.0]])
    found = nearest_km(places, np.array([[0.0, 1.0], [0.0, -179.9], [np.nan, 0.0]]))
    assert found[:2] == pytest.approx([111.19, 22.24], abs=0.01) and np.isnan(found[2])


def test_a_map_of_gains_leaves_out_runs_that_diverged():
    known = {"targets": np.array([[0], [1]]), "metadata": np.zeros((2, 4))}
    right, wrong = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])

    def gain(*direct):
        logits = {"student": [wrong] * len(direct), "direct": direct}

        def read(_, seed, model="student"):
            return SimpleNamespace(arrays={**known, "logits_student": logits[model][seed]})

        study = SimpleNamespace(seeds=range(len(direct)), test=read, space=LabelSpace(("a", "b"), False))
        return gain_by_place(study, None)["gain"].tolist()

    assert gain(right, wrong) == [0.5, 0.5] and gain(right, wrong * np.nan) == [1, 1]
    assert np.isnan(gain(right * np.nan)).all()
