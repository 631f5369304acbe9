import numpy as np
import pytest
import torch

from stssl.base.errors import RunError
from stssl.store import cache
from stssl.store.cache import Buffers, Streamed, hold
from stssl.store.store import Store

CPU = torch.device("cpu")


@pytest.fixture
def opened(store):
    return Store.open(store)


@pytest.mark.parametrize("where", ["none", "host", "device"])
def test_every_mode_delivers_the_same(opened, where):
    reader = opened.reader(("B04", "B02"))
    rows = np.array([7, 3, 3, 150])
    source = hold(reader, np.arange(200), opened.size, where, CPU)
    assert torch.equal(source.read(rows)["rgb"], torch.from_numpy(reader.read(rows)["rgb"]))
    assert source.layout == {"rgb": ("B04", "B02")}


def test_a_copy_holds_what_was_asked_for_alone(opened):
    source = hold(opened.reader(("B04",)), np.array([5, 9, 5]), opened.size, "host", CPU)
    assert source.arrays["rgb"].shape == (2, 1, 64, 64)
    assert torch.equal(source.read(np.array([9]))["rgb"][0], source.arrays["rgb"][1])


def test_a_copy_that_does_not_fit_is_refused(opened, monkeypatch):
    monkeypatch.setattr(cache, "_free", lambda device: 500_000)
    with pytest.raises(RunError, match=r"data.cache=host takes 0.00 GB .* 200 patches"):
        hold(opened.reader(("B04",)), np.arange(200), opened.size, "host", CPU)
    hold(opened.reader(("B04",)), np.arange(20), opened.size, "host", CPU)


def test_ranks_of_one_machine_share_its_memory(opened, monkeypatch):
    needed = 100 * 64 * 64
    monkeypatch.setattr(cache, "_free", lambda device: 2 * needed)
    hold(opened.reader(("B04",)), np.arange(100), opened.size, "host", CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(RunError, match="GB are free for each copy"):
        hold(opened.reader(("B04",)), np.arange(100), opened.size, "host", CPU)


def test_patches_that_are_not_held_are_not_others(opened):
    source = hold(opened.reader(("B04",)), np.arange(20), opened.size, "host", CPU)
    assert source.nbytes == 20 * 64 * 64
    assert len(source.read(np.array([3, 19]))["rgb"]) == 2
    with pytest.raises(RunError, match="patch 20 is asked for"):
        source.read(np.array([3, 20]))


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_leave_less_than_the_machine_has(version, tmp_path):
    """Of the group and those above it, the one that leaves least; files kept in memory do not count."""
    kind, limit, used = ("memory", *cache._FIRST_VERSION) if version == 1 else ("", "memory.max", "memory.current")
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text(f"5:cpu:/elsewhere\n{4 if kind else 0}:{kind}:/job/step\n")
    assert cache.group_free(own, root) == cache.group_free(tmp_path / "none", root) > 10**18
    for group, bound, taken in (("job", "1000", 400), ("job/step", "max" if version == 2 else str(2**62), 300)):
        folder = root / kind / group
        folder.mkdir(parents=True)
        (folder / limit).write_text(f"{bound}\n")
        (folder / used).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text("anon 200\nactive_file 60\ninactive_file 40\n")
    assert cache.group_free(own, root) == 700


def test_free_memory_is_known():
    assert 10**8 < cache._free(CPU) < 10**14


def test_memory_is_used_again_only_when_nobody_holds_it():
    buffers = Buffers()
    about = ((4, 3), np.dtype(np.uint16))
    held = torch.from_numpy(buffers.take(*about))
    part = held[1:]
    place = held.data_ptr()
    held.fill_(7)
    del held
    other = torch.from_numpy(buffers.take(*about))
    assert other.data_ptr() != place
    other.fill_(1)
    assert part.unique().tolist() == [7]
    del part
    assert torch.from_numpy(buffers.take(*about)).data_ptr() == place


def test_batches_read_ahead_do_not_share_memory(opened):
    reader = opened.reader(("B04",))
    source = Streamed(reader)
    kept = [source.read(np.array([row, row + 1]))["rgb"] for row in range(6)]
    for row, batch in enumerate(kept):
        assert torch.equal(batch, torch.from_numpy(reader.read(np.array([row, row + 1]))["rgb"]))
