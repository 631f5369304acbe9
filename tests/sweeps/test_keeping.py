"""The checkpoints of the best trials stay, those of other ended trials go, and the room that they need is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stssl.base.errors import ConfigError
from stssl.sweeps.keeping import checkpoint_bytes, needed_bytes, room_line, tidy
from stssl.sweeps.study import trial_place
from stssl.training.loop import train_step
from stssl.training.state import open_train_state


def checkpoints(book, number):
    return Path(trial_place(book.sweep, number), "checkpoints")


def with_files(book, count):
    for number in range(count):
        for name in ("last.pt", "previous.pt", "best.pt", ".fresh.pt.7", "student.safetensors"):
            path = checkpoints(book, number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")


def kept(book, count):
    """Numbers of the trials that have checkpoints. Others have lost all of them, and none has lost its student."""
    assert all((checkpoints(book, number) / "student.safetensors").exists() for number in range(count))
    left = {
        number: len([*checkpoints(book, number).glob("*.pt"), *checkpoints(book, number).glob(".*")])
        for number in range(count)
    }
    assert set(left.values()) <= {0, 4}
    return {number for number, files in left.items() if files}


def test_the_best_trials_and_running_ones_keep_their_checkpoints(open_book, carry_out):
    """Complete trials come first, then stopped ones; trial 4 failed, and trial 5 is running."""
    book = open_book()
    for scores, end in (([0.9, 0.8], "stopped"), ([0.5, 0.6], "complete"), ([0.4], "complete"), ([0.2], "stopped")):
        carry_out(book, scores, end)
    trial, _ = book.next()
    book.fail(trial, "no room")
    book.next()
    for keep, expected in ((1, {1, 5}), (2, {1, 2, 5}), (4, {0, 1, 2, 3, 5}), ("all", {0, 1, 2, 3, 4, 5})):
        book.sweep = replace(book.sweep, config=book.sweep.config.model_copy(update={"keep": keep}))
        with_files(book, 6)
        tidy(book)
        assert kept(book, 6) == expected


@pytest.mark.parametrize(("mode", "expected"), [("max", {0}), ("min", {1})])
def test_the_mode_decides_which_trial_is_best(open_book, carry_out, mode, expected):
    book = open_book(keep=1, mode=mode)
    for score in (0.7, 0.3, 0.5):
        carry_out(book, [score])
    with_files(book, 3)
    tidy(book)
    assert kept(book, 3) == expected


def test_of_several_metrics_no_dominated_trial_is_kept_before_another(open_book, carry_out):
    book = open_book(metric=["accuracy", "F1"], scheduler={"name": "none"}, keep=2)
    for accuracy, F1 in ((0.9, 0.1), (0.8, 0.05), (0.2, 0.9)):  # noqa: N806
        carry_out(book, [{"accuracy": accuracy, "F1": F1}])
    with_files(book, 3)
    tidy(book)
    assert kept(book, 3) == {0, 2}


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)


def test_the_room_that_is_said_is_that_of_real_checkpoints(open_book, caplog):
    book = open_book(keep=2, trials=6)
    train_state = open_train_state(book.sweep.recipe, torch.device("cpu"))
    train_step(train_state, next(train_state.task.loader.batches(0, 1)))
    real = sum(value.nbytes for value in tensors(train_state.checkpoint_state()))
    size = checkpoint_bytes(book.sweep.recipe)
    assert size == pytest.approx(real, rel=0.02)
    assert needed_bytes(book.sweep, 100, 3) == 100 * (2 * 3 + 3 * 4)
    assert "the best 2 trials (keep) and of 1 running" in room_line(book.sweep, size, 1) and not caplog.text
    room_line(book.sweep, 10**15, 1)
    assert "lower keep (now 2) or concurrent" in caplog.text


def test_keep_is_a_number_or_all(open_book):
    assert needed_bytes(open_book(name="a", keep="all").sweep, 1, 1) == 6 * 3 + 4
    for name, wrong in (("b", 0), ("c", "some"), ("d", -1)):
        with pytest.raises(ConfigError, match="keep"):
            open_book(name=name, keep=wrong)
