"""Files are written whole or not at all, and what a full disk is said to be."""

import errno
import os
import resource
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from stssl.base.errors import DataError, RunError
from stssl.base.whole_files import append_line, as_size, cannot_write, open_plain, write_whole


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 kB; where none may be mounted, what it would show is not shown."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip(f"this user may not mount: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_keeps_the_old_file_and_says_where_and_how_much(small_disk):
    path = small_disk / "file"
    write_whole(path, "old")
    with pytest.raises(RunError, match=r"cannot write .*/disk/file: No space.*500\.0 kB needed, .* free in .*/disk\)"):
        write_whole(path, b"x" * 500_000)
    assert path.read_text() == "old" and names(small_disk) == ["file"]
    write_whole(path, b"x" * 100_000)  # room for as much as fits
    assert path.stat().st_size == 100_000


def test_rows_that_do_not_fit_leave_no_half_line(small_disk):
    path = small_disk / "rows"
    append_line(path, "first")
    (small_disk / "filler").write_bytes(b"x" * 240_000)
    with pytest.raises(RunError, match="No space left"):
        append_line(path, "y" * 40_000)
    assert path.read_text() == "first\n"
    (small_disk / "filler").unlink()
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(DataError, match="File too large"):
            write_whole(path, b"x" * 5_000, DataError)
        with pytest.raises(RunError, match="File too large"):
            append_line(path, "x" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EIO])
def test_each_reason_is_named_with_what_to_do(number):
    words = cannot_write("/there/file", OSError(number, os.strerror(number)), 12)
    assert words.startswith(f"cannot write /there/file: {os.strerror(number)}") and words.endswith("continues.")
    assert ("quota" in words) == (number == errno.EDQUOT) and ("ulimit -n" in words) == (number == errno.EMFILE)
    assert ("12 bytes needed" in words) == (number == errno.EDQUOT)  # control: room is no matter of the others


def test_too_many_open_files_is_an_error_in_words(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(RunError, match="Too many open files"):
            write_whole(tmp_path / "file", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["folder", "file/below", "loop/below"])
def test_what_is_in_the_way_is_named(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunError, match=f"cannot write .*{place}"):
        write_whole(tmp_path / place, "new")
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_a_killed_writer_left_is_used_up(tmp_path):
    (tmp_path / ".file.new").write_text("half of something that is longer")
    write_whole(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole" and names(tmp_path) == ["file"]


def test_writers_of_one_file_wait_for_each_other(tmp_path):
    """Each byte of a file is one writer's."""
    path, failed = tmp_path / "file", []

    def work(mark: bytes) -> None:
        try:
            for _ in range(30):
                write_whole(path, lambda file: [file.write(mark * 1_000) for _ in range(20)])
        except RunError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(set(path.read_bytes())) == 1 and path.stat().st_size == 20_000
    assert names(tmp_path) == ["file"]


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "file", "old")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", interrupted)
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file"):
        open_plain(tmp_path / "pipe")


def test_sizes_read_well():
    assert [as_size(count) for count in (3, 4_500, 2_000_000, 7_300_000_000)] == [
        "3 bytes",
        "4.5 kB",
        "2.0 MB",
        "7.3 GB",
    ]
