"""Paths are absolute once a file is loaded: what workers get means the same in any folder."""

import sys
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import pytest
import yaml

from stssl.base.config import Config, config_types, flatten, validate
from stssl.base.errors import ConfigError
from stssl.base.paths import component, is_url, started_from, study, tracking
from stssl.commands.cli import main
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, load_as, load_training_recipe
from stssl.sweeps.domains import build_space
from stssl.sweeps.spec import SweepConfig, load_sweep
from stssl.training.run_folder import RunFolder, write_text

PATHS = {
    "data.store": "near.zarr",
    "data.cache_dir": "kept",
    "labels.list": "labels.txt",
    "model.weights": "file:first.pt",
    "launch.storage": "results",
    "logging.mlflow": "tracked",
}
"""Every key of a recipe that takes a path, and a relative one; those of splits apart."""
SPLIT_PATHS = {
    "lists": {f"data.split.{part}": f"lists/{part}.txt" for part in ("train", "validation", "test")},
    "reben": {"data.split.metadata": "reben/metadata.parquet"},
}
"""The same for the keys of each split."""
ALL_PATHS = PATHS.keys() | {key for paths in SPLIT_PATHS.values() for key in paths}
every_split = pytest.mark.parametrize("split", SPLIT_PATHS)
OTHERS = {
    "data.bands",
    "data.exclude",
    "data.labels",
    "data.split",
    "data.split.column",
    "data.split.values",
    "launch.address",
    "model.backbone",
    "model.weights_bands",
    "name",
}
"""Keys that take texts which are no paths: a name, a column, an address."""
SWEEP_PATHS = {"recipe", "storage", "study"}
"""Those of a sweep file; `recipe` is relative to that file, and read there."""


def texts(model, prefix=""):
    """Dotted keys of a model that take any text."""
    for name, field in model.model_fields.items():
        for part in config_types(field.annotation):
            yield from texts(part, f"{prefix}{name}.")
        if takes_text(field.annotation):
            yield f"{prefix}{name}"


def takes_text(annotation):
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, list):
        return any(takes_text(part) for part in get_args(annotation))
    return annotation is str


def relative(tree, paths):
    """Keys of a recipe's tree whose values hold a path that is not absolute."""
    found = dict(flatten(tree))
    return {key for key in paths if not str(found[key]).removeprefix("file:").startswith("/")}


@pytest.fixture
def file(recipe_tree, tmp_path, monkeypatch):
    """A recipe with relative paths in the current folder."""
    monkeypatch.chdir(tmp_path)
    tree = recipe_tree | {"labels": {}, "data": {"store": "near.zarr", "labels": "label"}}
    tree["launch"].pop("storage")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def test_each_key_that_takes_a_text_is_known_to_be_a_path_or_not():
    for model in (Recipe, PretrainRecipe):
        unknown = set(texts(model)) - ALL_PATHS - OTHERS
        assert not unknown, f"say in PATHS or OTHERS what these keys are, and give paths their type: {unknown}"
    assert set(texts(Recipe)) | {"labels.list"} == ALL_PATHS | OTHERS
    assert set(texts(SweepConfig)) - {"name", "metric"} == SWEEP_PATHS


def test_control_a_new_key_of_text_is_seen():
    class Wider(Config):
        recipe: Recipe
        note: str | None = None

    assert {"note", "recipe.name"} <= set(texts(Wider))


@every_split
def test_what_workers_get_holds_no_relative_path(file, tmp_path, monkeypatch, split):
    paths = PATHS | SPLIT_PATHS[split]
    given = [f"{key}={value}" for key, value in paths.items()]
    recipe = load_training_recipe("recipe.yaml", [f"data.split.name={split}", *given])
    sent = recipe.tree()
    assert relative(sent, paths) == set()
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    there = validate(Recipe, sent, "recipe")
    assert there == recipe and RunFolder.of(there).path == tmp_path / "results" / "run"


@every_split
def test_control_unsettled_paths_are_found(file, split):
    paths = PATHS | SPLIT_PATHS[split]
    given = [f"{key}={value}" for key, value in paths.items()]
    recipe = load_as(Recipe, "recipe.yaml", [f"data.split.name={split}", *given], absolute=False)
    assert relative(recipe.tree(), paths) == paths.keys()


def test_the_default_storage_is_where_the_command_was_typed(file, tmp_path, monkeypatch):
    tree = load_training_recipe("recipe.yaml").tree()
    assert tree["launch"]["storage"] == str(tmp_path / "runs")
    tree["launch"].pop("storage")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert validate(Recipe, tree, "recipe").launch.storage == str(tmp_path / "other" / "runs")


def test_a_run_to_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = str(tmp_path / "runs")
    assert started_from("run:first", storage) == f"run:{storage}/first"
    assert started_from("run:runs/first", storage) == f"run:{storage}/first"
    (tmp_path / "first").mkdir()
    assert started_from("run:first", storage) == f"run:{tmp_path}/first"
    (tmp_path / "runs" / "group" / "second").mkdir(parents=True)
    assert started_from("run:group/second", storage) == f"run:{storage}/group/second"
    assert started_from("imagenet", storage) == "imagenet"


def test_an_identity_does_not_follow_the_storage(file, tmp_path):
    one, other = (
        load_training_recipe(file, ["model.weights=run:first", f"launch.storage={name}"]) for name in ("a", "b")
    )
    assert one.model.weights != other.model.weights and one.hash() == other.hash()
    assert one.hash() != load_training_recipe(file, ["model.weights=run:second", "launch.storage=a"]).hash()


@pytest.mark.parametrize("weights", ["file:first.pt", "run:first", "run:runs/first", "none"])
def test_runs_of_earlier_versions_continue(file, tmp_path, weights):
    recipe = load_training_recipe(file, [f"model.weights={weights}"])
    folder = RunFolder.of(recipe)
    old = recipe.tree() | {"model": recipe.tree()["model"] | {"weights": weights}}
    old["launch"]["storage"] = "runs"
    folder.path.mkdir(parents=True)
    write_text(folder.path / "recipe.yaml", yaml.safe_dump(old))
    assert folder.refuse_others(recipe)
    with (
        pytest.raises(ConfigError, match=r"weights") if weights == "run:" else pytest.raises(Exception, match="differs")
    ):
        folder.refuse_others(load_training_recipe(file, ["model.weights=file:second.pt"]))


def test_a_sweeps_paths(file, tmp_path, monkeypatch):
    tree = {"recipe": "../recipe.yaml", "trials": 2, "study": "journal:log", "search": {"optimizer.lr": "auto"}}
    tree["change"] = {"model.weights": "run:first", "launch.storage": "out"}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "s.yaml").write_text(yaml.safe_dump(tree))
    what = load_sweep("files/s.yaml")
    assert (what.config.storage, what.config.study) == (str(tmp_path / "sweeps"), f"journal:{tmp_path}/log")
    assert what.recipe.model.weights == f"run:{tmp_path}/out/first"
    monkeypatch.chdir(tmp_path / "files")
    searched = tree | {"search": {"model.weights": ["none", "run:second", "file:third.pt"]}}
    (tmp_path / "files" / "s.yaml").write_text(yaml.safe_dump(searched))
    what = load_sweep("s.yaml")
    space = build_space(what.config, what.recipe)
    found = [space.recipe({"model.weights": value}).model.weights for value in searched["search"]["model.weights"]]
    assert found == ["none", f"run:{tmp_path}/files/out/second", f"file:{tmp_path}/files/third.pt"]


def test_urls_of_studies_and_of_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study("sqlite:///s.db") == f"sqlite:///{tmp_path}/s.db"
    assert study("journal://s.log") == study("journal:s.log") == f"journal:{tmp_path}/s.log"
    assert tracking("file:kept") == f"file:{tmp_path}/kept" and tracking("kept") == f"{tmp_path}/kept"
    for same in ("postgresql://h/d", "sqlite:////s.db", "journal:/s.log"):
        assert study(same) == same
    for same in ("http://h:1", "databricks", "file:///kept", "sqlite:////s.db"):
        assert tracking(same) == same


FAR = [
    "hdfs://n/r",
    "s3a://b/r",
    "s3:/bucket/r",
    "s3:bucket",
    "file:///runs",
]


@pytest.mark.parametrize("url", FAR)
def test_urls_of_no_object_store_are_refused(file, url):
    for key in ("launch.storage", "data.cache_dir", "labels.list"):
        words = "neither a path nor the URL of an object store" if key == "launch.storage" else "URLs cannot be used"
        with pytest.raises(ConfigError, match=rf"{key}: .*{words}") as caught:
            load_training_recipe(file, [f"{key}={url}"])
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"model\.weights: .*neither a path nor the URL"):
        load_training_recipe(file, [f"model.weights=run:{url}"])
    tree = {"name": "s", "recipe": "r", "trials": 1, "search": {"optimizer.lr": "auto"}, "storage": url}
    for absolute in (True, False):
        with pytest.raises(ConfigError, match=r"storage: .*neither a path nor the URL"):
            validate(SweepConfig, tree, "s.yaml", absolute)


@pytest.mark.parametrize("url", ["s3://bucket/runs", "gs://b/r/", "az://b", "S3://b/r"])
def test_urls_of_object_stores_hold_results(file, url):
    plain = url.rstrip("/").replace("S3", "s3")
    recipe = load_training_recipe(file, [f"launch.storage={url}", "model.weights=run:first"])
    assert recipe.launch.storage == plain and recipe.model.weights == f"run:{plain}/first"
    assert validate(Recipe, recipe.tree(), "worker") == recipe
    for key in ("data.cache_dir", "labels.list"):
        with pytest.raises(ConfigError, match=rf"{key}: URLs cannot be used here"):
            load_training_recipe(file, [f"{key}={url}"])
    tree = {"name": "s", "recipe": "r", "trials": 1, "search": {"optimizer.lr": "auto"}, "storage": url}
    assert validate(SweepConfig, tree, "s.yaml").place == f"{plain}/s"


def test_paths_that_only_look_like_urls(file, tmp_path):
    for path in ("a:b", "runs:1/x", "s3/x", "x/s3:y", "./s3:runs"):
        assert not is_url(path)
        assert load_training_recipe(file, [f"launch.storage={path}"]).launch.storage == str(tmp_path / path)
    assert load_training_recipe(file, ["data.store=s3://b/a.zarr"]).data.store == "s3://b/a.zarr"
    for key, words in (
        ("launch.storage=''", "is empty"),
        ('launch.storage="a\\0"', "U.0000"),
        ("data.store=s3:/b", "neither"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_training_recipe(file, [key])


BAD = ["../x", "/abs", ".", "..", "a/b", "", " ", "x ", "a\nb", "a\0b", "a\x1b[1m", "\u202ex", "é" * 128, "a\\b"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_no_folder(name, recipe_tree):
    for kind in (Recipe, PretrainRecipe):
        with pytest.raises(ConfigError, match="name: a name") as caught:
            validate(kind, recipe_tree | {"name": name}, "r.yaml")
    sweep = {"name": name, "recipe": "r", "trials": 1, "search": {"optimizer.lr": "auto"}}
    with pytest.raises(ConfigError, match="name: "):
        validate(SweepConfig, sweep, "s.yaml")
    assert "\x1b" not in str(caught.value)


def test_names_that_are():
    for name in ("a b", "Größe-1", "...", "é" * 127, "x" * 255, "trial=3, lr 0.1"):
        assert component(name) == name


COMMANDS = [
    ("evaluate", "s3:/b/run"),
    ("probe", "hdfs://b/run"),
    ("report", "s3:b/run"),
    ("export", "s3a://b/run"),
    ("predict", "s3:/b/run", "x.tif", "--out", "y.tif"),
    ("predict", "runs/x", "x.tif", "--out", "s3:/b/y.tif"),
    ("report", "runs", "--out", "s3://b/r.html"),
    ("synthesize", "s3://b/archive"),
    ("quickstart", "--out", "s3://b/q"),
    ("convert", "eurosat", "s3://b/EuroSAT.zip", "out.zarr"),
    ("convert", "eurosat", ".", "s3:/b/out.zarr"),
    ("train", "s3://b/recipe.yaml"),
    ("sweep", "s3://b/sweep.yaml"),
    ("submit", "s3://b/recipe.yaml"),
    ("plan", "s3://b/recipe.yaml"),
    ("inspect", "s3:/b/out.zarr"),
    ("verify", "s3:/b/out.zarr"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_make_no_folder_of_a_url(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stssl", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    words = capsys.readouterr().err
    assert ended.value.code == 2 and list(tmp_path.iterdir()) == []
    assert words.count("\n") == 1 and ("URLs cannot be used here" in words or "neither a path nor" in words)
