"""Asked from outside to save or to end, all ranks do so at the same step, and the run continues exactly."""

import json
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from processes import exit_code, on_ranks
from test_loop import last, make, same

from stssl.base.config import validate
from stssl.base.errors import StoppedError
from stssl.base.stopping import TOGETHER_S, Asked
from stssl.models.ema import running_statistics
from stssl.recipes.recipe import Recipe
from stssl.training import loop, ray_notices
from stssl.training.checkpoints import read_state, write_state
from stssl.training.loop import train_to_end
from stssl.training.notices import Outside
from stssl.training.ray_notices import passing_signals
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state


def train(rank, tree, asked=None):
    """Train in one rank's process. Rank `asked` gets SIGTERM before it takes step 6. Return what the run's end says."""
    update = loop.train_step

    def counted(train_state, raw):
        if (rank, train_state.progress.step) == (asked, 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return update(train_state, raw)

    train_state = open_train_state(validate(Recipe, tree, "test"), torch.device("cpu"))
    train_state.resume()
    loop.train_step = counted
    try:
        train_to_end(train_state, lambda metrics: None)
    except StoppedError as error:
        return str(error)
    finally:
        loop.train_step = update
        train_state.folder.checkpoints.wait()
        dist.barrier()
    return "trained"


def work(rank, folder, tree):
    """Train several runs one after another on two ranks."""
    torch.set_num_threads(1)
    said = {"plain": train(rank, tree | {"name": "plain"})}
    for name, asked in (("first", 0), ("second", 1), ("control", 1)):
        said[name] = train(rank, tree | {"name": name}, asked)
        path = RunFolder.of(validate(Recipe, tree | {"name": name}, "test")).checkpoints.path("last")
        if rank == 0:
            state = read_state(path)
            torch.save(state, folder / f"{name}.pt")
            if name == "control":
                del state["ranks"]
                write_state(state, path)
        dist.barrier()
        said[f"{name} again"] = train(rank, tree | {"name": name})
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def test_a_signal_to_one_of_two_ranks_saves_and_the_run_continues_exactly(recipe_tree, tmp_path):
    """With BatchNorm and between validations, so that the ranks' running statistics differ."""
    tree = make(recipe_tree, schedule__evaluate_every=12, schedule__checkpoint_every=None).tree()
    on_ranks(2, work, tmp_path, tree)
    for rank in range(2):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        for name in ("first", "second", "control"):
            # One step late: ranks exchange what they know beside the next step.
            assert said.pop(name).startswith("asked to end (SIGTERM) after step 8")
        assert set(said.values()) == {"trained"}
    ends = {name: last(make(recipe_tree, name=name))["step"] for name in ("plain", "first", "second", "control")}
    assert same(ends["first"], ends["plain"]) and same(ends["second"], ends["plain"])
    asked = torch.load(tmp_path / "first.pt", weights_only=True)
    assert asked["progress"]["step"] == 8 and not torch.equal(*asked["ranks"])
    assert not same(ends["control"], ends["plain"])  # it resumed with the statistics of rank 0 on both

    # One rank takes the mean of two.
    write_state(asked, RunFolder.of(make(recipe_tree, name="first")).checkpoints.path("last"))
    train_state = open_train_state(validate(Recipe, tree | {"name": "first"}, "test"), torch.device("cpu"))
    train_state.resume()
    values = torch.cat([value.flatten() for value in running_statistics(train_state.task.step)])
    assert torch.allclose(values, asked["ranks"].mean(0))


class Leaving(Outside):
    """A node that leaves from the first step on, asked about after each `every`-th step."""

    def __init__(self, every):
        self.every, self.calls = every, 0

    def due(self):
        self.calls += 1
        return self.calls % self.every == 0

    def node_leaves(self):
        return True


@pytest.mark.parametrize(("every", "steps"), [(5, [4, 5, 8, 10, 12]), (99, [4, 8, 12])])
def test_a_node_that_will_leave_makes_checkpoints(recipe_tree, every, steps, monkeypatch):
    recipe = make(recipe_tree)
    train_state = open_train_state(recipe, torch.device("cpu"))
    RunFolder.of(recipe).claim(recipe)
    train_state.resume()
    saved, save = [], loop.save
    monkeypatch.setattr(loop, "save", lambda state, best=False: (saved.append(state.progress.step), save(state, best)))
    assert train_to_end(train_state, lambda metrics: None, Leaving(every))["steps"] == 12
    assert saved == steps


class Kept(ray_notices.Post):
    """Keys in this process in place of Ray's."""

    def __init__(self, **found):
        self.found = found

    def write(self, key, value):
        self.found[key] = value

    def read(self, key):
        return self.found.get(key)


def signals(case, path):
    """In a process of its own: what a driver does with one or two signals."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    post = Kept(training="yes") if case != "early" else Kept()
    said = "ended"
    try:
        with passing_signals(post):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            if case == "twice":
                time.sleep(TOGETHER_S)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
    except Asked:
        said = "raised"
    path.write_text(f"{said} {post.read('stop')}")


@pytest.mark.parametrize(("case", "said"), [("once", "ended 15"), ("twice", "raised 15"), ("early", "raised None")])
def test_a_driver_passes_its_first_signal_on_if_ranks_take_steps(tmp_path, case, said):
    assert exit_code(signals, case, tmp_path / "said") == 0
    assert (tmp_path / "said").read_text() == said


@pytest.mark.parametrize(("tells", "leaves"), [(None, False), (lambda: None, False), (lambda: "a node", True)])
def test_a_ray_that_tells_nothing_of_leaving_nodes_is_one_without_such_nodes(tells, leaves, monkeypatch):
    """Releases of Ray before the summer of 2026 lack the function."""
    import ray.train

    if tells is None:
        monkeypatch.delattr(ray.train, "get_preemption_info", raising=False)
    else:
        monkeypatch.setattr(ray.train, "get_preemption_info", tells, raising=False)
    assert ray_notices.RayOutside(Kept()).node_leaves() is leaves


def test_what_the_driver_was_asked_reaches_rank_0(monkeypatch):
    monkeypatch.setattr(ray_notices, "POLL_S", 0.01)
    outside = ray_notices.RayOutside(Kept())
    with outside.listening():
        assert outside.post.read("training") and outside.asked() is None
        outside.post.write("stop", "15")
        end = time.monotonic() + 5
        while outside.asked() is None and time.monotonic() < end:
            time.sleep(0.01)
    assert outside.asked() is signal.SIGTERM
