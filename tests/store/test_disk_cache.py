import os
import pickle

import pytest

from stssl.base.errors import DataError
from stssl.store.disk import COUNT_FILE, TAIL, DiskCache

BYTES = 100
ONE = BYTES + TAIL


def put(cache, *numbers):
    for number in numbers:
        os.close(cache.open(f"a-p{number}", lambda: bytes(BYTES)))


def held(cache):
    return {int(path.name.removeprefix("a-p")) for path in (cache.folder / "files").iterdir()}


def age(cache, number, seconds):
    os.utime(cache.folder / "files" / f"a-p{number}", (seconds, seconds))


@pytest.fixture
def listed(monkeypatch):
    """Count how often the folder is listed."""
    calls = []
    entries = DiskCache._entries
    monkeypatch.setattr(DiskCache, "_entries", lambda cache: calls.append(1) or entries(cache))
    return calls


def test_a_new_file_lists_no_folder(tmp_path, listed):
    cache = DiskCache(tmp_path, 1 << 30)
    put(cache, *range(200))
    assert len(listed) == 1  # the first write of a process counts what others left
    assert cache.used() == 200 * ONE == int((tmp_path / COUNT_FILE).read_text())


def test_a_full_cache_lists_its_folder_seldom(tmp_path, listed):
    cache = DiskCache(tmp_path, 640 * ONE)
    put(cache, *range(1600))
    assert cache.used() == 640 * ONE and max(held(cache)) == 1599
    assert len(listed) <= 2 + 960 // 64


def test_the_least_recently_used_files_leave_first(tmp_path):
    cache = DiskCache(tmp_path, 10 * ONE)
    put(cache, *range(10))
    for number in range(10):
        age(cache, number, 1000 + number)
    put(cache, 10)
    assert held(cache) == set(range(1, 11))
    put(cache, 1)  # used again: it is not the oldest any more, though the list of the folder says so
    put(cache, 11)
    assert held(cache) == {1, *range(3, 12)}


def test_processes_share_one_count(tmp_path):
    one, other = DiskCache(tmp_path, 10 * ONE), DiskCache(tmp_path, 10 * ONE)
    for number in range(0, 60, 2):
        put(one, number)
        put(other, number + 1)
        assert one.used() <= 10 * ONE
    assert one.used() == 10 * ONE and {58, 59} <= held(one)
    again = pickle.loads(pickle.dumps(one))
    put(again, 60)
    assert again.used() == 10 * ONE and not again.__dict__["_checked"].keys() - {"a-p60"}


@pytest.mark.parametrize("damage", [None, b"", b"x" * 20, b"9" * 5])
def test_a_lost_or_damaged_count_is_made_again(tmp_path, damage):
    cache = DiskCache(tmp_path, 3 * ONE)
    put(cache, 0, 1, 2)
    (tmp_path / COUNT_FILE).unlink()
    if damage is not None:
        (tmp_path / COUNT_FILE).write_bytes(damage)
    put(cache, 3)
    assert cache.used() == 3 * ONE == int((tmp_path / COUNT_FILE).read_text())


def test_a_count_that_is_too_large_loses_no_file(tmp_path):
    """A person emptied the folder, or a process was killed before its file was there."""
    cache = DiskCache(tmp_path, 5 * ONE)
    put(cache, 0, 1, 2)
    (tmp_path / COUNT_FILE).write_text(f"{5 * ONE:020d}")
    put(cache, 3, 4)
    assert held(cache) == set(range(5))


def test_partial_files_of_killed_processes_go(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / ".a-p9.partial").write_bytes(bytes(500))
    cache = DiskCache(tmp_path, 3 * ONE)
    put(cache, 0, 1, 2)
    assert held(cache) == {0, 1, 2}


def test_control_a_file_larger_than_the_cache_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.cache_bytes 50 is less than one file"):
        put(DiskCache(tmp_path, 50), 0)
