"""Run folders that a crash, a disk or a person damaged: each reader succeeds, or names the file and says what to do."""

import json
import os
import random
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import make

from stssl.analysis.page import SCRIPT
from stssl.analysis.probe import _kept
from stssl.analysis.report import write_report
from stssl.analysis.run_views import read_run
from stssl.base.errors import RunError, StsslError
from stssl.models.weights import read_weights
from stssl.training.checkpoints import export_weights, read_state, write_state
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.trained_run import evaluate_run, read_own_state

PROBE = {"weights": "pretrained", "method": "linear", "labels": "all", "labeled": 3, "step": 2, "protocol": {}}
NETWORK = "averages.student.network."


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A tiny run that was trained to its end, evaluated, and (in name) probed."""
    import tiny

    recipe = make(tiny.tiny_recipe(store, tmp_path_factory.mktemp("damaged")), schedule__steps=8)
    folder = run(recipe)
    evaluate_run(folder.path, "validation")
    (folder.path / "probe").mkdir()
    (folder.path / "probe" / "p.json").write_text(json.dumps({"rows": [PROBE | {"test": {"accuracy": 0.5}}]}))
    return recipe, folder.path


@pytest.fixture
def copy(finished, tmp_path):
    """The same run in a folder of its own, its recipe, and its files."""
    recipe, path = finished
    own = tmp_path / "runs" / recipe.name
    shutil.copytree(path, own)
    launch = recipe.launch.model_copy(update={"storage": str(tmp_path / "runs")})
    return recipe.model_copy(update={"launch": launch}), RunFolder(own)


def resumed(recipe, folder):
    """What the first step of the next start does with the run's files, but for building networks."""
    folder.refuse_others(recipe)
    folder.finished()
    found = [state for _, state in folder.checkpoints.newest(recipe.hash())]
    folder.drop_rows_after(8)
    folder.write_record(recipe, {"store": {"fingerprint": "x"}}, None, world=1, step=8)
    if found and all(isinstance(state, StsslError) for state in found):
        raise found[0]


READERS = {
    "resume": resumed,
    "report": lambda recipe, folder: read_run(folder.path),
    "evaluate": lambda recipe, folder: read_own_state(folder, folder.checkpoints.path("best"), recipe.hash()),
    "recipe": lambda recipe, folder: RunFolder.existing(folder.path).recipe(),
    "export": lambda recipe, folder: export_weights(folder.checkpoints, NETWORK, "student", {}),
    "weights": lambda recipe, folder: read_weights(str(folder.checkpoints.folder / "student.safetensors")),
    "probe": lambda recipe, folder: _kept(folder.path / "probe/p.json", [PROBE]),
}
FILES = {
    "recipe.yaml": ("resume", "report", "recipe"),
    "record.json": ("resume", "report", "evaluate"),
    "done.json": ("resume",),
    "metrics.jsonl": ("resume", "report"),
    "evaluation/validation.json": ("report",),
    "evaluation/validation.npz": ("report",),
    "checkpoints/last.pt": ("resume",),
    "checkpoints/best.pt": ("evaluate", "export"),
    "checkpoints/student.safetensors": ("weights",),
    "probe/p.json": ("probe",),
}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    """What a file system without ordered data leaves when the power goes."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half + bytes(path.stat().st_size - len(half)))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncated,
    "zeros": zeros,
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(300)),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}\n'),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "null": lambda path: path.write_text("null\n"),
    "text": lambda path: path.write_text('"step"\n'),
    "other keys": lambda path: path.write_text('{"step": "three", "networks": 3, "store": null, "rows": {}}\n'),
    "huge number": lambda path: path.write_text('{"step": 1' + "0" * 5_000 + ', "steps": 1e999}\n'),
    "nested": lambda path: path.write_text("[" * 50_000 + "]" * 50_000),
    "nested maps": lambda path: path.write_text('{"a":' * 20_000 + "1" + "}" * 20_000),
    "folder": folder_instead,
    "loop": loop,
    "pipe": pipe,
}


@pytest.mark.parametrize("file", FILES)
def test_each_damage_of_a_file_is_survived_or_named(copy, file, tmp_path):
    """All kinds in one test, since a copy of the run costs more than what is tried on it."""
    recipe, folder = copy
    path, silent = folder.path / file, []
    whole = path.read_bytes()
    for kind, harm in DAMAGE.items():
        harm(path)
        for reader in FILES[file]:
            try:
                READERS[reader](recipe, folder)
            except StsslError as error:
                assert str(path) in str(error) or "recipe.yaml" in file or kind == "missing", (kind, reader, error)
                assert "\n" not in str(error) or file == "recipe.yaml", (kind, reader, error)
            else:
                silent.append((kind, reader))
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(whole)
    # Of a lost best checkpoint another is the same here, as a warning says.
    allowed = {"metrics.jsonl", "record.json", "done.json", "checkpoints/last.pt", "checkpoints/best.pt"}
    if file not in allowed:
        assert {kind for kind, _ in silent} <= {"missing"}, silent


def test_control_whole_files_are_read_by_every_reader(copy):
    recipe, folder = copy
    for reader in READERS.values():
        reader(recipe, folder)
    assert READERS["probe"](recipe, folder) == []


def foreign(path):
    state = read_state(path)
    write_state(state | {"recipe": "of another run"}, path)


def reshaped(path):
    state = read_state(path)
    name = next(name for name, value in state["step"].items() if value.ndim == 4)
    write_state(state | {"step": state["step"] | {name: torch.zeros(1)}, "written_by": "9.9"}, path)


def newer(path):
    path.write_bytes(path.read_bytes()[:-1] + b"7")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncated, "truncated or damaged"),
        (lambda path: write_state({"weights": torch.zeros(2)}, path), "has no recipe"),
        (foreign, "is of another run"),
        (reshaped, r"written by stssl 9.9; this is"),
        (newer, "has format 7 of another version"),
    ],
    ids=["truncated", "not a run's", "other run's", "other networks", "newer"],
)
def test_the_checkpoint_before_is_used_and_one_warning_says_so(copy, finished, harm, words, caplog):
    recipe, folder = copy
    (folder.path / "done.json").unlink()
    last = folder.checkpoints.path("last")
    content = last.read_bytes()
    last.unlink()  # `best` may be the same file
    last.write_bytes(content)
    harm(last)
    run(recipe)
    (warning,) = [line.getMessage() for line in caplog.records if "checkpoint" in line.getMessage()]
    assert str(last) in warning and warning.endswith("continuing from the one before")
    assert re.search(words, warning)
    weights = [read_state(path / "checkpoints" / "last.pt")["step"] for path in (folder.path, finished[1])]
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def harm_best(folder, kind, at=8):
    """Lose or damage the best checkpoint, which (`at`) is that of the last step, of the one before, or an older one."""
    checkpoints = folder.checkpoints
    for name in ("last", "previous"):
        state = read_state(checkpoints.path(name))
        state["progress"] |= {"best_step": at, "best": 0.5}
        write_state(state, checkpoints.path(name))
    checkpoints.path("best").unlink()
    if kind == "damaged":
        checkpoints.path("best").write_bytes(b"half")


@pytest.mark.parametrize("kind", ["lost", "damaged"])
@pytest.mark.parametrize(("at", "same"), [(8, "last"), (4, "previous"), (2, None)])
def test_a_best_checkpoint_that_is_gone_is_another_that_is_the_same_or_an_error(copy, kind, at, same, caplog):
    recipe, folder = copy
    harm_best(folder, kind, at)
    (folder.path / "done.json").unlink()
    if same is None:
        with pytest.raises(RunError, match=r"best.pt.*Give --checkpoint last, or put a whole one back"):
            evaluate_run(folder.path, "validation")
        with pytest.raises(RunError, match=r"best.pt.*trained, but its best weights are lost.*delete"):
            run(recipe)
        return
    evaluate_run(folder.path, "validation")
    assert f"{same}.pt is the same checkpoint and used instead" in caplog.text
    assert json.loads((folder.path / "evaluation/validation.json").read_text())["step"] == at
    export_weights(folder.checkpoints, NETWORK, "student", {})
    run(recipe)
    assert read_state(folder.checkpoints.path("best"))["progress"]["step"] == at


def test_a_run_that_continues_chooses_its_best_checkpoint_anew(copy, caplog):
    recipe, folder = copy
    harm_best(folder, "lost", 2)
    longer = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"steps": 12})})
    for name in ("last", "previous"):
        path = folder.checkpoints.path(name)
        write_state(read_state(path) | {"recipe": longer.hash()}, path)
    (folder.path / "done.json").unlink()
    (folder.path / "recipe.yaml").write_text(longer.yaml())
    run(longer)
    assert "the best checkpoint is chosen anew among those from step 8 on" in caplog.text
    assert read_state(folder.checkpoints.path("best"))["progress"]["step"] == 12


def test_without_a_whole_checkpoint_the_run_does_not_start_again_in_silence(copy):
    recipe, folder = copy
    (folder.path / "done.json").unlink()
    for name in ("last", "previous"):
        folder.checkpoints.path(name).unlink()
        folder.checkpoints.path(name).write_bytes(b"")
    with pytest.raises(RunError, match=r"last.pt.*previous.pt.*delete"):
        run(recipe)


def test_damaged_lines_of_metrics_are_left_out_and_told(copy, caplog):
    _, folder = copy
    rows = list(folder.rows())
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 99, "kind": "tr' + bytes(60) + b"\n\xff\xfe\n")
    read_run(folder.path)
    assert "2 damaged lines" in caplog.text
    folder.drop_rows_after(8)
    assert list(folder.rows()) == rows and folder.read_rows()[1] == 0


def test_arrays_of_another_evaluation_are_not_shown_with_these_scores(copy):
    _, folder = copy
    path = folder.path / "evaluation" / "validation.npz"
    arrays = dict(np.load(path))
    arrays["logits_student"] = -arrays["logits_student"]
    np.savez_compressed(path, **arrays)
    with pytest.raises(RunError, match=r"validation.npz is damaged, or of another evaluation.*stssl evaluate"):
        read_run(folder.path)


def test_the_student_follows_the_umask(finished):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in finished[1].rglob("*") if path.is_file()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


EVIL = "<script>alert('x')</script>\x1b[31m\x00&amp;"


def hostile(value):
    """The same value with evil words wherever it has words."""
    if isinstance(value, dict):
        return {name: hostile(part) for name, part in value.items()}
    return [hostile(part) for part in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("value", [EVIL, [EVIL], {EVIL: EVIL}, None, -1, 2**60, 1e300, True], ids=repr)
def test_no_words_of_a_record_become_html(copy, tmp_path, value):
    _, folder = copy
    path = folder.path / "record.json"
    record = json.loads(path.read_text())
    names = ("seed", "ranks", "labeled", "commit")
    path.write_text(json.dumps(hostile(record) | dict.fromkeys(names, value) | {"parts": {EVIL: value}}))
    page = write_report([folder.path], tmp_path / "page.html").read_text().replace(SCRIPT, "")
    assert "<script" not in page and "\x1b" not in page and "\x00" not in page
    assert "&lt;script&gt;" in page and "<td class='text'>&lt;script" in page


def test_no_words_of_scores_metrics_recipes_or_folders_become_html(copy, tmp_path):
    _, folder = copy
    evil = folder.path.with_name("<script>alert(1)<!--")
    folder.path.rename(evil)
    path = evil / "evaluation" / "validation.json"
    tree = json.loads(path.read_text())
    for network in tree["networks"].values():
        network["scores"][EVIL] = 0.5
        network["per_class"] = {f"{EVIL}{i}": one for i, one in enumerate(network["per_class"].values())}
    path.write_text(json.dumps(tree | {"checkpoint": EVIL}))
    with (evil / "recipe.yaml").open("a") as file:
        file.write("# <script>alert(2)</script>\n")
    with (evil / "metrics.jsonl").open("a") as file:
        for bad in (EVIL, [1], {}, 10**400, -1e305, True):
            file.write(json.dumps({"step": 9, "kind": "train", "student_supervised": bad, EVIL: bad}) + "\n")
    other = tmp_path / "<script>other"
    shutil.copytree(evil, other)
    page = write_report([evil, other], tmp_path / "page.html").read_text().replace(SCRIPT, "")
    assert "<script" not in page and "<!--" not in page.split("<svg")[0] and "\x1b" not in page
    assert page.count("&lt;script&gt;") > 20


def test_a_report_that_cannot_be_written_names_its_place(copy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/page.html"):
        write_report([copy[1].path], tmp_path / "file" / "page.html")
