"""A run on three machines with addresses of their own, of which one loses its network for a while and is not killed."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machines
import pytest
import tiny
import torch
import yaml
from processes import on_ranks

from stssl.recipes.recipe import load_training_recipe
from stssl.training.checkpoints import read_state
from stssl.training.loop import train_to_end
from stssl.training.state import open_train_state

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
STEPS, EVERY, PORT = 100, 20, 6379
HEAD, NODES, CUT = 0, 3, 2
STARTED = "Ray runtime started"
LIMIT, NOTICED = 300, 60


def environment(token):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Gloo would take the address that belongs to the name of the host, which all namespaces share.
    kept |= {"PATH": f"{BIN}:{kept['PATH']}", "HOME": "/nonexistent", "GLOO_SOCKET_IFNAME": "eth0"}
    kept |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    kept |= {"RAY_gcs_rpc_server_reconnect_timeout_s": str(LIMIT)}  # a node that was cut off must live on
    kept |= {"RAY_worker_niceness": "0"}  # as in conftest.py
    # The head gives a node up after five checks of 1 + 3 seconds without an answer, not of 3 + 10 seconds.
    return kept | {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}


class Site:
    """Three nodes with one CPU each; the first is the head. A node that Ray gave up starts again, as under systemd."""

    def __init__(self, network, folder, temporary):
        self.network, self.folder = network, folder
        self.environment = environment(secrets.token_hex(32))
        self.address = f"{network.address(HEAD)}:{PORT}"
        self._start(HEAD, temporary, "--head", f"--port={PORT}", "--include-dashboard=false")
        wait_until(lambda: self.starts(HEAD) == 1, self.log(HEAD))
        for number in range(1, NODES):
            self._start(number, temporary, f"--address={self.address}", "--include-log-monitor=false")

    def _start(self, number, temporary, *options):
        place = Path(temporary, str(number))
        place.mkdir()
        ray = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.network.address(number)}"]
        ray += [f"--temp-dir={place}", "--num-cpus=1", "--object-store-memory=80000000", *options]
        # Start Ray again as long as this test runs.
        again = f'while kill -0 {os.getpid()}; do "$@"; sleep 1; done'
        self.network.start(number, self.log(number), self.environment, "bash", "-c", again, "supervisor", *ray)

    def log(self, name):
        return self.folder / f"{name}.log"

    def starts(self, number):
        """How often Ray started on a node."""
        return self.log(number).read_text().count(STARTED)

    def workers(self, number):
        """Processes that train on a node."""
        return [pid for pid, words in self.network.processes(number).items() if "RayTrainWorker" in words]

    def train(self, name):
        command = [sys.executable, "-m", "stssl.commands.cli", "train", str(self.folder / "recipe.yaml")]
        command += [f"name={name}", f"launch.address={self.address}", f"launch.nodes_timeout_s={LIMIT}"]
        return self.network.start(HEAD, self.log(name), self.environment, *command)

    def finish(self, name, process):
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = "no end"
        assert code == 0, "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))


def wait_until(condition, log, limit=LIMIT):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def validated(run):
    with contextlib.suppress(json.JSONDecodeError, OSError):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return max((row["step"] for row in rows if row["kind"] == "validation"), default=0)
    return 0


def starts(run):
    """Step and ranks of each start of a run."""
    return [(start["step"], start["ranks"]) for start in json.loads((run / "record.json").read_text())["starts"]]


def weights(run, name="last"):
    state = read_state(run / "checkpoints" / f"{name}.pt")
    assert (state["progress"]["step"] == STEPS) == (name == "last")
    return {key: value for key, value in state["step"].items() if isinstance(value, torch.Tensor)}


def train_alone(rank, folder):
    """Train the recipe on one of several ranks of this machine, without Ray."""
    train_state = open_train_state(load_training_recipe(folder / "recipe.yaml", ["name=whole"]), torch.device("cpu"))
    train_state.resume()
    end = train_to_end(train_state, lambda metrics: None)
    if rank == 0:
        train_state.finish(end)


@pytest.fixture
def folder(tmp_path, store):
    """Holds the recipe of a run on three ranks, and the run `whole`, which nothing disturbed."""
    if reason := machines.why_not():
        pytest.skip(reason)
    tree = tiny.tiny_recipe(store, tmp_path / "runs")
    tree["schedule"] |= {"steps": STEPS, "evaluate_every": EVERY}
    tree["launch"] |= {"workers": NODES, "placement": "STRICT_SPREAD"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    on_ranks(NODES, train_alone, tmp_path)
    return tmp_path


@pytest.fixture
def site(folder):
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as temporary,
        machines.Machines(NODES) as network,
    ):
        yield Site(network, folder, temporary)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.flaky(reruns=0)
def test_soak_a_run_ends_the_same_after_a_node_was_cut_off_but_not_killed(site):
    runs = site.folder / "runs"
    process = site.train("cut")
    wait_until(lambda: validated(runs / "cut") >= EVERY, site.log("cut"))
    # Control: a node that comes back before Ray gives it up disturbs nothing.
    site.network.cut(CUT)
    time.sleep(2)
    site.network.mend(CUT)
    at = validated(runs / "cut")
    wait_until(lambda: validated(runs / "cut") > at, site.log("cut"))
    assert starts(runs / "cut") == [(0, NODES)]
    site.network.cut(CUT)
    at = validated(runs / "cut")
    # Ray gives the node up and ends the other workers. Those on the node live on and wait for the others.
    wait_until(lambda: not site.workers(0) and not site.workers(1), site.log("cut"), NOTICED)
    assert site.workers(CUT) and process.poll() is None and at < STEPS
    site.network.mend(CUT)
    site.finish("cut", process)
    assert starts(runs / "cut") == [(0, NODES), (at, NODES)]
    assert [site.starts(number) for number in range(NODES)] == [1, 1, 2]
    assert starts(runs / "whole") == [(0, NODES)]
    assert same(weights(runs / "cut"), weights(runs / "whole"))
    assert not same(weights(runs / "cut", "previous"), weights(runs / "whole"))  # control: 20 steps make a difference
