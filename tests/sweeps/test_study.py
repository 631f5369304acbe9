"""Test the study: what it refuses and keeps, and what a later start finds in it."""

import json

import optuna
import pytest

from stssl.base.errors import ConfigError, RunError
from stssl.base.exclusive import alone
from stssl.sweeps.study import SPACE, _same, storage_of


def test_an_old_name_with_another_space_is_refused(open_book):
    open_book(sampler={"name": "random"})
    open_book(trials=9, sampler={"name": "tpe"}, scheduler={"name": "none"})
    with pytest.raises(RunError, match=r"searched something else; it differs in .*search\.optimizer\.lr.*name="):
        open_book(search={"algorithm.threshold": {"low": 0.2, "high": 0.9}})
    with pytest.raises(RunError, match="differs in metrics"):
        open_book(metric="F1")
    with pytest.raises(RunError, match=r"differs in recipe\.seed"):
        open_book(recipe={"seed": 5})
    open_book(name="another", metric="F1")


def test_a_study_of_someone_else_is_refused(open_book, tmp_path):
    (tmp_path / "sweeps" / "s").mkdir(parents=True)
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path}/sweeps/s/study.db")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(RunError, match="was not made by a sweep"):
        open_book()


def test_points_come_first_and_once(open_book):
    points = [{}, {"algorithm.threshold": 0.8}]
    open_book(points=points)
    book = open_book(points=points)
    drawn = [book.next()[1] for _ in range(3)]
    assert [values["algorithm.threshold"] for values in drawn[:2]] == [0.3, 0.8]
    assert drawn[0]["optimizer.lr"] == drawn[1]["optimizer.lr"] == 0.003 != drawn[2]["optimizer.lr"]


@pytest.mark.parametrize("study", [None, "journal"])
def test_a_later_start_resumes_what_was_running(open_book, carry_out, tmp_path, study):
    url = f"journal:{tmp_path}/journal.log" if study else None
    book = open_book(study=url, trials=4)
    done = carry_out(book, [0.2, 0.5, 0.4])
    running, values = book.next()
    later = open_book(study=url, trials=4)
    again, same = later.next()
    assert (again.number, same) == (running.number, values)
    others = [later.next() for _ in range(2)]
    assert sorted(trial.number for trial, _ in others) == [2, 3] and later.next() is None
    kept = later.study.trials[done.number]
    assert kept.state.name == "COMPLETE" and kept.values == [0.5]


def test_a_later_start_does_not_draw_the_same_again(open_book):
    first = open_book(trials=20, sampler={"name": "random"}, points=[])
    one = [first.next()[1]["optimizer.lr"] for _ in range(5)]
    for trial in first.study.trials:
        first.study.tell(trial.number, 0.5)
    second = open_book(trials=20, sampler={"name": "random"}, points=[])
    two = [second.next()[1]["optimizer.lr"] for _ in range(5)]
    assert not set(one) & set(two)


def test_control_a_sampler_with_the_same_seed_draws_the_same(open_book):
    one, two = (open_book(name=name, sampler={"name": "random"}, points=[]) for name in ("a", "b"))
    assert one.next()[1] == two.next()[1]


def test_asha_and_median_stop_the_worse(open_book, carry_out):
    for scheduler in ({"name": "asha", "grace": 4, "reduction": 2}, {"name": "median", "startup": 2, "grace": 0}):
        book = open_book(name=scheduler["name"], scheduler=scheduler)
        for score in (0.6, 0.7, 0.8):
            carry_out(book, [score, score, score])
        assert book.report(book.next()[0], 4, 0.1, 1.0)
        assert not book.report(book.next()[0], 4, 0.9, 1.0)
    never = open_book(name="never", scheduler={"name": "none"})
    carry_out(never, [0.9])
    assert not never.report(never.next()[0], 4, 0.0, 1.0)


def test_a_trial_that_continues_may_tell_again_what_it_told(open_book, recwarn):
    book = open_book()
    trial, _ = book.next()
    for _ in range(2):
        book.report(trial, 4, 0.5, 1.0)
    assert not recwarn.list and book.study.trials[0].intermediate_values == {4: 0.5}
    trial.report(0.5, 4)
    assert "already reported" in str(recwarn.list[0].message)


def test_a_grid_ends_when_all_was_tried(open_book):
    search = {"algorithm.threshold": [0.3, 0.5], "augment.strong_labeled": None}
    book = open_book(sampler={"name": "grid"}, search=search, trials=100)
    drawn = [book.next()[1] for _ in range(4)]
    assert book.next() is None
    assert len({tuple(sorted(values.items())) for values in drawn}) == 4


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_every_sampler_proposes(open_book, carry_out, sampler):
    options = {"tpe": {"startup": 2}, "gp": {"startup": 2}, "nsga2": {"population": 2}}.get(sampler, {})
    book = open_book(sampler={"name": sampler, **options}, trials=8)
    for score in (0.1, 0.5, 0.3, 0.2):
        carry_out(book, [score])
    assert set(book.next()[1]) == {"algorithm.threshold", "optimizer.lr", "model.injection.name"}


def test_urls(tmp_path):
    with pytest.raises(ConfigError, match="mysql"):
        storage_of("mysql://x/y")
    with pytest.raises(RunError, match="cannot open sqlite"):
        storage_of("sqlite:////nowhere/at/all.db")
    with pytest.raises(RunError, match=r"cannot open journal:/nowhere/at/all\.log: No such file"):
        storage_of("journal:/nowhere/at/all.log")
    assert storage_of(f"journal:{tmp_path}/study.log").get_all_studies() == []


@pytest.mark.parametrize("url", ["postgresql://me:geheim@{}/x", "postgresql://{}/x?user=me&password=geheim"])
def test_passwords_are_not_shown(open_book, url):
    pytest.importorskip("psycopg")
    with pytest.raises(RunError, match="cannot open") as error:
        storage_of(url.format("127.0.0.1:1"))
    assert "geheim" not in str(error.value) and "127.0.0.1:1/x" in str(error.value)
    with pytest.raises(ConfigError) as error:
        storage_of(url.format("h").replace("postgresql", "mysql"))
    assert "geheim" not in str(error.value) and "mysql" in str(error.value)
    book = open_book()
    config = book.sweep.config.model_copy(update={"study": url.format("h")})
    with pytest.raises(RunError, match="searched something else") as error:
        _same({"search": {}}, book.study, config)
    assert "geheim" not in str(error.value) and "postgresql" in str(error.value)


def test_a_study_of_before_there_were_votes_continues_without_them_and_only_so(open_book):
    book = open_book()
    old = json.loads(book.study.user_attrs[SPACE])
    assert old["recipe"].pop("votes") == {"name": "none"}
    book.study.set_user_attr(SPACE, json.dumps(old))
    open_book()
    ours = old | {"recipe": old["recipe"] | {"votes": {"name": "votes", "count": 32}}}
    with pytest.raises(RunError, match=r"differs in recipe.votes.count, recipe.votes.name"):
        _same(ours, book.study, book.sweep.config)


def test_two_folders_do_not_share_a_study(open_book, tmp_path):
    shared = {"study": f"sqlite:///{tmp_path}/shared.db", "trials": 2}
    assert open_book(**shared).next()[0].number == 0
    again = open_book(**shared)
    assert len(again.interrupted) == 1
    with pytest.raises(RunError, match=r"keeps its runs in .*sweeps/s, and not in"):
        open_book(**shared, storage=str(tmp_path / "elsewhere"))
    again.sweep.folder.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "elsewhere" / "s2")
    (tmp_path / "elsewhere" / "s").rename(tmp_path / "other")
    (tmp_path / "elsewhere" / "s2").rename(tmp_path / "elsewhere" / "s")
    assert len(open_book(**shared, storage=str(tmp_path / "elsewhere")).interrupted) == 1


def test_a_sweep_is_carried_out_by_one_process(tmp_path):
    with alone(tmp_path, "sweep"), pytest.raises(RunError, match="running the sweep in"), alone(tmp_path, "sweep"):
        pass
    with alone(tmp_path, "sweep"):
        pass


def test_keys_that_recipes_did_not_have_yet_are_no_difference(open_book):
    book = open_book()
    tree = json.loads(book.study.user_attrs[SPACE])
    assert tree["recipe"]["optimizer"].pop("clip") is None
    book.study.set_user_attr(SPACE, json.dumps(tree))
    open_book()
    tree["recipe"]["optimizer"]["weight_decay"] = 0.7
    book.study.set_user_attr(SPACE, json.dumps(tree))
    with pytest.raises(RunError, match=r"differs in recipe\.optimizer\.weight_decay"):
        open_book()
