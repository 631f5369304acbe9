"""Every console block of README.md, in order, in a fresh copy of the checkout, on real Ray, as it is written there.

SUBSTITUTIONS says what a test machine does otherwise, and why. It may make things smaller, or replace what no test
machine has; it may not touch how many workers a command asks for (but 4 -> 2), where a local command keeps its results,
or paths that are relative.
"""

import csv
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import family, finish, kill, start

from stssl.archives.nomenclature import EUROSAT
from stssl.archives.synthetic import synthesize

CHECKOUT = Path(__file__).parents[1]
VENV = Path(sys.prefix)
SMALL = "schedule.steps=8 schedule.supervised_start=2 schedule.warmup=2 schedule.evaluate_every=4 evaluation.limit=64"
NO_GPU = "launch.gpus_per_worker=0 launch.cpus_per_worker=1 compute.precision=fp32"
TINY_VIT = "model.image_size=32 batch.labeled=16 batch.unlabeled_ratio=1 evaluation.limit=32 evaluation.batch=16"


@dataclass(frozen=True)
class Substitution:
    """What is typed instead of a part of a command, and why a test machine has to."""

    old: str
    new: str
    reason: str


VIT = "stssl train experiments/bigearthnet/fixmatch_teacher_1pct.yaml launch.workers=4 batch.micro=8"
SUBMIT = "launch.storage=/shared/runs"
SUBSTITUTIONS = (
    Substitution(
        "make quickstart",
        f"make quickstart VENV={VENV} -o {VENV}/installed "
        "OUT='quickstart --patches 300 schedule.steps=20 schedule.supervised_start=5 schedule.evaluate_every=10 "
        "schedule.warmup=2'",
        "the environment that runs this test is there already; fewer patches and steps",
    ),
    Substitution(
        "make test", f"make --dry-run test VENV={VENV} -o {VENV}/installed", "this is one of its tests: it must exist"
    ),
    Substitution("/data/", "{tmp}/data/", "no test machine has BigEarthNet: a synthetic archive lies there"),
    Substitution("/shared/", "{tmp}/shared/", "no test machine shares a folder with others"),
    Substitution(
        VIT,
        f"{VIT.replace('launch.workers=4', 'launch.workers=2')} {SMALL} {NO_GPU} {TINY_VIT} model.weights=none",
        "two CPUs, no GPU, no way to the hub; fewer steps, smaller patches and batches",
    ),
    Substitution(
        f"launch.workers=4 {SUBMIT}",
        f"launch.workers=2 {SUBMIT} {SMALL} {NO_GPU} {TINY_VIT} batch.micro=8 model.weights=none",
        "the same, on the cluster that this test starts",
    ),
    Substitution("http://127.0.0.1:8265", "{address}", "the cluster that this test starts"),
    Substitution(
        "stssl train experiments/eurosat/fixmatch_teacher_cpu.yaml",
        f"stssl train experiments/eurosat/fixmatch_teacher_cpu.yaml {SMALL}",
        "fewer steps",
    ),
    Substitution(
        "stssl pretrain experiments/pretrain/cpu.yaml",
        "stssl pretrain experiments/pretrain/cpu.yaml schedule.steps=8 schedule.warmup=2 schedule.evaluate_every=4 "
        "pretext.queue=256 pretext.geo.k=10",
        "fewer steps, and as few negatives and clusters as there are patches",
    ),
    Substitution("--patches 800", "--patches 300", "fewer patches"),
    Substitution(
        "stssl sweep experiments/sweeps/cpu.yaml",
        "stssl sweep experiments/sweeps/cpu.yaml trials=2 change.schedule.steps=8 change.schedule.supervised_start=2 "
        "change.schedule.warmup=2 change.schedule.evaluate_every=4 scheduler.grace=4",
        "fewer trials and steps",
    ),
)
RUN = ["recipe.yaml", "record.json", "labels.json", "metrics.jsonl", "tensorboard/*", "done.json"]
RUN += [f"checkpoints/{name}" for name in ("last.pt", "previous.pt", "best.pt", "student.safetensors")]
EUROSAT_RUN = "runs/eurosat-fixmatch_teacher_cpu-s0"


def run_files(folder):
    return [f"{folder}/{name}" for name in RUN]


@dataclass(frozen=True)
class Promise:
    """What the README says of a command: files in the checkout (or absolute), and words that it prints."""

    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


PROMISES = {
    "make quickstart": Promise(
        (
            "quickstart/report.html",
            "quickstart/archive/*",
            "quickstart/store.zarr/zarr.json",
            *run_files("quickstart/runs/quickstart"),
        ),
        (
            r"\bwrite\b",
            r"\bconvert\b",
            r"\btrain\b",
            "student.*teacher",
            r"calibration_error",
            r"/quickstart/report.html\n$",
        ),
    ),
    "make test": Promise(words=("pytest",)),
    "stssl convert bigearthnet-v1 /data": Promise(("{tmp}/data/bigearthnet.zarr/zarr.json",)),
    "stssl convert eurosat": Promise(
        ("eurosat.zarr/zarr.json",), (r"[\d,]+ patches in \d+ shards, \d+ of them converted now",)
    ),
    "stssl inspect": Promise(words=("official", "label")),
    "export": Promise(),
    "stssl train experiments/eurosat/fixmatch_teacher_cpu.yaml": Promise(tuple(run_files(EUROSAT_RUN))),
    VIT: Promise(tuple(run_files("runs/bigearthnet-fixmatch_teacher_1pct-s0"))),
    "stssl train experiments/bigearthnet/fixmatch_teacher_1pct.yaml --smoke": Promise(
        ("runs/bigearthnet-fixmatch_teacher_1pct-s0-smoke/done.json",)
    ),
    "stssl evaluate": Promise((f"{EUROSAT_RUN}/evaluation/test.json",), ("student.*teacher",)),
    "stssl report": Promise(("report.html",)),
    "stssl plan": Promise(),
    "stssl pretrain": Promise(
        ("runs/pretrain-cpu-s0/done.json", "runs/pretrain-cpu-s0/checkpoints/encoder.safetensors")
    ),
    "stssl train experiments/eurosat/fixmatch_teacher_cpu.yaml model.weights=run:": Promise(
        tuple(run_files("runs/eurosat-from-pretrained"))
    ),
    "stssl synthesize": Promise(("archive/*", "synthetic.zarr/zarr.json")),
    "stssl sweep": Promise(
        ("sweeps/cpu/best.yaml", "sweeps/cpu/report.html", "sweeps/cpu/study.db"),
        (r"/sweeps/cpu/best.yaml\n.*\.html\n$",),
    ),
    "stssl submit": Promise(("{tmp}/shared/runs/bigearthnet-fixmatch_teacher_1pct-s0/done.json",), ("succeeded",)),
}
"""By the longest beginning of a command."""


def commands(readme):
    """The commands of each console block, those over several lines as one."""
    blocks = re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    whole = (re.sub(r"\\\n\s*", "", block) for block in blocks)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in whole]


def written():
    return [command for block in commands((CHECKOUT / "README.md").read_text()) for command in block]


def typed(command):
    """What the test machine types, and which substitutions that took."""
    used = sorted((one for one in SUBSTITUTIONS if one.old in command), key=lambda one: -len(one.old))
    for one in used:
        assert one.old in command, f"two substitutions of one text: {one.old}"
        command = command.replace(one.old, one.new)
    return command, used


def promise(command):
    found = [start for start in PROMISES if command.startswith(start)]
    assert found, f"say in PROMISES what the README promises of: {command}"
    return PROMISES[max(found, key=len)]


def kept(command):
    """What no substitution may touch: numbers of workers, storage, and relative paths."""
    command = command.split("  #")[0].replace("launch.workers=4", "launch.workers=2")
    words = [word for word in shlex.split(command.replace("{tmp}/", "/")) if not word.startswith(("OUT=", "VENV="))]
    storage = [word for word in words if word.startswith(("launch.workers", "launch.storage", "storage"))]
    names = [word for word in words if re.search(r"\.(yaml|zarr|zip|csv|html)$|^runs/|run:|--out|--coordinates", word)]
    return storage, names


def test_substitutions_touch_no_workers_storage_or_relative_path():
    everything = written()
    for command in everything:
        assert kept(typed(command)[0]) == kept(command)
    unused = {one.old for one in SUBSTITUTIONS} - {one.old for command in everything for one in typed(command)[1]}
    assert not unused and all(one.reason for one in SUBSTITUTIONS)


def test_control_substitutions_that_are_not_allowed_are_found():
    command = "stssl train a.yaml launch.workers=4 data.store=b.zarr"
    for wrong in (f"{command} launch.storage=/tmp", command.replace("4", "0"), command.replace("b.zarr", "/b.zarr")):
        assert kept(wrong) != kept(command)
    assert kept(command.replace("4", "2") + " schedule.steps=2") == kept(command)


def test_control_blocks_are_found():
    text = "```console\n$ a \\\n    b\nc\n$ d\n```\n```yaml\n$ e\n```\n```console\n$ f\n```\n"
    assert commands(text) == [["a b", "d"], ["f"]]
    shown = (CHECKOUT / "README.md").read_text()
    assert shown.count("```console\n") == len(commands(shown)) and all(commands(shown))


@pytest.fixture
def copy(tmp_path):
    """A fresh copy of the checkout, with the data that the README takes for granted."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).is_file():
            (tmp_path / "stssl" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, tmp_path / "stssl" / name)
    synthesize(tmp_path / "data" / "BigEarthNet-v1.0", patches=300, seed=3)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "bigearthnet.zarr").symlink_to(tmp_path / "data" / "bigearthnet.zarr")
    write_eurosat(tmp_path / "stssl")
    return tmp_path / "stssl"


def write_eurosat(folder, per_class=40):
    """EuroSAT.zip with JPEGs that look like fields, water and roofs, and the table of their places."""
    rng = np.random.default_rng(0)
    rows = [["filepath", "class", "latitude", "longitude"]]
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        for label, name in enumerate(EUROSAT):
            for number in range(1, per_class + 1):
                field = rng.normal(0, 1, (3 + label, 3 + label, 3)).repeat(64 // (3 + label) + 1, 0)[:64]
                field = field.repeat(64 // (3 + label) + 1, 1)[:, :64]
                pixels = np.clip(70 + 9 * label + 18 * field + rng.normal(0, 6, (64, 64, 3)), 0, 255)
                path = folder.parent / "image.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(path, quality=88)
                archive.write(path, f"EuroSAT/2750/{name}/{name}_{number}.jpg")
                place = [f"{45 + label / 3 + rng.uniform(0, 4):.5f}", f"{5 + rng.uniform(0, 6):.5f}"]
                rows.append([f"{name}/{name}_{number}.jpg", name, *place])
    with (folder / "eurosat_latlon.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def environment(copy, token=None):
    """A user's with the environment active; the copy's code, no Ray of somebody else, and a cluster's token if any."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MAKE"))}
    path = f"{VENV / 'bin'}:{mine['PATH']}"
    return (
        mine
        | {"PATH": path, "PYTHONPATH": str(copy), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}
        | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
    )


def shell(copy, command, token=None, limit=420):
    """Run a command as the next one of the same shell: its variables stay."""
    state = copy.parent / "state"
    before = f"source {state}; " if state.exists() else ""
    script = f"{before}{command}\ncode=$?; export -p > {state}; exit $code"
    return finish(
        start(
            "env",
            "-C",
            str(copy),
            "-i",
            *(f"{k}={v}" for k, v in environment(copy, token).items()),
            "bash",
            "-c",
            script,
        ),
        limit,
    )


@contextmanager
def cluster(copy, token):
    """A node with a job server; yields its address."""
    ports = []
    for _ in range(4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    log = copy.parent / "cluster.log"
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        log.open("w") as out,
    ):
        command = [VENV / "bin" / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=3"]
        command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--temp-dir={folder}"]
        command += [f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}"]
        node = subprocess.Popen(command, stdout=out, stderr=out, env=environment(copy, token), cwd=copy)
        try:
            end = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert time.monotonic() < end and node.poll() is None, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{ports[1]}"
        finally:
            everything = family(node.pid)
            node.terminate()
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:
                node.kill()
            kill(everything)
            node.wait()


def carry_out(copy, command):
    """Type a command of the README, and hold it to its promise."""
    line, told = typed(command)[0].replace("{tmp}", str(copy.parent)), promise(command)
    begun = time.monotonic()
    if "{address}" in line:
        token = secrets.token_hex(
            32
        )  # Ray's clusters take no job without one, and cluster/README.md says how it is set
        with cluster(copy, token) as address:
            code, output = shell(copy, line.replace("{address}", address), token)
    else:
        code, output = shell(copy, line)
    logging.getLogger("readme").info("%.1f s  %s", time.monotonic() - begun, command)
    assert code == 0, f"{command}\n{line}\nended with {code}:\n{output[-6000:]}"
    assert "Traceback" not in output, output
    for words in told.words:
        assert re.search(words, output), f"{command} does not print {words}:\n{output[-6000:]}"
    for name in told.files:
        place = Path(str(copy / name.replace("{tmp}", str(copy.parent))))
        assert any(place.parent.glob(place.name)), f"{command} leaves no {name}:\n{output[-3000:]}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.flaky(reruns=0)
@pytest.mark.timeout(1500)
def test_the_readme_does_what_it_says(copy):
    done = []
    for command in written():
        carry_out(copy, command)
        done.append(command)
    assert done == written() and not (copy / ".venv").exists()
