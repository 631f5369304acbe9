"""Folders in object stores: conditional writes, locks, and copies of this process."""

import json
import os
import time

import pytest
from far_storage import BUCKET
from gcs_server import gcs_server

from stssl.base import lease, remote, remote_folder
from stssl.base.errors import DataError, RunError
from stssl.base.lease import LOCK_FILE, Lease
from stssl.base.mirror import mirror_of
from stssl.base.outputs import local_output
from stssl.base.remote_folder import OtherWriterError, RemoteFolder

pytest.importorskip("obstore")


def everything(name):
    return True


def check_protocol(url):
    folder = RemoteFolder(url)
    assert folder.listed() == {} and folder.read("a") is None and folder.read_marked("a") is None
    folder.write("a", b"hello")
    assert folder.read("a") == b"hello" and folder.tail("a", 3) == b"llo"
    first = folder.replace("mark", b"1", None)
    with pytest.raises(OtherWriterError):
        folder.replace("mark", b"2", None)
    second = folder.replace("mark", b"2", first)
    with pytest.raises(OtherWriterError):
        folder.replace("mark", b"3", first)
    assert folder.replace("mark", b"2", first) == second  # sent twice, since the first answer was lost
    folder.copy("a", "sub/b")
    with pytest.raises(FileNotFoundError):
        folder.copy("none", "c")
    folder.remove("a")
    folder.remove("a")
    assert {name: about.size for name, about in folder.listed().items()} == {"mark": 1, "sub/b": 5}


def test_s3_does_what_runs_need(server):
    check_protocol(f"{BUCKET}/x")


def test_google_storage_does_what_runs_need(monkeypatch, tmp_path):
    remote.bucket.cache_clear()
    with gcs_server(tmp_path, monkeypatch):
        check_protocol("gs://bucket/x")
    remote.bucket.cache_clear()


def test_the_end_of_an_empty_file_is_empty_and_a_number_in_its_name_does_not_make_it_so(server):
    folder = RemoteFolder(f"{BUCKET}/run416")
    folder.write("a", b"")
    assert folder.tail("a", 3) == b"" and folder.tail("none", 3) is None
    folder.write("a", b"hello")
    server.failures, server.kind = 3, 503
    with pytest.raises(DataError, match="run416/a"):
        folder.tail("a", 3)


def test_large_files_are_sent_in_parts(server, monkeypatch):
    monkeypatch.setattr(remote_folder, "PART_BYTES", 1000)
    folder, body = RemoteFolder(f"{BUCKET}/x"), bytes(range(250)) * 10
    folder.write("big", body)
    assert folder.read("big") == body and not server.parts
    assert sum("partNumber" in path for method, path in server.requests) == 3
    server.failures, server.kind = 2, 503
    folder.write("big", body[1:])
    assert folder.read("big") == body[1:]


def test_names_with_signs_come_back(server):
    for name in ("Größe 1", "a=b, c", "a#b", "50%41", "a+b"):
        folder = RemoteFolder(f"{BUCKET}/{name}")
        folder.write("recipe.yaml", name.encode())
        assert folder.listed().keys() == {"recipe.yaml"} and folder.read("recipe.yaml") == name.encode()


def test_a_missing_bucket_is_one_line(server):
    server.buckets = {"bucket"}
    folder = RemoteFolder("s3://other/x")
    for use in (folder.listed, lambda: folder.write("a", b""), lambda: folder.replace("a", b"", None)):
        with pytest.raises(DataError, match=r"there is no (such )?bucket.*correct the URL") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_lock_of_a_live_process_is_refused_and_one_of_a_dead_process_taken(server):
    folder = RemoteFolder(f"{BUCKET}/x")
    with Lease(folder, "trains this run").held():
        with pytest.raises(RunError, match=f"another process trains this run .process {os.getpid()}"):
            Lease(folder, "trains this run")._take()
        first = folder.read(LOCK_FILE)
        time.sleep(0.2)
        assert folder.read(LOCK_FILE) != first  # renewed
    assert folder.read(LOCK_FILE) is None
    for changes in ({"pid": 2**22 + 1}, {"host": "elsewhere"}, {}):
        folder.write(LOCK_FILE, json.dumps(lease._myself() | changes).encode() if changes else b"{")
        with Lease(folder, "trains this run").held():
            assert json.loads(folder.read(LOCK_FILE))["pid"] == os.getpid()


def test_a_lock_that_is_renewed_elsewhere_is_refused(server, monkeypatch):
    folder = RemoteFolder(f"{BUCKET}/x")
    folder.write(LOCK_FILE, b"{}")
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: folder.write(LOCK_FILE, b"{ }"))
    with pytest.raises(RunError, match="another process"), Lease(folder, "trains this run").held():
        pass


@pytest.mark.parametrize("own", [True, False])
def test_a_lock_stays_held_if_the_answer_to_its_renewal_was_lost(server, own):
    folder = RemoteFolder(f"{BUCKET}/x")
    holder = lease._myself() | {"at": 0} | ({} if own else {"pid": 1})
    with Lease(folder, "trains this run").held():
        folder.write(LOCK_FILE, json.dumps(holder).encode())
        time.sleep(0.3)
        assert (json.loads(folder.read(LOCK_FILE))["at"] != 0) == own  # renewed; the control: never again
    assert (folder.read(LOCK_FILE) is None) == own


def test_files_are_sent_and_fetched_once(server, elsewhere):
    mirror = mirror_of(f"{BUCKET}/x")
    mirror.folder.mkdir(parents=True)
    (mirror.folder / "rows.jsonl").write_text('{"a": 1}\n{"b"')
    (mirror.folder / ".hidden").write_text("")
    mirror.push(everything)
    assert server.objects == {"bucket/runs/x/rows.jsonl": b'{"a": 1}\n'}
    server.requests.clear()
    mirror.push(everything)
    assert server.requests == []
    elsewhere()
    other = mirror_of(f"{BUCKET}/x")
    assert other is not mirror and not other.folder.exists()
    other.pull(everything)
    assert (other.folder / "rows.jsonl").read_text() == '{"a": 1}\n'
    server.requests.clear()
    other.pull(everything)
    assert len(server.requests) == 1
    server.objects.clear()
    other.pull(everything)
    assert not (other.folder / "rows.jsonl").exists()


def test_a_thread_sends_changes_and_tells_of_a_bucket_that_refuses(server):
    mirror = mirror_of(f"{BUCKET}/x")
    mirror.folder.mkdir(parents=True)
    mirror.start(everything)
    try:
        (mirror.folder / "a").write_text("1")
        _until(lambda: server.objects)
        mirror.check()
        server.refused = ("PUT",)
        (mirror.folder / "a").write_text("22")
        _until(lambda: mirror._trouble)
        with pytest.raises(DataError, match="access is denied"):
            mirror.check()
    finally:
        mirror.stop()


def _until(reached):
    for _ in range(500):
        if reached():
            return
        time.sleep(0.02)
    raise AssertionError("nothing came")


def test_outputs_go_to_a_bucket(server):
    with pytest.raises(KeyboardInterrupt), local_output("s3://bucket/maps/map2.tif") as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half of a map")
        raise KeyboardInterrupt
    with local_output("s3://bucket/maps/map.tif", [".png"]) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in ("map.tif", "map.png", "other.tif"):
            (path.parent / name).write_text(name)
    assert sorted(server.objects) == ["bucket/maps/map.png", "bucket/maps/map.tif"]
    server.refused = ("PUT",)
    with pytest.raises(DataError, match="access is denied"), local_output("s3://bucket/maps/map.tif"):
        raise AssertionError("work was begun")


def test_folders_of_killed_processes_go(server, tmp_path):
    kept = mirror_of(f"{BUCKET}/x").folder.parents[1]
    stale = kept.parent / "4194305-1"
    stale.mkdir()
    kept.rmdir()
    assert mirror_of(f"{BUCKET}/y").folder.parents[1] == kept and not stale.exists()
