"""Predict a map on four simulated machines, of which one dies: `python four_nodes.py RUN SCENE MAP`."""

import os
import sys
import threading
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.cluster_utils import Cluster

from stssl.mapping import blocks
from stssl.mapping.prediction import MapOptions, predict_scene

SIDE = 100
"""Side of a block in pixels: small, so that there are many."""


def alive(node: str) -> bool:
    """Return True if Ray believes that a node is alive."""
    return any(one["Alive"] for one in ray.nodes() if one["NodeID"] == node)


def main() -> None:
    """Start a head without CPUs and four nodes with one CPU each, and remove one after some blocks."""
    run, scene, out = sys.argv[1:]
    blocks.BLOCK_SIDE = SIDE
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(4)]
    ray.init(address=cluster.address, log_to_driver=False)
    killers = []

    def watch(done: int, of: int) -> None:
        if done > of // 16 and not killers:
            killers.append(threading.Thread(target=cluster.remove_node, args=(nodes[0], False)))
            killers[0].start()
            sys.stdout.write(f"removed a node after {done} of {of} windows\n")

    try:
        predict_scene([run], [scene], out, MapOptions(stride=8, workers=4, address=cluster.address), watch)
        killers[0].join()
        end = time.monotonic() + 60
        while alive(nodes[0].node_id) and time.monotonic() < end:
            time.sleep(0.5)
        sys.stdout.write(f"the node is {'alive' if alive(nodes[0].node_id) else 'dead'}\n")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
