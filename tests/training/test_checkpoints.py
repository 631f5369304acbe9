import pytest
import torch

from stssl import __version__
from stssl.base.errors import RunError
from stssl.training.checkpoints import Checkpoints, read_state, write_state


def state(step):
    weights = {"w": torch.full((50,), float(step))}
    return {"recipe": "r", "written_by": __version__, "progress": {"step": step}, "step": weights, "optimizer": {}}


def found(checkpoints):
    """Steps of usable checkpoints, the newest first, and what is wrong with others."""
    states = [state for _, state in checkpoints.newest("r")]
    steps = [state["progress"]["step"] for state in states if not isinstance(state, RunError)]
    return steps, [str(state) for state in states if isinstance(state, RunError)]


def test_last_previous_and_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert found(checkpoints) == ([], [])
    for step in (1, 2, 3):
        checkpoints.save(state(step), best=step == 2)
    checkpoints.wait()
    steps = [read_state(checkpoints.path(name))["progress"]["step"] for name in ("previous", "last", "best")]
    assert steps == [2, 3, 2]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state(step), best=False)
    checkpoints.wait()
    last = checkpoints.path("last")
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.unlink()
    last.write_bytes({"truncated": bytes(data[:-100]), "flipped": bytes(data), "empty": b""}[damage])
    steps, problems = found(checkpoints)
    assert steps == [1] and "truncated or damaged" in problems[0]


def test_control_an_intact_checkpoint_is_used(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5), best=False)
    checkpoints.wait()
    assert found(checkpoints) == ([5], [])


def test_the_copy_is_taken_before_training_continues(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    live = state(1)
    checkpoints.save(live, best=False)
    live["step"]["w"].zero_()
    checkpoints.wait()
    assert read_state(checkpoints.path("last"))["step"]["w"].eq(1).all()


def test_a_failed_write_is_raised(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "below")
    checkpoints.save(state(1), best=False)
    with pytest.raises(RunError, match="could not write a checkpoint"):
        checkpoints.wait()


def test_code_in_a_checkpoint_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    write_state({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        read_state(tmp_path / "evil.pt")
