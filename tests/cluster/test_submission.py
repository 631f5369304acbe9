"""`stssl submit` to a real cluster of two nodes on this machine, with and without its token."""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import s3_server
import yaml
from exported import write_run
from processes import family, kill
from rasterio.transform import from_origin

from stssl.training.ray_metrics import EXPORTED, VALIDATION

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A head and a worker node, their job server and token, and the port at which the worker offers its metrics."""

    address: str
    token: str
    temporary: Path
    metrics: int


def free_ports(count):
    """Ports that nobody uses, outside those that Ray's workers take (10002-19999)."""
    found, candidates = [], (port for port in range(20500 + os.getpid() % 5000, 60000, 7))
    while len(found) < count:
        port = next(candidates)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def environment(token=None, mode="token"):
    """This process's, with or without a token; never one from the home folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    kept |= {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{BIN}:{kept['PATH']}", "HOME": "/nonexistent"}
    kept |= {"RAY_AUTH_TOKEN": token} if token else {}
    kept |= {"RAY_worker_niceness": "0"}  # as in conftest.py
    kept |= {"RAY_metrics_report_interval_ms": "1000"}  # the least, so that a short run shows its metrics
    return kept | ({"RAY_AUTH_MODE": mode} if mode else {})


def stop(process):
    """End a node and all that it started, by process id."""
    everything = family(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    kill(everything)
    process.wait()


def start_node(log, token, *options):
    command = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", *options]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment(token))


def stssl(cluster, *arguments, token=None, mode="token", timeout=500):
    command = [sys.executable, "-m", "stssl.commands.cli", "submit", "--address", cluster.address]
    command += map(str, arguments)
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(token, mode), timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    port, dashboard, client, metrics, *agents = free_ports(6)
    token = secrets.token_hex(32)
    nodes = []
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        try:
            nodes.append(
                start_node(
                    logs / "head",
                    token,
                    *head,
                    f"--dashboard-agent-listen-port={agents[0]}",
                    "--num-cpus=0",
                    f"--temp-dir={temporary}",
                )
            )
            found = Cluster(f"http://127.0.0.1:{dashboard}", token, Path(temporary), metrics)
            wait_until(lambda: "Ray runtime started" in (logs / "head").read_text(), nodes, logs)
            # A folder of its own, as on another machine: nodes clear away what they unpacked for jobs.
            other = Path(temporary, "w")
            other.mkdir()
            options = [f"--address=127.0.0.1:{port}", f"--dashboard-agent-listen-port={agents[1]}", "--num-cpus=2"]
            options += [f"--temp-dir={other}", f"--metrics-export-port={metrics}"]
            nodes.append(start_node(logs / "worker", token, *options))
            wait_until(lambda: "Ray runtime started" in (logs / "worker").read_text(), nodes, logs)
            yield found
        finally:
            for node in reversed(nodes):
                stop(node)


def wait_until(condition, nodes, logs, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        words = "\n".join(path.read_text() for path in sorted(logs.iterdir()))
        assert time.monotonic() < end and all(node.poll() is None for node in nodes), words
        time.sleep(0.2)


def exported(cluster, run):
    """Newest values that the worker's node offers of a run, by the name of the metric and the score."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pattern = re.compile(r"(ray_stssl_\w+)\{(.*)\} (\S+)")
    found = [match.groups() for match in map(pattern.match, lines) if match and f'run="{run}"' in match[2]]
    return {(name, *re.findall(r'score="(\w+)"', labels)): float(value) for name, labels, value in found}


@contextlib.contextmanager
def watched(cluster, run):
    """Collect what the worker's node offers of a run, as Prometheus does: a series may end with its process."""
    seen, over = {}, threading.Event()

    def scrape():
        while not over.wait(0.5):
            with contextlib.suppress(OSError):
                seen.update(exported(cluster, run))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working folder with things that must not travel."""
    folder = tmp_path_factory.mktemp("project")
    for name in (".venv/lib.py", "data/image.bin", "runs/old/last.txt", "made.zarr/zarr.json", "kept/data/code.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def recipe(project, recipe_tree):
    store = recipe_tree["data"].pop("store")
    recipe_tree["data"]["store"] = "${TINY_STORE}"
    recipe_tree["launch"] |= {"workers": 1}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
    return [project / "recipe.yaml", "--folder", project, "--env", f"TINY_STORE={store}"]


def test_a_recipe_runs_its_output_comes_back_and_only_code_travels(cluster, recipe, tmp_path):
    with watched(cluster, "run") as seen:
        done = stssl(cluster, *recipe, "schedule.steps=120", "schedule.evaluate_every=20", token=cluster.token)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name for name, *_ in seen} == {f"ray_{name}" for name in (*EXPORTED, VALIDATION)}
    assert seen["ray_stssl_steps",] == 120 >= seen["ray_stssl_step",] >= 20
    assert 0 <= seen["ray_stssl_data_wait_ratio",] <= 1 and 0 < seen[f"ray_{VALIDATION}", "accuracy"] <= 1
    assert str(tmp_path / "runs" / "run") in done.stdout and "succeeded" in done.stderr
    assert (tmp_path / "runs" / "run" / "done.json").exists()
    first, *others = [line for line in done.stderr.splitlines() if "raysubmit" in line]
    assert first.endswith("train recipe.yaml schedule.steps=120 schedule.evaluate_every=20") and len(others) == 1
    # If Ray also runs for somebody else on this machine, it says so with a set.
    told = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "active Ray instances" not in line)
    assert re.search(r"train: +50 %, 60/120 loss", told) and "{" not in told
    sent = {path.parent for path in cluster.temporary.rglob("recipe.yaml") if "_ray_pkg" in str(path)}
    assert sent
    for folder in sent:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {"recipe.yaml", "kept/data/code.py"}


@pytest.mark.slow
def test_soak_results_of_a_submitted_run_go_to_a_bucket(cluster, recipe, project):
    pytest.importorskip("obstore")
    before = {path.name for path in project.iterdir()}
    with s3_server.s3_server() as server:
        words = ["launch.storage=s3://bucket/runs"]
        for name, value in s3_server.environment(server).items():
            words += ["--env", f"{name}={value}"]
        done = stssl(cluster, *recipe, *words, token=cluster.token)
        assert done.returncode == 0 and "s3://bucket/runs/run" in done.stdout, done.stdout + done.stderr
        assert {"bucket/runs/run/done.json", "bucket/runs/run/checkpoints/last.pt"} <= server.objects.keys()
        assert b"secret" not in b"".join(server.objects.values()) and "secret" not in done.stdout
    assert {path.name for path in project.iterdir()} == before


@pytest.mark.slow
def test_plain_ray_job_submit_trains_and_warns_as_the_readme_says(cluster, recipe, project, tmp_path):
    variables = dict([recipe[-1].split("=")])
    submit = [BIN / "ray", "job", "submit", "--address", cluster.address, "--working-dir", project]
    submit += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--", "stssl", "train", "recipe.yaml"]
    for storage, lasts in (("runs", False), (tmp_path / "lasting", True)):
        done = subprocess.run(
            [*map(str, submit), f"launch.storage={storage}"],
            capture_output=True,
            text=True,
            env=environment(cluster.token),
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("lies in this job's copy of the working folder" in done.stdout) != lasts
        assert (tmp_path / "lasting" / "run" / "done.json").exists() == lasts


def test_a_failing_job_fails_here_with_its_words(cluster, recipe):
    done = stssl(cluster, *recipe, "data.bands=[B99]", "name=other", token=cluster.token)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has no B99" in done.stdout and "Traceback" not in done.stderr


def test_a_sweep_runs(cluster, recipe, project, tmp_path):
    sweep = {"recipe": "recipe.yaml", "trials": 1, "scheduler": {"name": "none"}, "sampler": {"name": "random"}}
    sweep |= {"name": "tiny", "search": {"optimizer.lr": "auto"}, "storage": str(tmp_path / "sweeps")}
    (project / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = stssl(cluster, project / "sweep.yaml", *recipe[1:], token=cluster.token)
    assert done.returncode == 0, done.stdout + done.stderr
    best = tmp_path / "sweeps" / "tiny" / "best.yaml"
    assert best.exists() and str(best) in done.stdout


@pytest.mark.slow
def test_soak_predictions_run_in_tasks_and_in_the_jobs_own_process(cluster, project, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 32, 32), np.uint8)
    run, scene = write_run(tmp_path / "run", images), tmp_path / "scene.tif"
    about = {"driver": "GTiff", "count": 3, "height": 96, "width": 96, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(scene, "w", transform=from_origin(5e5, 53e5, 20, 20), **about) as file:
        file.write(np.tile(images[0], (1, 3, 3)))
        file.descriptions = ("B04", "B03", "B02")
    maps = []
    for name, more in {"tasks": ["--workers", 2], "alone": []}.items():
        maps.append(tmp_path / f"{name}.tif")
        words = [run, scene, "--out", maps[-1], "--pixel-size", 20, *more]
        done = stssl(cluster, "--folder", project, "predict", "--", *words, token=cluster.token)
        assert done.returncode == 0 and "succeeded" in done.stderr, done.stdout + done.stderr
        # The second job runs on the worker node. Ray finds its output only if the nodes have different addresses.
        assert name == "alone" or str(maps[-1]) in done.stdout
    assert maps[0].read_bytes() == maps[1].read_bytes()
    done = stssl(cluster, "predict", "--", run, "scene.tif", "--out", maps[0], token=cluster.token)
    assert done.returncode == 2 and "'scene.tif' is relative" in done.stderr
    words = [run, tmp_path / "no.tif", "--out", maps[0], "--pixel-size", 20, "--workers", 1]
    done = stssl(cluster, "predict", "--", *words, token=cluster.token)
    assert done.returncode == 2 and "there is no file or folder" in done.stdout


def test_a_working_folder_that_is_too_large_is_refused_with_advice(cluster, recipe, project):
    large = project / "large.bin"
    large.write_bytes(os.urandom(105 << 20))
    try:
        done = stssl(cluster, *recipe, token=cluster.token)
    finally:
        large.unlink()
    assert done.returncode == 2 and "100 MB" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_without_the_token_or_with_another_it_is_refused(cluster, recipe):
    for token, mode in ((None, None), ("0" * 64, "token")):
        done = stssl(cluster, *recipe, token=token, mode=mode)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "RAY_AUTH_TOKEN" in done.stderr and "Traceback" not in done.stderr
