"""Test the answers to Tune, with real runs in this process instead of Ray workers."""

import json
import math
import signal

import optuna
import pytest

from stssl.base.config import validate
from stssl.base.errors import ConfigError, RunError, StoppedError
from stssl.base.ray_session import lacking
from stssl.recipes.recipe import Recipe, load_training_recipe
from stssl.recipes.sections import LaunchConfig
from stssl.sweeps.confirmation import confirm
from stssl.sweeps.results import rows
from stssl.sweeps.run import run_sweep, search
from stssl.sweeps.trials import REASON, needs
from stssl.sweeps.tuning import (
    FINISHED,
    StudyScheduler,
    StudySearcher,
    concurrency,
    driver_needs,
    search_here,
)
from stssl.training.launch import run, worker_bundles
from stssl.training.run_folder import RunFolder


def go(book, deadline=math.inf):
    lines = []
    return StudySearcher(book, 2, deadline, lines.append), lines


def train(config):
    return run(validate(Recipe, config["recipe"], "trial"))


def states(book):
    return [trial.state.name for trial in book.study.trials]


def test_trials_are_handed_out_while_there_is_room(open_book):
    book = open_book(trials=3)
    searcher, _ = go(book)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first["number"] == 0 and second["number"] == 1 and searcher.suggest("c") is None
    assert first["recipe"]["name"] == "trial-0000" and first["recipe"]["launch"]["workers"] == 0
    book.stop(searcher.live.pop("a"))
    assert searcher.suggest("c")["number"] == 2
    book.stop(searcher.live.pop("b"))
    assert searcher.suggest("d") is None
    book.stop(searcher.live.pop("c"))
    assert searcher.suggest("d") == FINISHED
    assert states(book) == ["PRUNED"] * 3


def test_a_trial_whose_driver_died_is_handed_out_again_but_not_for_ever(open_book):
    book = open_book(trials=1)
    searcher, lines = go(book)
    for start in ("a", "b", "c"):
        assert searcher.suggest(start)["number"] == 0 and states(book) == ["RUNNING"]
        searcher.on_trial_complete(start, error=True)
    assert states(book) == ["FAIL"] and "driver died" in book.study.trials[0].user_attrs["reason"]
    assert len(lines) == 3 and searcher.suggest("d") == FINISHED


def test_a_trial_that_trained_to_its_end_is_complete(open_book):
    book = open_book()
    searcher, lines = go(book)
    done = train(searcher.suggest("a")).finished()
    searcher.on_trial_complete("a", {})
    assert states(book)[0] == "COMPLETE" and math.isclose(book.study.trials[0].value, done["best"], rel_tol=1e-6)
    assert lines == [f"trial 0: accuracy {done['best']:.4f}"]


@pytest.mark.parametrize(
    ("metric", "scores", "state"),
    [
        ("accuracy", {"accuracy": None}, "FAIL"),
        ("calibration_error", {"accuracy": 0.5, "calibration_error": None}, "FAIL"),
        ("calibration_error", {"accuracy": 0.5, "calibration_error": 0.25}, "COMPLETE"),
    ],
)
def test_a_trial_without_its_score_fails_alone(open_book, metric, scores, state):
    book = open_book(metric=metric)
    searcher, lines = go(book)
    folder = RunFolder(book.sweep.folder / "trials" / f"trial-{searcher.suggest('a')['number']:04d}")
    folder.path.mkdir(parents=True)
    folder.append({"step": 12, "kind": "validation", "loss": 1.0, **scores})
    folder.finish({"best": scores["accuracy"]})
    searcher.on_trial_complete("a", {})
    assert states(book)[0] == state and ("no checkpoint has" in lines[0]) == (state == "FAIL")
    assert rows(book)[0].values == ([0.25] if state == "COMPLETE" else None)


def test_the_reason_of_an_earlier_start_is_forgotten(open_book):
    book = open_book()
    searcher, _ = go(book)
    reason = book.sweep.folder / "trials" / f"trial-{searcher.suggest('a')['number']:04d}" / REASON
    reason.parent.mkdir(parents=True)
    reason.write_text("no room on the disk")
    again, lines = go(open_book())  # the first process was killed before it wrote that down
    assert again.suggest("b")["number"] == 0 and not reason.exists()
    again.on_trial_complete("b", {"step": 4})
    assert states(book)[0] == "RUNNING" and "not at its end" in lines[0]


def test_a_trial_that_raised_is_recorded_with_its_reason(open_book):
    book = open_book()
    searcher, lines = go(book)
    folder = book.sweep.folder / "trials" / f"trial-{searcher.suggest('a')['number']:04d}"
    folder.mkdir(parents=True)
    (folder / REASON).write_text("loss is not finite\nmore")
    searcher.on_trial_complete("a", {})
    assert states(book)[0] == "FAIL" and book.study.trials[0].user_attrs["reason"].startswith("loss is not")
    assert lines == ["trial 0: failed: loss is not finite"]


def test_a_trial_that_ran_out_of_time_continues_later(open_book):
    book = open_book()
    searcher, _ = go(book)
    number = searcher.suggest("a")["number"]
    searcher.on_trial_complete("a", {"step": 4})
    assert states(book)[number] == "RUNNING"
    late, _ = go(open_book(), deadline=0.0)
    assert late.suggest("b") == FINISHED
    again, _ = go(open_book())
    assert again.suggest("c")["number"] == number


def test_the_scheduler_stops_what_the_study_gives_up_but_never_at_the_last_step(open_book, carry_out):
    class Named:
        trial_id = "a"

    for step, decision in ((4, "STOP"), (12, "CONTINUE")):
        book = open_book(name=f"at{step}", scheduler={"name": "asha", "grace": 4, "reduction": 2})
        for score in (0.6, 0.7, 0.8):
            carry_out(book, [score, score, score])
        searcher, _ = go(book)
        searcher.suggest("a")
        scheduler = StudyScheduler(searcher)
        assert scheduler.on_trial_result(None, Named(), {"step": step, "steps": 12, "accuracy": 0.1}) == decision
        searcher.on_trial_complete("a", {"step": step})
        assert states(book)[3] == {"STOP": "PRUNED", "CONTINUE": "RUNNING"}[decision]


def test_values_that_do_not_go_together_fail_alone(open_book):
    book = open_book(
        search={"batch.labeled": [8, 4], "launch.workers": [1, 6]}, points=[{"batch.labeled": 4, "launch.workers": 6}]
    )
    searcher, lines = go(book)
    assert searcher.suggest("a")["number"] == 1
    assert states(book)[0] == "FAIL" and "batch.labeled" in lines[0]


def test_resources_of_trials():
    launch = LaunchConfig(workers=2, cpus_per_worker=1.5, gpus_per_worker=0.25)
    assert needs(launch) == {"CPU": 3.0, "GPU": 0.5}
    assert concurrency(launch, {"CPU": 12, "GPU": 1}, driver_needs(1)) == 2
    assert concurrency(LaunchConfig(workers=1), {"CPU": 2}, driver_needs(1)) == 2
    assert concurrency(LaunchConfig(workers=1), {"CPU": 2}, driver_needs(2)) == 1
    with pytest.raises(RunError, match="need 3 CPU, and Ray has 2"):
        concurrency(launch, {"CPU": 2, "GPU": 1}, driver_needs(1))


def test_bundles_and_what_lacks():
    bundles = worker_bundles(LaunchConfig(workers=(2, 4), cpus_per_worker=1.5, gpus_per_worker=0.25))
    assert bundles == [{"CPU": 1.5, "GPU": 0.25}] * 2
    assert lacking(bundles, {"CPU": 3, "GPU": 0.5}) == {}
    assert lacking(bundles, {"CPU": 2.5, "GPU": 0.5}) == {"CPU": 3.0}
    assert lacking(bundles, {"CPU": 3}) == {"GPU": 0.5}


def test_a_cluster_that_grows_is_given_time_where_the_recipe_says_so():
    with pytest.raises(RunError, match=r"launch\.nodes_timeout_s=900"):
        concurrency(LaunchConfig(), {}, driver_needs(1))
    with pytest.raises(RunError, match=r"No node came within launch\.nodes_timeout_s=60"):
        concurrency(LaunchConfig(nodes_timeout_s=60), {}, driver_needs(1))


def test_a_metric_that_no_run_has_is_an_error_before_anything_starts(open_book):
    book = open_book(metric="acuracy")
    with pytest.raises(ConfigError, match="Did you mean accuracy"):
        search(book.sweep, print)


def test_a_whole_sweep_in_this_process(open_book, tmp_path):
    schedule = {"steps": 12, "warmup": 0, "supervised_start": 2, "evaluate_every": 4}
    search_for = {"optimizer.lr": [0.003, 1.0e30, 1.0e-12, 2.0e-12], "augment.strong_labeled": [True]}
    asha = {"name": "asha", "grace": 4, "reduction": 2}
    open_book("whole", {"schedule": schedule}, search=search_for, trials=9, sampler={"name": "grid"}, scheduler=asha)
    lines = []
    result = run_sweep(tmp_path / "whole.yaml", [], lines.append, top=1, seeds=2)
    study = optuna.load_study(study_name="whole", storage=f"sqlite:///{tmp_path}/sweeps/whole/study.db")
    by_rate = {trial.params["optimizer.lr"]: trial for trial in study.trials}
    assert by_rate[0.003].state.name == "COMPLETE" and by_rate[1.0e30].state.name == "FAIL"
    assert "finite" in by_rate[1.0e30].user_attrs["reason"]
    assert len(study.trials) == 4 and not any(trial.state.name == "RUNNING" for trial in study.trials)
    assert result.best.name == "best.yaml" and "Again with other seeds" in result.report.read_text()
    found = json.loads((tmp_path / "sweeps" / "whole" / "confirmation.json").read_text())
    assert found["seeds"] == [1, 2] and all(len(one["validation"]["accuracy"]) == 2 for one in found["candidates"])
    assert len(found["looks"]) == 1 and any(one["test"] for one in found["candidates"])

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    again = run_sweep(tmp_path / "whole.yaml", [], lines.append, top=1, seeds=2)
    assert again == result and {path: path.stat().st_mtime_ns for path in before} == before
    assert len(json.loads((tmp_path / "sweeps" / "whole" / "confirmation.json").read_text())["looks"]) == 1

    confirmation = tmp_path / "sweeps" / "whole" / "confirmation.json"
    looked = json.loads(confirmation.read_text())["looks"][0]["runs"]
    for damage in ("", "[]", '{"seeds": [1]}', '{"seeds": 1, "candidates": [{"x": 1}], "looks": []}'):
        whole = confirmation.read_text()
        confirmation.write_text(damage)
        with pytest.raises(RunError, match=r"confirmation.json.*Delete it"):
            run_sweep(tmp_path / "whole.yaml", [], lines.append)
        confirmation.write_text(whole)
    confirmation.unlink()  # as if the process had been killed after its look at test
    run_sweep(tmp_path / "whole.yaml", [], lines.append, top=1, seeds=2)
    assert [look["runs"] for look in json.loads(confirmation.read_text())["looks"]] == [looked]

    best = load_training_recipe(result.best)
    assert run(best).finished()["steps"] == 12


@pytest.mark.parametrize(("lost", "first"), [(0, "trial-0000"), (1, "recipe")])
def test_a_candidate_that_lost_seeds_does_not_win_by_the_rest(open_book, carry_out, monkeypatch, lost, first):
    """The trial is better than the recipe on each seed that it came to the end of."""
    book = open_book(trials=1, points=[{"optimizer.lr": 0.005}])
    carry_out(book, [0.5])
    assert book.space.recipe(rows(book)[0].params).hash() != book.sweep.recipe.hash()
    monkeypatch.setattr("stssl.sweeps.confirmation._test", lambda *_: [])
    for name, score, seeds in (("trial-0000", 0.9, (1, 2)[lost:]), ("recipe", 0.4, (1, 2))):
        for seed in (1, 2):
            folder = RunFolder(book.sweep.folder / "confirm" / f"{name}-s{seed}")
            folder.path.mkdir(parents=True)
            if seed in seeds:
                folder.append({"step": 12, "kind": "validation", "loss": 1.0, "accuracy": score})
                folder.finish({"best": score})
    monkeypatch.setattr("stssl.sweeps.confirmation._train", lambda book, recipes: None)  # the lost seed fails again
    found = confirm(book, rows(book), 1, 2, lambda line: None)
    assert found.candidates[0].name == first and [one.failed for one in found.candidates] == [0, lost]


def test_the_hours_of_a_killed_sweep_are_spent(open_book):
    plan = {"trials": 2, "hours": 1.0, "scheduler": {"name": "none"}}
    book = open_book(**plan)
    assert book.hours == 0.0
    book.tick()
    book.started -= 1800
    book.report(book.next()[0], 4, 0.5, 1800.0)  # nothing after it: killed
    again = open_book(**plan)
    assert 0.5 <= again.hours < 0.6
    again.tick()
    again.started -= 1800
    again.tick()
    lines = []
    search(open_book(**plan).sweep, lines.append)
    assert "1 hours are over" in lines[-1] and states(again) == ["RUNNING"]
    search(open_book(**plan | {"hours": 9.0}).sweep, lines.append)
    assert states(again) == ["COMPLETE", "COMPLETE"]


def test_a_sweep_that_is_asked_to_end_continues_later(open_book, tmp_path):
    schedule = {"steps": 12, "warmup": 0, "supervised_start": 2, "evaluate_every": 2}
    book = open_book("asked", {"schedule": schedule}, trials=2, scheduler={"name": "none"})
    searcher, _ = go(book)
    decide = searcher.decide

    def decide_and_ask(trial_id, metrics):
        if metrics["step"] == 4:
            signal.raise_signal(signal.SIGTERM)
        return decide(trial_id, metrics)

    searcher.decide = decide_and_ask
    with pytest.raises(StoppedError):
        search_here(searcher)
    assert states(book)[0] == "RUNNING"
    run_sweep(tmp_path / "asked.yaml", [], print)
    later = open_book("asked", {"schedule": schedule}, trials=2, scheduler={"name": "none"})
    assert states(later) == ["COMPLETE", "COMPLETE"]
    written = RunFolder(tmp_path / "sweeps" / "asked" / "trials" / "trial-0000").rows()
    assert [row["step"] for row in written if row["kind"] == "validation"] == [2, 4, 6, 8, 10, 12]
