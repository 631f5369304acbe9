"""Test sweep files: allowed values, the meaning of keys, and errors before the first trial."""

import sys
from pathlib import Path

import pytest
import yaml

from stssl.base.config import Domain
from stssl.base.errors import ConfigError, DataError
from stssl.commands.cli import main
from stssl.sweeps.domains import build_space
from stssl.sweeps.run import _check_metrics
from stssl.sweeps.spec import load_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "experiments" / "sweeps").glob("*.yaml"))


@pytest.fixture
def space_of(recipe_tree, tmp_path):
    """Build the space of a search over the tiny recipe, with changes to recipe and sweep."""

    def go(search, change=None, **sweep):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree))
        tree = {"recipe": "recipe.yaml", "metric": "accuracy", "trials": 4, "search": search, "change": change or {}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree | sweep))
        loaded = load_sweep(tmp_path / "s.yaml")
        return build_space(loaded.config, loaded.recipe)

    return go


def only(space):
    (axis,) = space.axes
    return axis


def test_a_domain_comes_from_the_recipes_type(space_of):
    axis = only(space_of({"optimizer.lr": None}))
    assert axis.domain == Domain(1e-5, 1e-2, log=True) and not axis.integer and axis.gates == ()
    assert only(space_of({"optimizer.lr": "auto"})) == axis


def test_types_give_domains_where_nothing_is_annotated(space_of):
    assert only(space_of({"augment.strong_labeled": None})).domain.choices == (False, True)
    assert only(space_of({"data.scale": None})).domain.choices == ("sigmas", "bytes")
    styles = only(space_of({"augment.randaugment.style": None})).domain.choices
    assert styles == ("stssl", "kornia-0.7", "kornia", "fixmatch")
    assert only(space_of({"augment.randaugment.n": None})).integer


def test_a_file_narrows_or_replaces_a_domain(space_of):
    given = {"low": 0.001, "high": 0.1, "log": True}
    assert only(space_of({"optimizer.lr": given})).domain == Domain(0.001, 0.1, log=True)
    assert only(space_of({"optimizer.lr": [0.1, 1]})).domain == Domain(choices=(0.1, 1.0))
    assert only(space_of({"data.bands": [["B04"], ["B04", "B03"]]})).domain.choices == (["B04"], ["B04", "B03"])


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"algorithm.treshold": None}, r"unknown key algorithm\.treshold\. Did you mean algorithm\.threshold\?"),
        ({"optimizr.lr": None}, r"unknown key optimizr\. Did you mean optimizer\?"),
        ({"optimizer.lr.low": None}, r"optimizer\.lr is a single value"),
        ({"algorithm.sigmas": None}, r"exists only where algorithm\.name is softmatch; here it is fixmatch"),
        ({"model.encoder.degree": None}, r"exists only where model\.encoder\.name is spherical; here it is raw"),
        ({"schedule.steps": None}, r"schedule\.steps: the recipe's type gives it no domain"),
        ({"optimizer.lr": [-1.0]}, r"optimizer\.lr: the recipe refuses -1\.0"),
        ({"optimizer.lr": []}, "the list of values is empty"),
        ({"algorithm.name": ["fixmatch", "fixmach"]}, "the recipe refuses fixmach"),
        ({"optimizer.lr": {"low": 1.0, "high": 0.1}}, "low 1 must be smaller than high 0.1"),
        ({"model.injection.name": ["late", "token"]}, "the recipe refuses token"),
        ({"optimizer.lr": {"low": 0.1, "high": 0.5, "step": 0.3}}, r"steps of 0\.3 from low 0\.1 do not come to high"),
        ({"augment.randaugment.n": {"low": 1, "high": 4, "step": 0.5}}, r"randaugment\.n is a whole number"),
        ({"augment.randaugment.n": {"low": 1.5, "high": 4}}, r"randaugment\.n is a whole number"),
        ({"algorithm.name": ["supervised"], "loss.unlabeled": None}, r"nothing with any algorithm\.name under search"),
    ],
)
def test_wrong_keys_and_values_are_errors(space_of, search, message):
    with pytest.raises(ConfigError, match=message):
        space_of(search)


def test_ranges_that_are_possible_are_taken(space_of):
    space_of({"optimizer.lr": {"low": 0.1, "high": 0.7, "step": 0.3}})
    space_of({"augment.randaugment.n": {"low": 1, "high": 4}})
    space_of({"algorithm.name": ["supervised", "fixmatch"], "loss.unlabeled": None})


def test_keys_that_change_nothing_are_errors(space_of):
    with pytest.raises(ConfigError, match=r"changes nothing while model\.metadata is none"):
        space_of({"model.encoder.place": None}, {"model.metadata": "none"})
    space_of({"model.encoder.place": None})
    space_of({"model.encoder.place": None, "model.metadata": ["none", "teacher"]}, {"model.metadata": "none"})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"trails": 3}, "unknown key trails: did you mean trials?"),
        ({"trials": 0}, "trials"),
        ({"metric": ["accuracy", "loss"]}, "several metrics cannot be compared in mid-run"),
        ({"metric": ["accuracy", "loss"], "mode": ["max"], "scheduler": {"name": "none"}}, "one entry for each"),
        ({"scheduler": {"name": "hyperband"}}, "scheduler"),
        ({"change": {"optimizer.rate": 1}}, "unknown key optimizer.rate"),
    ],
)
def test_wrong_sweeps_are_errors(space_of, sweep, message):
    with pytest.raises(ConfigError) as error:
        space_of({"optimizer.lr": None}, **sweep)
    assert message in str(error.value)


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("recipe", ["", "missing.yaml", "no\0path", "/" + "x" * 5000, "wrong.yaml", "s.yaml"])
def test_a_wrong_recipe_is_told_with_the_sweep_that_names_it(space_of, tmp_path, recipe, here):
    (tmp_path / "wrong.yaml").write_text("optimizer: {rate: 1}\n")
    space_of({"optimizer.lr": None})
    tree = yaml.safe_load((tmp_path / "s.yaml").read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree | {"recipe": recipe}))
    with pytest.raises(ConfigError) as error:
        load_sweep(tmp_path / "s.yaml", here=here)
    assert f"{tmp_path / 's.yaml'}" in str(error.value) and "recipe" in str(error.value)
    assert len(str(error.value)) < 1500


def test_modes_are_known_of_own_scores(space_of, tmp_path):
    space_of({"optimizer.lr": None}, metric=["mAP", "calibration_error"], scheduler={"name": "none"})
    assert load_sweep(tmp_path / "s.yaml").config.modes == ("max", "min")
    assert load_sweep(tmp_path / "s.yaml", ["trials=9", "change.seed=3"]).recipe.seed == 3


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_of_the_repository_are_whole(path, monkeypatch):
    for name in ("BIGEARTHNET", "SYNTHETIC", "USB_VIT_S16"):
        monkeypatch.setenv(name, "/nowhere.zarr")
    loaded = load_sweep(path)
    space = build_space(loaded.config, loaded.recipe)
    for point in loaded.config.points:
        assert space.point(point)
    assert path.read_text().startswith("# ")


def test_there_are_the_promised_sweeps():
    assert {path.stem for path in SWEEPS} >= {"thresholds", "distillation", "sites", "joint", "cpu"}


def test_paths_are_absolute_because_trials_run_elsewhere(space_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space_of({"optimizer.lr": None}, {"data.store": "here.zarr", "model.weights": "run:first", "launch.storage": "out"})
    recipe = load_sweep("s.yaml").recipe
    assert recipe.data.store == str(tmp_path / "here.zarr")
    assert recipe.model.weights == f"run:{tmp_path / 'out' / 'first'}"
    space_of({"optimizer.lr": None}, {"data.store": "s3://bucket/a.zarr", "data.cache_dir": "kept"})
    data = load_sweep("s.yaml").recipe.data
    assert (data.store, data.cache_dir) == ("s3://bucket/a.zarr", str(tmp_path / "kept"))


def test_the_command_ends_with_words_before_anything_starts(space_of, tmp_path, monkeypatch, capsys):
    space_of({"optimizer.lr": None}, storage=str(tmp_path / "sweeps"))
    tree = yaml.safe_load((tmp_path / "s.yaml").read_text())
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tree | {"search": {"optimizer.rate": None}}))
    monkeypatch.setattr(sys, "argv", ["stssl", "sweep", str(tmp_path / "s.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "unknown key optimizer.rate" in capsys.readouterr().err
    assert not (tmp_path / "sweeps" / "s" / "study.db").exists()


def test_a_sweep_needs_a_best_checkpoint(tmp_path, monkeypatch):
    for name in ("EUROSAT", "USB_VIT_S2"):
        monkeypatch.setenv(name, "/nowhere")
    recipe = Path(__file__).parents[2] / "experiments" / "eurosat" / "fixmatch_40.yaml"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"recipe: {recipe}\nsearch: {{optimizer.lr: auto}}\ntrials: 1\n")
    with pytest.raises(ConfigError, match=r"evaluation\.checkpoint: the recipe has last.*data\.split"):
        _check_metrics(load_sweep(file))
    file.write_text(file.read_text() + "change: {evaluation.checkpoint: best}\n")
    with pytest.raises(DataError):  # the control: then it opens the store
        _check_metrics(load_sweep(file))
