import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import dirty
import numpy as np
import pytest
import tiny
import xarray
import zarr

from stssl.archives.conversion import Options, convert_archive, verify_store
from stssl.base.errors import ConfigError, DataError
from stssl.store.files import sole_writer
from stssl.store.store import Store
from stssl.store.writer import Writer

HERE = Options(workers=0, shard=8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """60 patches, one of them bad."""
    folder = dirty.clean(tmp_path_factory.mktemp("archive") / "archive", 60)
    dirty.band(dirty.folders(folder)[11], "B09").unlink()
    return folder


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
    """The store of an uninterrupted conversion."""
    store = tmp_path_factory.mktemp("whole") / "store.zarr"
    convert_archive("bigearthnet-v1", archive, store, HERE)
    return store


def tree(store):
    """Every file below a store and its report, by hash."""
    files = [path for path in store.rglob("*") if path.is_file()]
    report = store.with_name(f"{store.name}.errors.csv")
    return {
        str(path.relative_to(store.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, report]
    }


def test_a_repeated_conversion_is_byte_identical(archive, whole, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(archive, moved)
    convert_archive("bigearthnet-v1", moved, tmp_path / "store.zarr", HERE)
    assert tree(tmp_path / "store.zarr") == tree(whole)


def test_nothing_else_is_left_behind(whole):
    assert sorted(path.name for path in whole.parent.iterdir()) == ["store.zarr", "store.zarr.errors.csv"]


@pytest.mark.parametrize("shards", range(9))
def test_an_interrupted_conversion_continues(shards, archive, whole, tmp_path, monkeypatch):
    """Stopped after each shard, and before the last step."""
    store, done = tmp_path / "store.zarr", []
    write, finish = Writer.write_shard, Writer.finish

    def stop(self, shard, *rest):
        if len(done) == shards:
            raise KeyboardInterrupt
        done.append(shard)
        write(self, shard, *rest)

    def never(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "write_shard", stop)
    monkeypatch.setattr(Writer, "finish", never)
    with pytest.raises(KeyboardInterrupt):
        convert_archive("bigearthnet-v1", archive, store, HERE)
    with pytest.raises(DataError, match=r"was not finished. Run the same"):
        Store.open(store)
    monkeypatch.setattr(Writer, "write_shard", write)
    monkeypatch.setattr(Writer, "finish", finish)
    summary = convert_archive("bigearthnet-v1", archive, store, HERE)
    assert summary.converted == 8 - shards
    assert tree(store) == tree(whole)


@pytest.mark.parametrize("step", ["_write_statistics", "_write_report", "_mark_complete"])
def test_an_interrupted_ending_is_repeated(step, archive, whole, tmp_path, monkeypatch):
    store, real = tmp_path / "store.zarr", getattr(Writer, step)

    def stop(self, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, step, stop)
    with pytest.raises(KeyboardInterrupt):
        convert_archive("bigearthnet-v1", archive, store, HERE)
    monkeypatch.setattr(Writer, step, real)
    convert_archive("bigearthnet-v1", archive, store, HERE)
    assert tree(store) == tree(whole)


def test_a_shard_without_its_marker_is_written_again(archive, whole, tmp_path, monkeypatch):
    store = tmp_path / "store.zarr"
    finish = Writer.finish
    monkeypatch.setattr(Writer, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_archive("bigearthnet-v1", archive, store, HERE)
    monkeypatch.setattr(Writer, "finish", finish)
    work = tmp_path / ".store.zarr.work"
    (work / "000003.done").unlink()
    sidecar = work / "000005.npz"
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    (store / "b10" / "c" / "3" / "0" / "0" / ".0.99.partial").write_bytes(b"half")
    (store / "b10" / "c" / "3" / "0" / "0" / "0").write_bytes(b"garbage")
    assert convert_archive("bigearthnet-v1", archive, store, HERE).converted == 2
    assert tree(store) == tree(whole)


def test_control_a_lost_marker_of_a_damaged_shard_is_what_repairs_it(archive, whole, tmp_path):
    store = tmp_path / "store.zarr"
    shutil.copytree(whole, store)
    shutil.copy(f"{whole}.errors.csv", tmp_path)
    (store / "b10" / "c" / "3" / "0" / "0" / "0").write_bytes(b"garbage")
    assert convert_archive("bigearthnet-v1", archive, store, HERE).converted == 0
    assert tree(store) != tree(whole)
    assert len(verify_store(store).problems) == 8


def test_a_finished_store_is_left_alone(archive, whole):
    before = tree(whole)
    summary = convert_archive("bigearthnet-v1", archive, whole, HERE)
    assert (summary.converted, summary.errors) == (0, {"missing_band": 1})
    assert tree(whole) == before


def test_two_conversions_exclude_each_other(archive, whole, tmp_path):
    store = tmp_path / "store.zarr"
    with sole_writer(str(store)), pytest.raises(DataError, match=r"another conversion is writing to .*store.zarr"):
        convert_archive("bigearthnet-v1", archive, store, HERE)
    convert_archive("bigearthnet-v1", archive, store, HERE)
    assert tree(store) == tree(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(workers=0, shard=8, codec="zstd"), "other --codec"),
        (Options(workers=0, shard=8, limit=20), "other patches, other --limit"),
    ],
)
def test_other_options_are_not_mixed_in(options, words, archive, whole):
    with pytest.raises(DataError, match=rf"was converted from something else: {words}\. .*delete the store"):
        convert_archive("bigearthnet-v1", archive, whole, options)


def test_a_folder_of_something_else_is_left_alone(archive, tmp_path):
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "thesis.tex").write_text("all of it")
    with pytest.raises(DataError, match=r"is not empty and not a store \(thesis.tex\)"):
        convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", HERE)
    assert (tmp_path / "store.zarr" / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("landsat", HERE, "unknown archive format 'landsat'. Known: bigearthnet-v1, bigearthnet-v2, eurosat"),
        ("eurosat", Options(codec="zip"), "unknown codec 'zip'. Known: lz4, zstd, none"),
    ],
)
def test_unknown_names(source, options, words, archive, tmp_path):
    with pytest.raises(ConfigError, match=words):
        convert_archive(source, archive, tmp_path / "store.zarr", options)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_codecs_and_limits_hold_the_same_pixels(codec, archive, whole, tmp_path):
    summary = convert_archive(
        "bigearthnet-v1", archive, tmp_path / "s", Options(workers=0, shard=7, limit=20, codec=codec)
    )
    assert (summary.patches, summary.shards) == (20, 3)
    store, other = Store.open(tmp_path / "s"), Store.open(whole)
    rows = np.arange(20)
    for name, block in store.reader(store.bands).read(rows).items():
        np.testing.assert_array_equal(block, other.reader(other.bands).read(rows)[name])
    assert verify_store(tmp_path / "s", archive).problems == ()


def test_plain_zarr_and_xarray_open_it_without_a_warning(whole):
    store = Store.open(whole)
    rows = np.arange(store.size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(whole), mode="r")
        assert group.metadata.consolidated_metadata is not None
        for name, block in store.reader(store.bands).read(rows).items():
            np.testing.assert_array_equal(group[name][:], block)
        members = {name: group[name][:] for name in group.array_keys()}
        for consolidated in (False, True):
            data = xarray.open_zarr(str(whole), consolidated=consolidated).load()
            assert set(data.variables) == set(members)
    assert data["b10"].dims == ("patch", "band_10m", "y_10m", "x_10m")
    assert data["b20"].dims == ("patch", "band_20m", "y_20m", "x_20m")
    assert data["time"].values.astype("datetime64[s]").astype(int).tolist() == store.column("time").tolist()
    assert data["patch_id"].values.tolist() == store.column("patch_id").tolist()


def test_a_missing_time_is_not_a_time(tmp_path):
    folder = dirty.clean(tmp_path / "archive", 4)
    dirty.change_json(dirty.folders(folder)[2], acquisition_date="yesterday")
    convert_archive("bigearthnet-v1", folder, tmp_path / "store.zarr", HERE)
    assert Store.open(tmp_path / "store.zarr").column("time")[2] == -(2**63)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        times = xarray.open_zarr(str(tmp_path / "store.zarr"), consolidated=False)["time"].values
    assert np.isnat(times).tolist() == [False, False, True, False]


def test_statistics_are_those_of_the_training_pixels(whole):
    store = Store.open(whole)
    rows = np.flatnonzero(store.column("split_official") == 0)
    for name, block in store.reader(store.bands).read(rows).items():
        found = store.groups[name].statistics
        values = block.transpose(1, 0, 2, 3).reshape(block.shape[1], -1).astype(np.float64)
        np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-12)
        np.testing.assert_allclose(found["std"], values.std(1), rtol=1e-9)
        assert (found["min"], found["max"]) == (values.min(1).tolist(), values.max(1).tolist())
        assert found["count"] == [values.shape[1]] * len(values)
        for percent in (1, 50, 99):
            np.testing.assert_allclose(
                found["percentiles"][str(percent)], np.percentile(values, percent, axis=1), atol=17
            )
    assert found["split"] == "official:train"
    mean, std = store.statistics(["B08", "B04"])
    assert mean[0] > mean[1] > 0 < std[0]


def test_the_content_hash_is_what_the_documentation_says(whole):
    store = Store.open(whole)
    blocks = store.reader(store.bands).read(np.array([4]))
    data = b"".join(blocks[name][0].astype("<u2").tobytes() for name in ("b10", "b20", "b60"))
    assert bytes(store.column("content_hash")[4]) == hashlib.blake2b(data, digest_size=16).digest()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_verify_names_what_is_damaged(damage, archive, whole, tmp_path):
    store = tmp_path / "store.zarr"
    shutil.copytree(whole, store)
    assert verify_store(store, archive).problems == ()
    path = store / "b20" / "c" / "2" / "0" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.unlink()
    if damage != "remove":
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    problems = verify_store(store).problems
    name = Store.open(store).column("patch_id")[16]
    assert any(problem.startswith(name) for problem in problems)
    assert len(problems) == (1 if damage == "flip" else 8)


def test_verify_compares_with_the_archive(archive, whole, tmp_path):
    changed = tmp_path / "archive"
    shutil.copytree(archive, changed)
    victim = dirty.folders(changed)[7]
    dirty.write_tiff(dirty.band(victim, "B11"), np.full((1, 60, 60), 5, np.uint16))
    assert verify_store(whole, changed).problems == (f"{victim.name}: its pixels differ from the archive's",)
    shutil.rmtree(victim)
    assert "has 59 patches" in verify_store(whole, changed).problems[0]


DRIVER = """
import sys
from stssl.archives.conversion import Options, convert_archive
convert_archive("bigearthnet-v1", sys.argv[1], sys.argv[2], Options(workers=int(sys.argv[3]), shard=8))
"""


def run_driver(archive, store, workers):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(archive), str(store), str(workers)])


@pytest.mark.slow
def test_a_driver_that_is_killed_at_any_moment_loses_nothing(archive, whole, tmp_path):
    """SIGKILL, without Ray: five times at moments spread over the conversion, each time from where it stood."""
    store = tmp_path / "store.zarr"
    for shards in (0, 1, 3, 5, 7):
        driver = run_driver(archive, store, 0)
        while driver.poll() is None and len(list(tmp_path.glob(".store.zarr.work/*.done"))) <= shards:
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    convert_archive("bigearthnet-v1", archive, store, HERE)
    assert tree(store) == tree(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.zarr", "store.zarr.errors.csv"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, 2])
def test_two_thousand_patches_survive_kills_at_random_moments(workers, tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "benchmarks" / "kill_converter.py"
    options = ["--patches", "2000", "--repeats", "2", "--kills", "3", "--threads", str(workers)]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("identical True") == 2


@pytest.mark.ray
def test_ray_writes_the_same_bytes_also_when_a_worker_dies(archive, whole, tmp_path):
    store = tmp_path / "store.zarr"
    driver = run_driver(archive, store, 2)
    killed = []
    while driver.poll() is None:
        if not killed:
            killed = kill_a_worker(driver.pid)
        time.sleep(0.02)
    assert driver.returncode == 0
    assert killed
    assert tree(store) == tree(whole)


def kill_a_worker(driver):
    """Kill one process below the driver that is converting."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_task" in status.read_bytes() and driver in ancestors(int(status.parent.name)):
                os.kill(int(status.parent.name), signal.SIGKILL)
                return [status.parent.name]
        except (OSError, ProcessLookupError):
            continue
    return []


def ancestors(pid):
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_eurosat_splits_as_the_paper_does(tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=20)
    convert_archive("eurosat", archive, tmp_path / "store.zarr", Options(workers=0, shard=64), coordinates=table)
    store = Store.open(tmp_path / "store.zarr")
    codes, labels = store.column("split_official"), store.column("label")
    names = store.column("patch_id").astype(str)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        assert names[of_class].tolist() == sorted(names[of_class])
        assert codes[of_class].tolist() == [0] * 14 + [1] * 2 + [2] * 4
    places = {Path(row["filepath"]).stem: row for row in csv.DictReader(table.open())}
    for name, lat, lon in zip(names, store.column("lat"), store.column("lon"), strict=True):
        assert (lat, lon) == (float(places[name]["latitude"]), float(places[name]["longitude"]))


@pytest.mark.ray
def test_a_cluster_that_is_gone_is_not_joined(archive, tmp_path):
    """Ray remembers the last cluster that was started on a machine, and would take it for this one."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        remembered = Path(temporary, "ray", "ray_current_cluster")
        remembered.parent.mkdir()
        remembered.write_text("127.0.0.1:9")
        command = [sys.executable, "-c", DRIVER, str(archive), str(tmp_path / "store.zarr"), "1"]
        done = subprocess.run(
            command,
            env=os.environ | {"RAY_TMPDIR": temporary},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("column", ["labels_19", "lat", "country"])
def test_verify_notices_a_lost_or_changed_column(column, whole, tmp_path):
    """Zarr reads a chunk that is gone as missing values, without a word."""
    store = tmp_path / "store.zarr"
    shutil.copytree(whole, store)
    assert verify_store(store).problems == ()
    shutil.rmtree(store / column / "c")
    assert verify_store(store).problems == (f"column {column}: its values are not those that were converted",)


def test_verify_says_what_cannot_be_read_at_all(whole, tmp_path):
    for lost, words in (("b20", "b20"), ("patch_id/c/0", "column patch_id")):
        store = tmp_path / f"{lost[:3]}.zarr"
        shutil.copytree(whole, store)
        if (store / lost).is_dir():
            shutil.rmtree(store / lost)
            problems = verify_store(store).problems
            assert len(problems) == Store.open(store).size and all(words in problem for problem in problems)
        else:
            os.truncate(store / lost, 20)
            with pytest.raises(DataError, match=words):
                verify_store(store)


def test_workers_with_another_working_folder_find_the_archive(archive, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(archive.parent)
    write = Writer.write_shard

    def elsewhere(self, *rest):
        os.chdir("/")
        write(self, *rest)

    monkeypatch.setattr(Writer, "write_shard", elsewhere)
    convert_archive("bigearthnet-v1", archive.name, tmp_path / "store.zarr", HERE)
    assert tree(tmp_path / "store.zarr") == tree(whole)


def test_an_archive_that_goes_away_is_no_archive_of_bad_patches(archive, whole, tmp_path, monkeypatch):
    moved, write = tmp_path / "archive", Writer.write_shard
    shutil.copytree(archive, moved)

    def unmount(self, shard, *rest):
        write(self, shard, *rest)
        if shard == 2:
            moved.rename(tmp_path / "away")

    monkeypatch.setattr(Writer, "write_shard", unmount)
    with pytest.raises(DataError, match="archive is not there on"):
        convert_archive("bigearthnet-v1", moved, tmp_path / "store.zarr", HERE)
    (tmp_path / "away").rename(moved)
    monkeypatch.setattr(Writer, "write_shard", write)
    assert convert_archive("bigearthnet-v1", moved, tmp_path / "store.zarr", HERE).converted == 5
    assert tree(tmp_path / "store.zarr") == tree(whole)


def test_shards_that_were_written_elsewhere_are_missed(archive, whole, tmp_path, monkeypatch):
    """As on a cluster whose nodes do not share the folder."""
    write = Writer.write_shard

    def on_another_node(self, shard, *rest):
        if shard != 3:
            write(self, shard, *rest)

    monkeypatch.setattr(Writer, "write_shard", on_another_node)
    with pytest.raises(DataError, match=r"1 of 8 shards of .* are not here \(the first: 3\)"):
        convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", HERE)
    monkeypatch.setattr(Writer, "write_shard", write)
    assert convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", HERE).converted == 1
    assert tree(tmp_path / "store.zarr") == tree(whole)


def test_a_store_whose_description_is_damaged_is_left_alone(archive, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store.zarr")
    os.truncate(tmp_path / "store.zarr" / "zarr.json", 50)
    for use in (lambda store: convert_archive("bigearthnet-v1", archive, store, HERE), Store.open):
        with pytest.raises(DataError, match=r"store.zarr.* is (damaged|not a Zarr store)"):
            use(tmp_path / "store.zarr")


def test_places_where_nothing_can_be_written(archive, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for store, words in (
        (tmp_path / "file", "is a file. Choose another path"),
        (tmp_path / "file" / "store.zarr", "cannot write .*store.zarr: File exists|Not a directory"),
        ("/proc/nowhere/store.zarr", "cannot write"),
    ):
        with pytest.raises(DataError, match=words):
            convert_archive("bigearthnet-v1", archive, store, HERE)
    assert (tmp_path / "file").read_text() == "mine"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
        convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", HERE)


def test_another_name_of_a_split_is_another_conversion(archive, tmp_path):
    names = [folder.name for folder in dirty.folders(archive)]
    lists = tmp_path / "lists"
    lists.mkdir()
    for part, chosen in (("train", names[:30]), ("val", names[30:40]), ("test", names[40:])):
        (lists / f"{part}.txt").write_text("\n".join(chosen))
    convert_archive("bigearthnet-v1", archive, tmp_path / "s.zarr", HERE, splits={"one": lists})
    assert convert_archive("bigearthnet-v1", archive, tmp_path / "s.zarr", HERE, splits={"one": lists}).converted == 0
    with pytest.raises(DataError, match="table or archive"):
        convert_archive("bigearthnet-v1", archive, tmp_path / "s.zarr", HERE, splits={"two": lists})


DEADLY = """
import os, sys
from stssl.archives import ARCHIVES, bigearthnet
from stssl.commands.cli import main

class Deadly(bigearthnet.BigEarthNet1):
    def read(self, row):
        os.kill(os.getpid(), 9)

ARCHIVES["bigearthnet-v1"] = Deadly
sys.argv = ["stssl", "convert", "bigearthnet-v1", *sys.argv[1:], "--workers", "1", "--shard", "64"]
main()
"""


@pytest.mark.ray
def test_workers_that_always_die_end_in_words(archive, tmp_path):
    """As when memory ends: Ray kills them, and tries three times more."""
    command = [sys.executable, "-c", DEADLY, str(archive), str(tmp_path / "store.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 2, done.stderr
    assert "workers died again and again" in done.stderr and "Traceback" not in done.stderr
    assert (
        convert_archive("bigearthnet-v1", archive, tmp_path / "store.zarr", Options(workers=0, shard=64)).converted == 1
    )
