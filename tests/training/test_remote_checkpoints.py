"""Checkpoints in an object store: files first, the mark last, and only what the mark names counts."""

import pytest
import torch
from far_storage import BUCKET

from stssl import __version__
from stssl.base.errors import DataError, StsslError
from stssl.base.mirror import mirror_of
from stssl.base.remote_folder import OtherWriterError, RemoteFolder
from stssl.training.run_folder import RunFolder

pytest.importorskip("obstore")
PLACE = "bucket/runs/far/checkpoints/"


def opened():
    return RunFolder(f"{BUCKET}/far").checkpoints


def writer():
    checkpoints = opened()
    checkpoints.begin_sending()
    mirror_of(f"{BUCKET}/far").writing = True
    return checkpoints


def save(checkpoints, step, best_step):
    state = {
        "recipe": "r",
        "written_by": __version__,
        "progress": {"step": step, "best_step": best_step},
        "step": {"x": torch.full((100,), float(step))},
        "optimizer": {},
    }
    checkpoints.save(state, best=best_step == step)
    checkpoints.wait()


def steps():
    return [state["progress"]["step"] for _, state in opened().newest()]


STAGES = {
    "copy": ("copy", "checkpoints/previous.pt"),
    "upload": ("write", "checkpoints/last.pt"),
    "commit": ("replace", "checkpoints/committed.json"),
    "copy of the best": ("copy", "checkpoints/best.pt"),
}


class KilledError(BaseException):
    """Ends a thread as a kill does: nothing handles it."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("done", [False, True])
def test_a_writer_killed_at_any_request_leaves_a_whole_state(stage, done, server, elsewhere, monkeypatch):
    """`done` says if the request itself still came through."""
    method, name = STAGES[stage]
    checkpoints = writer()
    save(checkpoints, 1, 1)
    save(checkpoints, 2, 2)
    kept = getattr(RemoteFolder, method)

    def kill(self, *given):
        if name not in given:
            return kept(self, *given)
        if done:
            kept(self, *given)
        raise KilledError

    monkeypatch.setattr(RemoteFolder, method, kill)
    with pytest.raises(StsslError):
        save(checkpoints, 3, 3)
    monkeypatch.setattr(RemoteFolder, method, kept)
    elsewhere()
    newest = 3 if stage == "copy of the best" or (stage == "commit" and done) else 2
    assert steps()[0] == newest and opened().best()["progress"]["step"] == newest
    elsewhere()
    again = writer()
    for step in range(newest + 1, 5):
        save(again, step, 3 if step > 3 else step)
    elsewhere()
    assert steps() == [4, 3] and opened().best()["progress"]["step"] == 3
    assert {name.removeprefix(PLACE) for name in server.objects} == {
        "committed.json", "last.pt", "previous.pt", "best.pt",
    }  # fmt: skip


def test_only_what_the_mark_names_counts(server, elsewhere):
    checkpoints = writer()
    save(checkpoints, 1, 1)
    save(checkpoints, 2, 1)
    whole = dict(server.objects)
    for damage in (whole[f"{PLACE}last.pt"][:300], whole[f"{PLACE}best.pt"], b""):
        elsewhere()
        server.objects[f"{PLACE}last.pt"] = damage
        assert steps() == [1]
    elsewhere()
    server.objects.update(whole)
    flipped = bytearray(whole[f"{PLACE}last.pt"])
    flipped[400] ^= 1
    server.objects[f"{PLACE}last.pt"] = bytes(flipped)
    found = [state for _, state in opened().newest()]
    assert "damaged" in str(found[0]) and found[1]["progress"]["step"] == 1
    elsewhere()
    server.objects.update(whole)
    assert steps() == [2, 1]
    del server.objects[f"{PLACE}committed.json"]
    elsewhere()
    assert steps() == []
    server.objects["bucket/runs/far/done.json"] = b"{}"  # a finished run that was copied into the bucket
    assert steps() == [2, 1]
    server.objects[f"{PLACE}committed.json"] = b"{"
    with pytest.raises(DataError, match=r"committed.json is damaged"):
        steps()


def test_no_checkpoint_is_fetched_to_learn_that_there_is_one(server, elsewhere):
    """A driver asks this of a run that other machines train."""
    assert not opened().exist()
    save(writer(), 1, 1)
    elsewhere()
    before = len(server.requests)
    assert opened().exist()
    assert not [path for _, path in server.requests[before:] if path.endswith(".pt")]
    assert opened().has("last")
    assert [path for _, path in server.requests[before:] if path.endswith("last.pt")]  # control


def test_lost_checkpoints_are_not_a_run_at_its_start(server, elsewhere):
    save(writer(), 1, 1)
    for name in ("last.pt", "best.pt"):
        del server.objects[PLACE + name]
    elsewhere()
    with pytest.raises(DataError, match="lacks the checkpoints that its run has committed"):
        steps()


def test_a_second_writer_ends_the_first(server, elsewhere):
    first = writer()
    save(first, 1, 1)
    elsewhere()
    second = writer()
    save(second, 2, 1)
    with pytest.raises(OtherWriterError, match="another process trains this run"):
        save(first, 3, 1)
    elsewhere()
    save(writer(), 4, 1)
    assert steps()[0] == 4


@pytest.mark.parametrize(("kind", "words"), [(503, "tried again"), (403, "access is denied"), (301, "AWS_REGION")])
def test_refused_checkpoints_are_one_line(kind, words, server, elsewhere):
    checkpoints = writer()
    save(checkpoints, 1, 1)
    server.kind, server.failures = kind, 99
    with pytest.raises(DataError, match=words) as caught:
        save(checkpoints, 2, 1)
    server.failures = 0
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.passing is (kind == 503)
    elsewhere()
    assert steps() == [1]


def test_failures_that_pass_are_not_seen(server, elsewhere):
    checkpoints = writer()
    for step, kind in enumerate((500, 503, "reset", "short"), 1):
        server.kind, server.failures = kind, 2
        save(checkpoints, step, 1)
    elsewhere()
    server.kind, server.failures = "short", 2
    assert steps() == [4, 3]
