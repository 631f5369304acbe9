"""Sweeps whose folder is in an object store."""

import json
import math

import pytest

from stssl.base.errors import RunError
from stssl.sweeps.run import run_sweep
from stssl.sweeps.sweep_place import SweepPlace
from stssl.sweeps.tuning import StudySearcher

pytest.importorskip("obstore")
PLACE = "s3://bucket/sweeps/s"


def test_a_study_is_sent_before_a_trial_begins(server, elsewhere, open_book):
    with SweepPlace(PLACE).shared():
        book = open_book(storage="s3://bucket/sweeps")
        assert book.sweep.place == PLACE
        searcher = StudySearcher(book, 2, math.inf, lambda line: None)
        first = searcher.suggest("a")
        assert first["recipe"]["launch"]["storage"] == f"{PLACE}/trials"
        sent = server.objects["bucket/sweeps/s/study.db"]
        with pytest.raises(RunError, match="another process runs this sweep"), SweepPlace(PLACE).shared():
            pass
    assert sent.startswith(b"SQLite") and "bucket/sweeps/s/lock.json" not in server.objects
    server.objects["bucket/sweeps/s/study.db"] = sent  # a kill after the trial began
    elsewhere()
    with SweepPlace(PLACE).shared():
        again = StudySearcher(open_book(storage="s3://bucket/sweeps"), 2, math.inf, lambda line: None).suggest("a")
    assert again == first
    del server.objects["bucket/sweeps/s/study.db"]
    server.objects["bucket/sweeps/s/trials/trial-0000/recipe.yaml"] = b"name: x"
    elsewhere()
    with pytest.raises(RunError, match=r"has no study 's', and s3://bucket/sweeps/s/trials has runs"):
        open_book(storage="s3://bucket/sweeps")


def test_checkpoints_in_a_bucket_go_after_one_listing_and_after_their_mark(server):
    names = ("checkpoints/best.pt", "checkpoints/committed.json", "checkpoints/student.safetensors", "done.json")
    for number in range(3):
        server.objects |= {f"bucket/sweeps/s/trials/trial-000{number}/{name}": b"x" for name in names}
    SweepPlace(PLACE).remove_checkpoints(["trial-0000", "trial-0002"])
    left = {name.removeprefix("bucket/sweeps/s/trials/") for name in server.objects}
    assert left == {f"trial-0001/{name}" for name in names} | {
        f"trial-000{number}/{name}" for number in (0, 2) for name in names[2:]
    }
    assert [command for command, _ in server.requests].count("GET") == 1 and len(server.requests) == 5
    assert [key.rpartition("/")[2] for key in server.removed] == ["committed.json"] * 2 + ["best.pt"] * 2
    SweepPlace(PLACE).remove_checkpoints([])
    assert len(server.requests) == 5


@pytest.mark.slow
def test_a_sweep_in_a_bucket_soak(server, elsewhere, open_book, tmp_path):
    open_book(storage="s3://bucket/sweeps", trials=2, scheduler={"name": "none"})
    elsewhere()
    lines = []
    first = run_sweep(tmp_path / "s.yaml", ["trials=1"], lines.append)
    elsewhere()
    found = run_sweep(tmp_path / "s.yaml", [], lines.append, 1, 1)
    assert (found.best, found.report) == (f"{PLACE}/best.yaml", f"{PLACE}/report.html") == (first.best, first.report)
    best = json.loads(server.objects["bucket/sweeps/s/best.json"])
    assert best["run"].startswith(f"{PLACE}/trials/trial-000")
    names = {name.removeprefix("bucket/sweeps/s/") for name in server.objects}
    assert {"study.db", "trials.csv", "trials.parquet", "best.yaml", "report.html", "confirmation.json"} <= names
    assert {f"trials/trial-000{number}/done.json" for number in range(2)} <= names
    assert not [name for name in names if name.endswith("lock.json") or name == "lock"]
