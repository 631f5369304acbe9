"""Runs recipes on several simulated nodes, in a process of its own: `python simulated.py lost|joined FOLDER`.

`lost`: an undisturbed run, then one whose node is lost in mid-run, on three one-CPU nodes. `joined`: an elastic run
that starts on one node and gets a second. What was seen goes to FOLDER/seen.json.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import yaml
from ray.cluster_utils import Cluster

from stssl.config import validate
from stssl.errors import StsslError
from stssl.recipe import Recipe
from stssl.train.folder import RunFolder
from stssl.train.launch import run

LIMIT = 300


def children(pid: int) -> list[tuple[int, str]]:
    """Process ids and command lines right below a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append((int(stat.parent.name), (stat.parent / "cmdline").read_text()))
        except OSError:
            continue
    return found


def has_worker(node) -> bool:
    raylet = node.all_processes["raylet"][0].process.pid
    return any("RayTrainWorker" in line for _, line in children(raylet))


def validated(folder: RunFolder) -> int:
    return max((row["step"] for row in folder.rows() if row["kind"] == "validation"), default=0)


def when_validated(folder: RunFolder, step: int, act) -> threading.Thread:
    """Act once a run is past a validation."""

    def watch() -> None:
        end = time.monotonic() + LIMIT
        while validated(folder) < step and time.monotonic() < end:
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def recipe(folder: Path, name: str, address: str, **launch) -> Recipe:
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    tree["launch"] |= {"address": address, "placement": "SPREAD", "storage": str(folder / "runs"), **launch}
    return validate(Recipe, tree | {"name": name}, name)


def lost(cluster: Cluster, folder: Path, seen: dict) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    cluster.wait_for_nodes()
    run(recipe(folder, "unbroken", cluster.address, workers=2))
    disturbed = recipe(folder, "lost", cluster.address, workers=2)

    def remove() -> None:
        victim = next(node for node in nodes if has_worker(node))
        seen["removed_at"] = validated(RunFolder.of(disturbed))
        cluster.remove_node(victim, allow_graceful=False)

    when_validated(RunFolder.of(disturbed), 40, remove)
    start = time.monotonic()
    run(disturbed)
    seen["seconds"] = time.monotonic() - start


def joined(cluster: Cluster, folder: Path, seen: dict) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    elastic = recipe(folder, "elastic", cluster.address, workers=[1, 2], elastic_interval_s=3)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.address}"]
    # A process of its own: nodes can only be started from a main thread, and ours trains.
    started: list[subprocess.Popen] = []
    join = lambda: started.append(subprocess.Popen([*command, "--num-cpus=1"]))  # noqa: E731
    when_validated(RunFolder.of(elastic), 40, join)
    try:
        run(elastic)
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    seen: dict = {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        {"lost": lost, "joined": joined}[kind](cluster, folder, seen)
        seen["ended"] = True
    except StsslError as error:
        seen["error"] = str(error)
    finally:
        (folder / "seen.json").write_text(json.dumps(seen))
        cluster.shutdown()


if __name__ == "__main__":
    main()
