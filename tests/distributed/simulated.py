"""Train recipes on several simulated machines, in a separate process: `python simulated.py FOLDER PART...`.

Each part is one run on nodes with one CPU. `elastic` starts on one node and gets a second one. `worker` uses two of
three nodes, and one worker is killed. `node` loses a node. `many` asks for more workers than fit. The results go to
`seen.json`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import yaml
from ray.cluster_utils import Cluster

from stssl.base.config import validate
from stssl.base.errors import StsslError
from stssl.recipes.recipe import Recipe
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder

LIMIT = 300
DISTURBED = 20


def workers(node: Any) -> list[int]:
    """List the ids of the processes that train on a node of the simulated cluster."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child.pid for child in raylet.children() if "RayTrainWorker" in " ".join(child.cmdline())]


def validated(folder: RunFolder) -> int:
    return max((int(row["step"]) for row in folder.rows() if row["kind"] == "validation"), default=0)


def disturb(recipe: Recipe, act: Callable[[], object]) -> int:
    """Train a recipe, and call `act` after a validation. Return the step of the last validation before the call."""
    folder = RunFolder.of(recipe)
    steps: list[int] = []

    def watch() -> None:
        end = time.monotonic() + LIMIT
        while validated(folder) < DISTURBED and time.monotonic() < end:
            time.sleep(0.1)
        steps.append(validated(folder))
        act()

    threading.Thread(target=watch, daemon=True).start()
    run(recipe)
    return steps[0]


def refused(recipe: Recipe) -> str:
    """Train a recipe that must be refused, and return the error message; return `trained` if it was not refused."""
    try:
        run(recipe)
    except StsslError as error:
        return str(error)
    return "trained"


def recipe(folder: Path, name: str, address: str, **launch: object) -> Recipe:
    tree = yaml.safe_load((folder / f"{name}.yaml").read_text())
    tree["launch"] |= {"address": address, "placement": "SPREAD", "storage": str(folder / "runs"), **launch}
    return validate(Recipe, tree | {"name": name}, name)


def join(address: str, started: list[subprocess.Popen[bytes]]) -> None:
    """Start a node in a separate process: Ray starts nodes only from the main thread, which is busy with training."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={address}"]
    started.append(subprocess.Popen([*command, "--num-cpus=1"]))


def disturbances(
    cluster: Any,
    folder: Path,
    parts: list[str],
    seen: dict[str, Any],
    started: list[subprocess.Popen[bytes]],
) -> None:
    at = cluster.address
    nodes = [cluster.add_node(num_cpus=1) for _ in range(1 if "elastic" in parts else 3)]
    cluster.wait_for_nodes()
    kill = lambda: os.kill(next(pid for node in nodes for pid in workers(node)), signal.SIGKILL)  # noqa: E731
    lose = lambda: cluster.remove_node(next(node for node in nodes if workers(node)), allow_graceful=False)  # noqa: E731
    acts: dict[str, Callable[[], object]] = {"elastic": lambda: join(at, started), "worker": kill, "node": lose}
    launch: dict[str, dict[str, object]] = {
        "many": {"workers": 7, "cpus_per_worker": 9},
        "elastic": {"workers": [1, 2], "elastic_interval_s": 2},
    }
    for part in parts:
        its = recipe(folder, part, at, **launch.get(part, {}))
        seen[part] = disturb(its, acts[part]) if part in acts else refused(its)


def main() -> None:
    folder = Path(sys.argv[1])
    seen: dict[str, Any] = {}
    started: list[subprocess.Popen[bytes]] = []
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        disturbances(cluster, folder, sys.argv[2:], seen, started)
    except StsslError as error:
        seen["error"] = str(error)
    finally:
        (folder / "seen.json").write_text(json.dumps(seen))
        for process in started:
            process.terminate()
            process.wait(30)
        cluster.shutdown()


if __name__ == "__main__":
    main()
