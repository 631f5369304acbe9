"""Full disks: one line with place and room, nothing half-written, and the same command continues once there is room."""

import re

import pytest
import tiny

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.synthetic import synthesize_archive
from stssl.base.errors import DataError
from stssl.base.whole_files import write_whole
from stssl.store.disk import DiskCache
from stssl.store.store import Store

FULL = r"cannot write \S*/disk/\S*: No space left on device \(.*free in \S*/disk\S*\)"


def test_a_conversion_says_how_much_room_there_is_and_continues_when_there_is_more(disk, tmp_path):
    """It ends at each of its stages: before the first shard, amid shards, amid columns and statistics."""
    archive, table = tiny.write_eurosat(tmp_path, per_class=2)
    options, store, failed = Options(workers=0, shard=4), disk / "s.zarr", 0

    def go():
        return convert_archive("eurosat", archive, store, options, coordinates=table)

    for filler in range(500_000, 0, -20_000):
        (disk / "filler").write_bytes(b"")
        taken = filler - sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
        (disk / "filler").write_bytes(bytes(max(0, taken)))
        try:
            go()
        except DataError as error:
            failed += 1
            assert re.search(FULL, str(error)) and "the same command continues" in str(error), error
            assert "\n" not in str(error)
            assert not list(disk.rglob("*.partial")), "half-written files"
            with pytest.raises(DataError):
                Store.open(store)
    (disk / "filler").unlink()
    assert go().converted <= 5 and failed > 3
    whole = tmp_path / "whole.zarr"
    convert_archive("eurosat", archive, whole, options, coordinates=table)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert files and all((store / name).read_bytes() == (whole / name).read_bytes() for name in files)


def test_a_cache_says_where_and_how_much_and_fetches_again(disk):
    cache = DiskCache(disk / "cache", 10**9)
    (disk / "filler").write_bytes(bytes(400_000))
    with pytest.raises(DataError, match=FULL) as caught:
        cache.open("key", lambda: bytes(300_000))
    assert "data.cache_dir" in str(caught.value) and "300.0 kB needed" in str(caught.value)
    assert cache.used() == 0
    (disk / "filler").unlink()
    assert cache.size(cache.open("key", lambda: bytes(300_000))) == 300_000


def test_a_synthetic_archive_is_written_to_its_end_once_there_is_room(disk):
    (disk / "filler").write_bytes(bytes(480_000))
    with pytest.raises(DataError, match=FULL):
        synthesize_archive(disk / "archive", patches=1)
    (disk / "filler").unlink()
    assert len(list(synthesize_archive(disk / "archive", patches=1).rglob("*_B02.tif"))) == 1


def test_control_a_disk_with_room_is_written(disk):
    write_whole(disk / "file", bytes(100_000))
