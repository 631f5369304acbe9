"""A prediction that was interrupted resumes, and ends with the same bytes. Two predictions exclude each other."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from processes import family, kill, start
from scenes import write_tif

import stssl
from stssl.mapping import blocks, prediction
from stssl.mapping.block_tasks import ReadAhead
from stssl.mapping.blocks import BlockPredictor, plan_blocks
from stssl.mapping.ensemble import Ensemble
from stssl.mapping.kept_blocks import KeptBlocks, sole_prediction
from stssl.mapping.needs import common_needs
from stssl.mapping.opening import open_scene
from stssl.mapping.prediction import MapOptions, predict_scene
from stssl.predictions.choice import predict_inputs
from stssl.students.loading import read_student

OPTIONS = MapOptions(stride=32, preview=True)


@pytest.fixture
def scene(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 400, 300), np.uint8)
    return write_tif(tmp_path / "scene.tif", values, ("B04", "B03", "B02"))


def pixels(path):
    with rasterio.open(path) as file:
        return file.read()


class BrokenOffError(Exception):
    """End a prediction in the middle."""


def interrupt_after(count):
    """Break off when so many blocks are predicted. These blocks have one batch each, so each is reported once."""
    calls = []

    def watch(done, of):
        calls.append(done)
        if len(calls) > count:
            raise BrokenOffError

    return watch


def test_an_interrupted_prediction_resumes_and_ends_with_equal_bytes(plain, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    whole = predict_scene([plain.run.path], [scene], tmp_path / "whole.tif", OPTIONS)
    out, predicted = tmp_path / "map.tif", []
    with pytest.raises(BrokenOffError):
        predict_scene([plain.run.path], [scene], out, OPTIONS, interrupt_after(7))
    parts = tmp_path / ".map.tif.parts"
    assert not out.exists() and len(list(parts.glob("block_*.bin"))) in (6, 7)
    damaged = parts / "block_000002.bin"
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    (parts / "block_000003.bin").write_bytes(b"")
    real = prediction.run_here
    monkeypatch.setattr(
        prediction, "run_here", lambda one, numbers, *rest: predicted.extend(numbers) or real(one, numbers, *rest)
    )
    predict_scene([plain.run.path], [scene], out, OPTIONS)
    assert out.read_bytes() == whole.map.read_bytes() and predicted[:2] == [2, 3] and 0 not in predicted
    assert out.with_suffix(".png").read_bytes() != b"" and not parts.exists()


def test_blocks_of_another_prediction_are_not_taken(plain, other, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    wanted = pixels(predict_scene([other.run.path], [scene], tmp_path / "other.tif", OPTIONS).map)
    for change in ("model", "scene"):
        first = plain if change == "model" else other
        for path in (tmp_path / "map.tif", tmp_path / "map.png"):
            path.unlink(missing_ok=True)
        with pytest.raises(BrokenOffError):
            predict_scene([first.run.path], [scene], tmp_path / "map.tif", OPTIONS, interrupt_after(7))
        if change == "scene":
            os.utime(scene, (1, 1))
        done = []
        predict_scene(
            [other.run.path], [scene], tmp_path / "map.tif", OPTIONS, lambda now, of, done=done: done.append(now)
        )
        assert done[0] == 0 and np.array_equal(pixels(tmp_path / "map.tif"), wanted)


def test_a_repeated_prediction_leaves_the_map_and_other_files_stay(plain, other, scene, tmp_path, monkeypatch):
    out = tmp_path / "map.tif"
    predict_scene([plain.run.path], [scene], out, OPTIONS)
    stamps = [path.stat().st_mtime_ns for path in (out, out.with_suffix(".png"))]
    monkeypatch.setattr(prediction, "run_here", lambda *given: pytest.fail("predicted again"))
    found = predict_inputs([plain.run.path], [scene], out, OPTIONS)
    assert found.lines == ("map.tif is already made: by the same models, from the same scene, with the same options",)
    assert stamps == [path.stat().st_mtime_ns for path in (out, out.with_suffix(".png"))]

    def refused(words, model=plain, to=out, options=OPTIONS):
        with pytest.raises(stssl.ConfigError, match=words):
            predict_scene([model.run.path], [scene], to, options)

    there = "is there already, and is no whole map"
    refused(there, model=other)
    refused(there, options=MapOptions(stride=16, preview=True))
    refused(there, options=MapOptions(stride=32, preview=True, probabilities="uint8"))
    strange = tmp_path / "strange.tif"
    strange.write_text("my thesis")
    refused(there, to=strange)
    strange.rename(tmp_path / "new.png")
    refused(r"--preview: .*new\.png is there already", to=tmp_path / "new.tif")
    assert (tmp_path / "new.png").read_text() == "my thesis"
    out.write_bytes(out.read_bytes()[:-3000])
    refused(there)  # a map that was cut off is not whole
    assert not list(tmp_path.glob(".*"))


def test_progress_moves_within_a_block(plain, scene, tmp_path):
    calls = []
    predict_scene(
        [plain.run.path], [scene], tmp_path / "m.tif", MapOptions(stride=32, batch=16), lambda *now: calls.append(now)
    )
    done, every = [now for now, _ in calls], calls[0][1]
    assert every == 130 == done[-1] and done[0] == 0 and done == sorted(set(done)) and len(done) == 1 + -(-130 // 16)


def test_two_predictions_of_one_map_exclude_each_other(plain, scene, tmp_path):
    out = tmp_path / "map.tif"
    with sole_prediction(out), pytest.raises(stssl.RunError, match=r"another prediction is writing .*map\.tif"):
        stssl.predict(plain.run, scene, out, progress=False)
    assert stssl.predict(plain.run, scene, out, progress=False).exists()  # the control: the lock is free again


def test_a_block_that_vanished_is_missed_not_invented(plain, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(KeptBlocks, "_read", lambda kept, number: None)
    with pytest.raises(stssl.RunError, match=r"block_000000\.bin is gone or damaged"):
        stssl.predict(plain.run, scene, tmp_path / "map.tif", progress=False)
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.slow
def test_a_kill_after_each_block_leaves_nothing_that_changes_the_map(plain, tmp_path):
    """Kill the command eight times, each time when one more of its eight blocks is kept, then let it end."""
    values = np.random.default_rng(0).integers(0, 255, (3, 2100, 6300), np.uint8)
    scene = write_tif(tmp_path / "scene.tif", values, ("B04", "B03", "B02"))
    whole = stssl.predict(plain.run, scene, tmp_path / "whole.tif", progress=False)
    out = tmp_path / "map.tif"
    words = [str(plain.run.path), str(scene), "--out", str(out)]
    for number in range(8):
        process = start(sys.executable, "-m", "stssl.commands.cli", "predict", *words)
        end = time.monotonic() + 120
        while len(list(tmp_path.glob(".map.tif.parts/block_*.bin"))) < number or not any(tmp_path.glob(".map*.lock")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.02 * number)
        kill(family(process.pid))
        process.wait()
        assert not out.exists()
    done = stssl.predict(plain.run, scene, out, progress=False)
    assert done.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_at_random_moments_change_no_byte_of_the_map(tmp_path):
    script = Path(__file__).parents[2] / "experiments" / "benchmarks" / "kill_predict.py"
    words = ["--side", "3000", "--kills", "10", "--json", str(tmp_path / "kills.json")]
    subprocess.run([sys.executable, str(script), *words], check=True)
    found = json.loads((tmp_path / "kills.json").read_text())
    assert found["identical"] and sum(row["killed"] for row in found["rows"]) == 10
    assert any(row["kept blocks"] for row in found["rows"])


def test_a_worker_reads_the_following_block_while_it_predicts(plain, scene, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    student = read_student(plain.run.path)
    needs = common_needs([student.description], None)
    about = open_scene([scene], needs)
    predictor = BlockPredictor(about, plan_blocks(about, 32, needs.window), Ensemble([student], about.layers), batch=64)
    reader_of, read, begun = predictor.read, [], threading.Event()

    def watched(reader, number):
        read.append(number)
        if number == 2:
            begun.set()
        return reader_of(reader, number)

    worker, real = ReadAhead(predictor), predictor.predict
    monkeypatch.setattr(predictor, "read", watched)
    # The first prediction ends only after the next block's reading has begun: else the test fails.
    monkeypatch.setattr(predictor, "predict", lambda given: real(given) if begun.wait(60) else None)
    found = {number: worker.predict(number, following) for number, following in ((0, 2), (2, 5), (3, None))}
    worker.close()
    assert read == [0, 2, 5, 3]  # 5 was read in vain: another worker took it
    control = ReadAhead(BlockPredictor(about, predictor.plan, predictor.ensemble, batch=64))
    assert found == {number: control.predict(number, None) for number in found}
    control.close()


def test_a_disk_that_becomes_read_only_is_told_in_one_line(plain, scene, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    wanted = predict_scene([plain.run.path], [scene], tmp_path / "whole.tif", MapOptions(stride=64))

    # Linux refuses to change a disk with open files. A read-only one above it hides it for the next writes.
    def hide(done, of):
        if done == 4:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(disk)], check=True)

    with pytest.raises(stssl.RunError, match=r"cannot write .*Give a folder that may be written") as caught:
        predict_scene([plain.run.path], [scene], disk / "map.tif", MapOptions(stride=64), hide)
    subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "\n" not in str(caught.value) and not (disk / "map.tif").exists()
    assert list(disk.glob(".map.tif.parts/block_*.bin"))
    predict_scene([plain.run.path], [scene], disk / "map.tif", MapOptions(stride=64))
    assert (disk / "map.tif").read_bytes() == wanted.map.read_bytes()


def test_a_full_disk_is_told_in_one_line_and_the_same_command_continues(plain, scene, disk, monkeypatch, capfd):
    """It ends at each of its stages: before the first block, amid blocks, amid the map."""
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 100)
    wanted = stssl.predict(plain.run, scene, scene.parent / "whole.tif", progress=False)
    out, failed = disk / "map.tif", 0
    for free in range(20_000, 400_000, 60_000):
        (disk / "filler").write_bytes(b"")
        taken = sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
        (disk / "filler").write_bytes(bytes(max(0, 500_000 - free - taken)))
        try:
            stssl.predict(plain.run, scene, out, progress=False)
        except stssl.RunError as error:
            failed += 1
            assert "cannot write" in str(error) and " free in " in str(error) and "\n" not in str(error)
            assert not out.exists()
    (disk / "filler").unlink()
    assert failed > 2 and capfd.readouterr().err == ""
    out.unlink(missing_ok=True)
    stssl.predict(plain.run, scene, out, progress=False)
    assert out.read_bytes() == wanted.read_bytes() and {path.name for path in disk.iterdir()} == {"map.tif"}
