"""Test messages: mistakes in one line with the right form, and progress on terminals, in files and pipes."""

import io
import sys

import numpy as np
import pytest
import yaml
from rich.console import Console

from stssl.api.progress import counting, training_progress
from stssl.base.config import apply_overrides, validate
from stssl.base.errors import ConfigError, DataError
from stssl.commands.cli import main
from stssl.data.splits import make_split
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.sweeps.spec import SweepConfig, load_sweep

SWEEP = {"name": "s", "recipe": "r", "trials": 2, "search": {"optimizer.lr": "auto"}}


def words(kind, tree, *overrides):
    with pytest.raises(ConfigError) as caught:
        validate(kind, apply_overrides(tree, overrides), "file")
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("algorithm.name=fixmach", "algorithm.name: there is no 'fixmach': did you mean 'fixmatch'?"),
        ("algorithm.name=x", "algorithm.name: there is no 'x': give one of 'supervised', 'fixmatch', 'flexmatch'"),
        ("algorithm=fixmatch", "algorithm: give keys and values, such as algorithm={name: fixmatch}"),
        ("algorithm={}", "algorithm: say which one by its name"),
        ("model.encoder.name=rav", "did you mean 'raw'?"),
        ("model.injection.name=lat", "did you mean 'late'?"),
        ("optimizer.name=sgdd", "did you mean 'sgd'?"),
        ("votes.name=vote", "did you mean 'votes'?"),
        ("loss.distance=cosin", "did you mean cosine?"),
        ("data.split={name: blok}", "data.split.name: there is no 'blok': did you mean 'blocks'?"),
        ("data.split=[a]", "data.split: Give a valid string or a part, such as {name: ...}"),
        ("data.bands=3,2,1", "data.bands: give a list, such as data.bands=[B04,B03,B02] (given: '3,2,1')"),
        ("data.bands=[3.5,2,1]", "data.bands: give names, such as data.bands=[B04,B03,B02]"),
        ("data.exclude=seasonal_snow", "data.exclude: give a list, such as data.exclude=[seasonal_snow]"),
        ("data.exclude=[../x]", "data.exclude.0: give the name of a column, such as country"),
        ("data.split={name: leave_out, column: ../x, values: [a]}", "data.split.column: give the name of a column"),
        ("launch.workers=two", "launch.workers: Give a valid integer or a list (given: 'two')"),
        ("launch.workers={a: 1}", "launch.workers: Give a valid integer or a list"),
        ("launch=4", "launch: give keys and values, such as launch={KEY: VALUE}"),
        ("optimizer.lr=fast", "optimizer.lr: Input should be a valid number (given: 'fast')"),
    ],
)
def test_mistakes_in_recipes_are_told_in_one_line(recipe_tree, override, right):
    found = words(Recipe, recipe_tree, override)
    assert right in found and "\n" not in found


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("search.algorithm.threshold=auto", "write the whole key in one: 'search={algorithm.threshold: \"auto\"}'"),
        ("search={a.b: atuo}", "search: a.b: give auto, a list of values such as"),
        ("search={a.b: {low: 3, hih: 4}}", "a range has low, high, log and step, not hih"),
        ("search={a.b: {low: 3, high: 1}}", "search.a.b: low 3 must be smaller than high 1"),
        ("search=[a]", "search: give recipe keys"),
        ("sampler.name=tpee", "sampler.name: there is no 'tpee': did you mean 'tpe'?"),
        ("scheduler=asha", "scheduler: give keys and values, such as scheduler={name: asha}"),
        ("mode=maxx", "did you mean max?"),
        ("points=3", "points: give a list"),
    ],
)
def test_mistakes_in_sweeps_are_told_in_one_line(override, right):
    found = words(SweepConfig, SWEEP, override)
    assert right in found and "\n" not in found


def test_the_form_that_a_message_gives_is_right():
    tree = apply_overrides(SWEEP, ['search={algorithm.threshold: "auto"}'])
    assert set(validate(SweepConfig, tree, "file").search) == {"optimizer.lr", "algorithm.threshold"}


def test_several_mistakes_are_several_lines(recipe_tree):
    found = words(Recipe, recipe_tree, "seed=-1", "launch.workers=two", "data.bands=3,2")
    assert found.count("\n") == 3


def test_pretraining_has_nearest_names_too(recipe_tree):
    tree = {"name": "p", "data": recipe_tree["data"], "model": {"backbone": "slim_resnet"}}
    assert "did you mean 'clusters'?" in words(PretrainRecipe, tree, "pretext.geo.name=cluster")


@pytest.mark.parametrize(("keys", "command"), [({}, "train"), ({"pretext": {}}, "pretrain")])
def test_a_recipe_is_no_sweep(recipe_tree, tmp_path, keys, command):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"data": recipe_tree["data"], "model": {"backbone": "x"}, **keys}))
    with pytest.raises(ConfigError, match=rf"no key search: it is a recipe, for `stssl {command}`"):
        load_sweep(file)


class Placeless:
    """Stand for a store without places or splits."""

    path, size, split_names = "placeless.zarr", 4, ()

    def column(self, name):
        return np.full(4, np.nan) if name in ("lat", "lon") else np.zeros(4)


@pytest.mark.parametrize("split", ["rounds", "blocks", "official"])
def test_a_store_without_places_or_splits_says_how_to_get_one(split):
    with pytest.raises((ConfigError, DataError), match=r"data\.split: placeless\.zarr .* a column `split`"):
        make_split(Placeless(), split)


def piped(follow):
    file = io.StringIO()
    follow(Console(file=file))
    return file.getvalue()


def test_output_to_a_file_has_a_line_every_tenth_and_no_control_characters():
    def count(console):
        with counting(console, "write", "patches") as tell:
            for done in range(1, 1001):
                tell(done, 1000)

    lines = piped(count).splitlines()
    assert all(line.isprintable() for line in lines) and len(lines) == 11
    assert lines[0].startswith("write:   0 %, 1/1000 patches")
    assert lines[-1].startswith("write: 100 %, 1000/1000 patches, 0:00:0") and lines[-1].endswith("elapsed")
    assert "elapsed, 0:00:0" in lines[5] and lines[5].endswith(" left")


@pytest.mark.parametrize(("workers", "first"), [(True, "train: starting workers"), (False, "train: starting")])
def test_training_in_this_process_starts_no_workers(workers, first):
    def follow(console):
        with training_progress(console, 4, workers) as watch:
            watch({"kind": "train", "step": 2, "loss": 1.0})
            watch({"kind": "validation", "step": 4, "mAP": 0.5})

    lines = piped(follow).splitlines()
    assert lines[0] == first and "50 %, 2/4 loss 1.000" in lines[1] and "loss 1.000, mAP 0.500" in lines[2]


def test_a_terminal_says_which_time_is_which():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    with counting(Console(file=file, force_terminal=True, width=100), "write", "patches") as tell:
        tell(1, 2)
    assert "elapsed" in file.getvalue() and "left" in file.getvalue() and "to go" not in file.getvalue()


def test_a_command_into_a_pipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stssl", "synthesize", str(tmp_path / "archive"), "--patches", "20"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert "write: 100 %, 20/20 patches" in shown and all(line.isprintable() for line in shown.splitlines())


def test_what_is_wrong_is_the_only_line(recipe_tree, tmp_path, monkeypatch, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_tree))
    monkeypatch.setattr(sys, "argv", ["stssl", "train", str(tmp_path / "r.yaml"), "data.split=rounds"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("ConfigError: data.split:")
