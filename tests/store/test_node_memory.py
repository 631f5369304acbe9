"""The ranks of a machine hold one copy of the pixels in memory, and fill it together."""

import json

import numpy as np
import torch
from processes import on_ranks

from stssl.store import node_memory
from stssl.store.cache import hold
from stssl.store.store import Store

ROWS = np.array([7, 3, 3, 150, 199])


def work(rank, folder, store):
    torch.set_num_threads(1)
    opened = Store.open(store)
    reader, read = opened.reader(("B04", "B02")), []
    real = reader.read
    reader.read = lambda rows, out=None: (read.append(len(rows)), real(rows, out))[1]
    found = {}
    for name, memory in (("shared", node_memory.MEMORY), ("control", folder / "nowhere")):
        node_memory.MEMORY = memory
        read.clear()
        source = hold(reader, np.arange(200), opened.size, "host", torch.device("cpu"))
        found[name] = {
            "same": bool((source.read(ROWS)["rgb"].numpy() == real(ROWS)["rgb"]).all()),
            "read": sum(read) - 1,
        }
        node_memory.meet()
        if rank == 0:
            source.arrays["rgb"][7] = 0
        node_memory.meet()
        found[name]["sees the other's"] = not source.read(ROWS)["rgb"][0].any()
    found["left"] = [path.name for path in node_memory.Path("/dev/shm").glob("stssl-*")]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_two_ranks_hold_one_copy(tmp_path, store):
    on_ranks(2, work, tmp_path, store)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    whole = {"same": True, "read": 100, "sees the other's": True}
    assert first["shared"] == second["shared"] == whole and first["left"] == second["left"] == []
    # The control: without such memory each rank reads all patches into a copy of its own.
    assert first["control"] == {"same": True, "read": 200, "sees the other's": True}
    assert second["control"] == {"same": True, "read": 200, "sees the other's": False}
