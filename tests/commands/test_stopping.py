"""Signals amid commands that have no steps of their own: one line, the signal's exit code, and files that are whole."""

import contextlib
import signal
import sys

import pytest
import tiny
import yaml
from processes import exit_code

from stssl.archives import conversion
from stssl.base.config import merge, validate
from stssl.base.errors import StoppedError
from stssl.base.stopping import Asked, heeding_signals
from stssl.commands import cli
from stssl.recipes.recipe import Recipe
from stssl.store import verification
from stssl.training import trained_run as finished
from stssl.training.launch import run


def interrupted(arguments, place, number, out, twice=False):
    """Carry a command out in a process of its own that gets a signal in a function of it, or twice."""
    module, name = {"convert": (conversion.Job, "convert_shard"), "evaluate": (finished, "score_networks")}[place]
    signal.signal(number, signal.SIG_DFL)  # shells start background commands with Ctrl-C ignored
    before, calls = getattr(module, name), []

    def with_signal(*given, **named):
        calls.append(given)
        if len(calls) == (2 if place == "convert" else 1):
            try:
                signal.raise_signal(number)
            finally:
                if twice:
                    signal.raise_signal(number)
        return before(*given, **named)

    setattr(module, name, with_signal)
    sys.argv = ["stssl", *arguments]
    with out.open("w") as file, contextlib.redirect_stderr(file):
        cli.console.file = file
        cli.main()


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_ends_in_one_line_and_continues(number, twice, tmp_path):
    archive, table = tiny.write_eurosat(tmp_path, per_class=1)
    arguments = ["convert", "eurosat", str(archive), str(tmp_path / "s.zarr"), "--coordinates", str(table)]
    arguments += ["--shard", "4", "--workers", "0"]
    assert exit_code(interrupted, arguments, "convert", number, tmp_path / "out", twice) == 128 + number
    *rows, told = (tmp_path / "out").read_text().splitlines()
    name = {signal.SIGINT: "Ctrl-C"}.get(number, number.name)
    assert told.startswith(f"StoppedError: interrupted ({name}).") and all(row.startswith("convert:") for row in rows)
    options = conversion.Options(workers=0, shard=4)
    assert (
        conversion.convert_archive("eurosat", archive, tmp_path / "s.zarr", options, coordinates=table).converted == 2
    )
    assert not verification.verify(tmp_path / "s.zarr").problems


def test_an_evaluation_ends_in_one_line_without_scores(recipe_tree, tmp_path):
    folder = run(validate(Recipe, merge(recipe_tree, {"schedule": {"steps": 4, "evaluate_every": 4}}), "test"))
    arguments = ["evaluate", str(folder.path)]
    assert exit_code(interrupted, arguments, "evaluate", signal.SIGTERM, tmp_path / "out") == 143
    assert (tmp_path / "out").read_text().count("\n") == 1 and not (folder.path / "evaluation").exists()


def test_a_signal_is_known_where_a_library_raises_a_ctrl_c_of_its_own():
    """Ray's `get` lets nothing but `KeyboardInterrupt` through, and makes a new one of it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert issubclass(Asked, KeyboardInterrupt)
    try:
        with pytest.raises(StoppedError, match="SIGTERM") as ended, heeding_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                raise KeyboardInterrupt from None
        assert ended.value.exit_code == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeding_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Asked):  # control
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_wrong_command_leaves_signals_alone(monkeypatch, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "x"}))
    monkeypatch.setattr(sys, "argv", ["stssl", "train", str(tmp_path / "r.yaml")])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(SystemExit):
        cli.main()
    assert {number: signal.getsignal(number) for number in before} == before
