"""Locks of folders and files: one process at a time, and nothing stays behind."""

import subprocess
import sys

import pytest

from stssl.base import exclusive
from stssl.base.errors import DataError, RunError
from stssl.base.exclusive import alone, sole_holder


def test_one_process_works_in_a_folder_at_a_time(tmp_path):
    folder = tmp_path / "new" / "study"
    with alone(folder, "study"):
        with pytest.raises(RunError, match=f"another process is running the study in {folder}"), alone(folder, "study"):
            pass
        assert [path.name for path in folder.iterdir()] == ["lock"]
    assert list(folder.iterdir()) == []
    with alone(folder, "study"):  # the control
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    words = f"""
import os, pathlib
from stssl.base.exclusive import alone
with alone(pathlib.Path({str(tmp_path)!r}), "study"):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == -9
    assert (tmp_path / "lock").exists()
    with alone(tmp_path, "study"):
        pass


def test_a_lock_file_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    path, real, calls = tmp_path / "lock", exclusive.fcntl.flock, []

    def flock(file, how):
        if not calls:
            path.unlink()
        calls.append(path.exists())
        real(file, how)

    monkeypatch.setattr(exclusive.fcntl, "flock", flock)
    with sole_holder(path, path, "busy"):
        assert calls == [False, True]
        with pytest.raises(RunError, match="busy"), sole_holder(path, path, "busy"):
            pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for error in (RunError, DataError):
        with (
            pytest.raises(error, match=r"cannot write the map: .* is where a folder must be"),
            sole_holder(tmp_path / "file" / "lock", "the map", "busy", error),
        ):
            pass
    with pytest.raises(RunError, match="cannot write"), alone(tmp_path / "file", "study"):
        pass
