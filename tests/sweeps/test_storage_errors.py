"""A study that is damaged, locked, lost or on a full disk: words that say what to do, and no traceback."""

import random
import resource
import sqlite3
from contextlib import contextmanager, suppress

import pytest

from stssl.base.errors import RunError
from stssl.sweeps import study as studies
from stssl.sweeps.results import rows, write_table
from stssl.sweeps.storage_errors import study_errors
from stssl.sweeps.study import study_url
from stssl.sweeps.tuning import StudySearcher, search_here


@pytest.fixture
def begun(open_book, carry_out):
    """A sweep with two trials, and the file of its study."""
    book = open_book(sampler={"name": "random"})
    for score in (0.2, 0.6):
        carry_out(book, [score])
    return book, book.sweep.folder / "study.db"


def again(open_book):
    return open_book(sampler={"name": "random"})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda data: b"hello, this is no database at all" * 40, "file is not a database"),
        (lambda data: data[: len(data) // 2], r"malformed|does not hold what a study holds"),
        (lambda data: data[:5000] + bytes(len(data) - 5000), r"malformed|does not hold what a study holds"),
        (lambda data: data.replace(b"COMPLETE", b"COMPLEAT"), "does not hold what a study holds.*COMPLEAT"),
        (lambda data: data.replace(b'{\\"recipe', b'{\\"rec\x00pe').replace(b'"search', b"?search"), "study"),
    ],
    ids=["text", "cut", "zeros", "state", "attribute"],
)
def test_a_damaged_study_is_told_with_what_to_do(begun, open_book, harm, words):
    _, path = begun
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    with pytest.raises(RunError, match=words) as error:
        again(open_book)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and "name=" in str(error.value)
    path.write_bytes(whole)
    assert len(again(open_book).study.get_trials()) == 2  # the control


def test_no_flipped_bytes_end_in_another_error(begun, open_book):
    _, path = begun
    whole, dice, refused = path.read_bytes(), random.Random(0), 0
    places = [i for i, byte in enumerate(whole) if byte]  # a new study is mostly zeros
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(40):
            data[dice.choice(places)] = dice.randrange(256)
        path.write_bytes(data)
        try:
            again(open_book)
        except RunError as error:
            assert "study" in str(error)
            refused += 1
    assert refused > 2


@pytest.mark.parametrize("lose", ["remove", "empty"])
def test_a_lost_study_does_not_begin_again_beside_the_runs_of_its_trials(begun, open_book, lose):
    _, path = begun
    path.unlink() if lose == "remove" else path.write_bytes(b"")
    with pytest.raises(RunError, match=r"has no study 's', and .*trials has runs of its trials\. Put the study back"):
        again(open_book)


def test_control_an_empty_study_of_a_start_that_was_killed_begins(open_book, tmp_path):
    (tmp_path / "sweeps" / "s").mkdir(parents=True)
    (tmp_path / "sweeps" / "s" / "study.db").write_bytes(b"")
    assert again(open_book).next()[0].number == 0


def test_a_locked_study_says_who_must_end(begun, open_book, monkeypatch):
    _, path = begun
    monkeypatch.setattr(studies, "LOCKED_S", 0.1)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"study\.db: database is locked\. Another process holds it: wait for that one"):
        again(open_book)
    holder.rollback()
    again(open_book)


@contextmanager
def files_of(most):
    """No file may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_study_that_cannot_grow_ends_in_words_and_continues(begun, open_book):
    book, path = begun
    told = study_errors(study_url(book.sweep.config))
    with files_of(path.stat().st_size), pytest.raises(RunError, match=r"study\.db: .*continues\.$"), told:
        for number in range(200):
            book.study.set_user_attr(f"filler {number}", "x" * 1000)
    assert again(open_book).next()[0].number == 2


def test_a_journal_that_cannot_grow_or_is_damaged_is_told_too(open_book, tmp_path):
    path, journal = tmp_path / "j.log", {"study": f"journal:{tmp_path}/j.log", "sampler": {"name": "random"}}
    book = open_book(**journal)
    told = study_errors(study_url(book.sweep.config))
    with files_of(path.stat().st_size), pytest.raises(RunError, match=r"study: cannot write .*j\.log: File too"), told:
        book.study.set_user_attr("filler", "x" * 1000)
    assert open_book(**journal).next()[0].number == 0
    lines = path.read_text().splitlines()
    for damaged in (["?" * 50], [lines[0].replace("op_code", "op_cade")], ["[1]"], ['{"op_code": 99}']):
        path.write_text("\n".join([*damaged, *lines]) + "\n")
        with pytest.raises(RunError, match=r"j\.log does not hold what a study holds"):
            open_book(**journal)


def test_a_full_disk_says_how_much_room_there_is(begun):
    """SQLite's own limit gives the same code as a full disk."""
    book, path = begun
    told, row = study_errors(study_url(book.sweep.config)), "INSERT INTO study_user_attributes VALUES (?, 1, 'a', ?)"
    file = sqlite3.connect(path)
    file.execute(f"PRAGMA max_page_count = {file.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(RunError, match=r"database or disk is full \(.* free in .*\)\. Make room there; then"), told:
        file.executemany(row, [(number + 99, "x" * 9000) for number in range(9)])
    file.close()


def test_a_study_that_fails_in_mid_search_ends_the_search_and_no_trial_fails_of_it(open_book, monkeypatch):
    book = open_book(sampler={"name": "random"}, trials=2)
    said = []
    searcher = StudySearcher(book, 1, float("inf"), said.append)

    def carried(recipe, report):
        (book.sweep.folder / "study.db").write_bytes(b"no database" * 1000)
        with suppress(RunError):  # as a run's errors are: they become the trial's
            report({"step": 4, "steps": 8, "accuracy": 0.5})

    monkeypatch.setattr("stssl.sweeps.tuning.carry_out", carried)
    with pytest.raises(RunError, match=r"study\.db: .*It is damaged: put a whole copy back"):
        search_here(searcher)
    assert not said


def test_a_damaged_mark_of_the_folder_is_an_error_in_words(open_book, tmp_path):
    shared = {"study": f"sqlite:///{tmp_path}/shared.db", "sampler": {"name": "random"}}
    mark = open_book(**shared).sweep.folder / "study.id"
    whole = mark.read_bytes()
    open_book(**shared)
    mark.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="keeps its runs in"):
        open_book(**shared)
    mark.unlink()
    mark.mkdir()
    with pytest.raises(RunError, match=r"cannot read .*study\.id"):
        open_book(**shared)
    assert len(whole) == 32


@pytest.mark.parametrize("name", ["trials.csv", "trials.parquet"])
def test_tables_are_written_whole_or_not_at_all(begun, name):
    book, _ = begun
    write_table(book, rows(book))
    path = book.sweep.folder / name
    whole = path.read_bytes()
    with files_of(100), pytest.raises(RunError, match=r"cannot write .*trials\.csv: File too large"):
        write_table(book, rows(book))
    assert path.read_bytes() == whole and not list(book.sweep.folder.glob(".*"))
