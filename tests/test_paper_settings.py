"""Every setting of the papers' public code is compared with the recipe for it, or stands in a list with a reason.

The settings are facts of mxbh/spatiotemporal-ssl 47e6299 and sustainlab-group/geography-aware-ssl 4251731.
"""

import functools
import json
import re
import sys
from pathlib import Path

import paper_departures
import paper_pretraining
import pytest
import torch
from paper_departures import AS_IT_SHOULD_BE, DEPARTURES, ELSEWHERE, OURS_IN_PRETRAINING, PRETRAINING_ELSEWHERE
from paper_training import EXPERIMENTS, OURS, THEIR_NAMES, Twin, load_twin, twin_of

from stssl.base.config import differing_keys
from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.published import PUBLISHED_WEIGHTS
from stssl.models.weights import open_first_weights, read_weights
from stssl.recipes.catalog import resolved_text
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe, load_as, load_training_recipe

FILE = Path(__file__).parent / "data" / "seed_settings.json"
SETTINGS = json.loads(FILE.read_text())
CONFIGS = SETTINGS["spatiotemporal-ssl"]
SCRIPTS = SETTINGS["geography-aware-ssl"]
PAGE = Path(__file__).parents[1] / "docs" / "how" / "paper.md"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    for name in ("BIGEARTHNET", "EUROSAT", *PUBLISHED_WEIGHTS):
        monkeypatch.setenv(name, f"/nowhere/{name}")


@functools.cache
def twin(config: str, *overrides: str) -> Twin:
    return load_twin(twin_of(config), overrides)


def compare(config: str, key: str, theirs: object, t: Twin) -> None:
    """Compare one setting; fails if it differs without a reason, if a reason is outdated, and if it is unknown."""
    assert not (key in OURS and key in ELSEWHERE), f"{key} has two places"
    if key in ELSEWHERE:
        return
    assert key in OURS, f"{config}: {key} is neither compared nor listed with a reason"
    ours, right = OURS[key](t), THEIR_NAMES.get(str(theirs), theirs)
    departure = DEPARTURES.get(key)
    if departure and departure.only in (None, t.dataset):
        assert ours != right, f"{config}: {key} is {ours!r} in both: the departure no longer exists"
    else:
        assert ours == right, f"{config}: {key} is {right!r}, and {t.path.name} says {ours!r}"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.removeprefix("config/"))
def test_every_setting_of_the_paper_is_dealt_with(config):
    for key, setting in CONFIGS[config]["settings"].items():
        compare(config, key, setting["value"], twin(config))


def test_lists_name_only_settings_that_exist():
    known = {key for config in CONFIGS.values() for key in config["settings"]}
    assert set(OURS) | set(ELSEWHERE) == known and set(DEPARTURES) <= set(OURS)
    assert len(CONFIGS) == 39 and sum(len(config["settings"]) for config in CONFIGS.values()) > 2800
    assert all(departure.reason.endswith(".") for departure in DEPARTURES.values())


def test_reasons_that_point_to_vectors_point_to_some():
    vectors = Path(__file__).parent / "reference" / "vectors"
    reasons = (ELSEWHERE | PRETRAINING_ELSEWHERE).values()
    names = [name for reason in reasons for name in re.findall(r"the vectors ([\w*]+)", reason)]
    assert len(names) > 8 and all(any(vectors.glob(f"{name}.npz")) for name in names)


def cases():
    """One change for each part of a recipe, and a setting that must notice it."""
    big, teacher = "config/bigearthnet/fixmatch0.01.yaml", "config/bigearthnet/stssl_fixmatch0.01.yaml"
    small = "config/eurosat/fixmatch40.yaml"
    return [
        (big, "lr", "optimizer.lr=2.0e-4"),
        (big, "lr", "optimizer.backbone_factor=null"),
        (big, "layer_decay", "optimizer.layer_decay=0.9"),
        (big, "views", "augment.randaugment.style=kornia"),
        (big, "views", "data.resize=centers"),
        (big, "views", "augment.randaugment.m=6"),
        (small, "views", "augment.cutout=0.0"),
        (big, "class_statistics", "data.statistics=store"),
        (big, "schedule", "schedule.decay=cosine"),
        (big, "schedule", "schedule.hold=2000"),
        (big, "pseudo_labels_from", "model.labeler_mode=evaluation"),
        (big, "mixed_precision", "compute.precision=bf16"),
        (big, "pretrained_file", "model.weights=imagenet"),
        (big, "drop_path", "model.backbone_args.drop_path_rate=0.1"),
        (big, "excluded", "data.exclude=[seasonal_snow]"),
        (big, "selection", "algorithm.present_above=0.8"),
        (teacher, "weight_decay_exempt", "optimizer.decayed=kernels"),
        (teacher, "network", "model.injection.block=1"),
        (teacher, "distillation", "loss.distance=cosine"),
        ("config/bigearthnet/udal0.01.yaml", "p_cutoff", "algorithm.absent_below=0.05"),
        ("config/bigearthnet/sup0.01.yaml", "evaluated_weights", "ema.decay=0.999"),
        (small, "labels", "labels.seed_rule=stssl"),
        (small, "split", "data.split=official"),
    ]


@pytest.mark.parametrize(("config", "key", "change"), cases(), ids=lambda value: value.rpartition("/")[2])
def test_control_a_changed_recipe_fails(config, key, change):
    extra = ("algorithm.present_above=0.7",) if change.startswith("algorithm.absent") else ()
    changed = twin(config, change, *extra)
    with pytest.raises(AssertionError, match=key):
        compare(config, key, CONFIGS[config]["settings"][key]["value"], changed)


def test_control_unknown_settings_and_outdated_departures_fail():
    config = "config/eurosat/fixmatch40.yaml"
    with pytest.raises(AssertionError, match="neither compared nor listed"):
        compare(config, "new_setting", 1, twin(config))
    with pytest.raises(AssertionError, match="no longer exists"):
        compare(config, "eval_batch_size", 256, twin(config))
    with pytest.raises(AssertionError, match="schedule"):  # prose is compared word by word
        compare(config, "schedule", "lr, constant", twin(config))


# ---------------------------------------------------------------- geography-aware self-supervised learning


@functools.cache
def pretraining(name: str, *overrides: str) -> PretrainRecipe:
    return load_as(PretrainRecipe, EXPERIMENTS / "pretrain" / f"{name}.yaml", overrides)


def entries(script: str):
    """Every entry, and every argument with the value that counts."""
    for name, entry in SCRIPTS[script].items():
        if name == "arguments":
            yield from ((f"arguments.{key}", argument["effective"]) for key, argument in entry.items())
        else:
            yield name, entry["value"]


def compare_entry(script: str, key: str, theirs: object, recipe: PretrainRecipe) -> None:
    table = paper_pretraining.PROBE if script == "main_lincls.py" else paper_pretraining.OURS
    if key == "views":
        missing = [part for part in paper_pretraining.parts_of_views(recipe) if part not in str(theirs)]
        assert not missing, f"{script}: {key} has no {missing}"
    if key in table:
        ours = table[key](recipe)
        assert ours == theirs, f"{script}: {key} is {theirs!r}, and the recipe says {ours!r}"
        return
    if key == "arguments.seed":
        assert theirs is None and recipe.seed is not None
    if key == "clusters":
        assert f"k = {recipe.pretext.geo.k})" in str(theirs)
    if key == "geo_loss":
        geo = recipe.pretext.geo
        said = f"cross-entropy over {geo.k} clusters, weight {geo.weight:g}" if geo.name == "clusters" else "None"
        assert said in str(theirs)
    listed = key in PRETRAINING_ELSEWHERE or key.removeprefix("arguments.") in paper_departures.PRETRAINING
    assert listed, f"{script}: {key} is neither compared nor listed with a reason"


@pytest.mark.parametrize("script", paper_pretraining.TWINS)
def test_every_entry_of_the_geography_aware_scripts_is_dealt_with(script):
    for key, theirs in entries(script):
        compare_entry(script, key, theirs, pretraining(paper_pretraining.TWINS[script]))


def test_image_pairs_are_cropped_as_the_note_says():
    assert set(SCRIPTS) == {*paper_pretraining.TWINS, paper_pretraining.IMAGE_PAIRS}
    note = SCRIPTS[paper_pretraining.IMAGE_PAIRS]["note"]
    for name in ("moco", "moco_geo"):
        recipe = pretraining(name)
        assert not recipe.pretext.temporal and all(part in note for part in paper_pretraining.parts_of_views(recipe))
    assert (pretraining("moco").pretext.geo.name, pretraining("moco_geo").pretext.geo.name) == ("none", "clusters")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("views", "views.smallest_crop=0.2"),
        ("views", "views.hue=0.2"),
        ("optimizer", "optimizer.decayed=kernels"),
        ("schedule", "schedule.hold=1"),
        ("arguments.moco_t", "pretext.temperature=0.07"),
        ("clusters", "pretext.geo.k=10"),
        ("arguments.new", "seed=0"),
    ],
)
def test_control_a_changed_pretraining_recipe_fails(key, change):
    found = dict(entries("main_moco_geo+tp.py")) | {"arguments.new": 1}
    with pytest.raises(AssertionError):
        compare_entry("main_moco_geo+tp.py", key, found[key], pretraining("moco_geo_tp", change))


def test_control_the_probe_on_standardized_features_fails():
    with pytest.raises(AssertionError):
        compare_entry("main_lincls.py", "arguments.lr", 1.0, pretraining("moco_geo_tp", "probe.features=standardized"))


# ---------------------------------------------------------------- one line, two bases


def rebased(path: Path, folder: Path) -> Path:
    """A copy of a recipe with the base that its comment names."""
    text = path.read_text()
    line = re.search(r"^base: (\S+)  # (?:as it should be|our settings): (\S+)$", text, re.M)
    assert line, path
    target = folder / path.parent.name / path.name
    target.parent.mkdir(exist_ok=True)
    target.write_text(text.replace(line[0], f"base: {(path.parent / line[2]).resolve()}"))
    return target


def changed_keys(kind, names, folder):
    pairs = [(load_as(kind, path), load_as(kind, rebased(path, folder))) for path in names]
    return {key for one, other in pairs for key in differing_keys(one.tree(), other.tree())}


def test_one_line_chooses_the_base_and_each_key_that_it_changes_has_a_reason(tmp_path):
    papers = [path for d in ("bigearthnet", "eurosat") for path in (EXPERIMENTS / d).glob("*.yaml")]
    own = [path for path in papers if not path.stem.endswith("cpu") and not path.stem.startswith("pretrained_")]
    pretrain = sorted((EXPERIMENTS / "pretrain").glob("moco*.yaml"))
    assert changed_keys(PretrainRecipe, pretrain, tmp_path) == {*OURS_IN_PRETRAINING}
    some = [path for path in own if path.stem.startswith(("fixmatch_", "supervised_1", "cdmad"))]
    assert changed_keys(Recipe, some, tmp_path) == {*AS_IT_SHOULD_BE}
    assert all("  # as it should be: " in path.read_text() for path in own)
    without = [p for p in own if p not in {twin_of(config) for config in CONFIGS}]
    assert without and all("no file of the authors" in path.read_text().splitlines()[0] for path in without)
    assert not any("no file of the authors" in path.read_text() for path in own if path not in without)


def test_the_probes_section_is_no_part_of_a_runs_identity():
    assert (
        pretraining("moco").hash() == pretraining("moco", "probe.lr=2").hash() != pretraining("moco", "seed=2").hash()
    )


def test_an_argument_chooses_the_base_too(tmp_path):
    path = EXPERIMENTS / "eurosat" / "fixmatch_40.yaml"
    changed = load_training_recipe(path, ["base=../base/eurosat.yaml", "seed=1"])
    assert (
        changed == load_training_recipe(rebased(path, tmp_path), ["seed=1"]) != load_training_recipe(path, ["seed=1"])
    )
    assert "precision: bf16" in resolved_text(path, ["base=../base/eurosat.yaml"])
    with pytest.raises(ConfigError, match=r"fixmatch_40\.yaml: base: cannot read .*nowhere\.yaml"):
        load_training_recipe(path, ["base=nowhere.yaml"])


TINY = {"embed_dim": 12, "num_heads": 2, "depth": 2}


@pytest.mark.parametrize(("config", "made_for"), [("bigearthnet/fixmatch_1pct", 224), ("eurosat/fixmatch_40", 32)])
def test_a_file_with_the_keys_of_usb_fits_the_recipes_network(config, made_for, tmp_path):
    """timm's names under `model`, behind `module.`, with another head; positions of another grid are resampled."""
    model = load_training_recipe(EXPERIMENTS / f"{config}.yaml").model
    options = {**model.backbone_args, **TINY}
    torch.manual_seed(1)
    whole = make_backbone(model.backbone, options, size=made_for, in_channels=3, classes=1000, hub=False).state_dict()
    torch.save({"model": {f"module.{key}": value for key, value in whole.items()}}, tmp_path / "vit.pth")
    torch.manual_seed(2)
    weights = f"file:{tmp_path / 'vit.pth'}"
    first = open_first_weights(weights, model.backbone, options, size=model.image_size)
    net = first.build(model.backbone, options, size=model.image_size, in_channels=3, classes=9)
    own = net.state_dict()
    assert own["head.weight"].shape == (9, 12) and set(own) == set(whole)
    different = {key for key, value in own.items() if value.shape != whole[key].shape or not value.equal(whole[key])}
    assert different == {"head.weight", "head.bias", *(["pos_embed"] if made_for != model.image_size else [])}


def test_unset_and_missing_weights_say_where_the_authors_publish_them(monkeypatch, tmp_path):
    path = EXPERIMENTS / "eurosat" / "fixmatch_40.yaml"
    monkeypatch.delenv("USB_VIT_S2")
    with pytest.raises(ConfigError, match=r"USB_VIT_S2, which is not set.*releases/download/.*patch2_32_mlp_im_1k"):
        load_training_recipe(path)
    monkeypatch.setenv("USB_VIT_S2", str(tmp_path / "vit.pth"))
    with pytest.raises(ConfigError, match=r"no file .*vit\.pth.*releases/download/.*patch2_32_mlp_im_1k_32\.pth"):
        read_weights(load_training_recipe(path).model.weights.removeprefix("file:"))
    with pytest.raises(ConfigError) as other:  # the control
        read_weights(str(tmp_path / "other.pth"))
    assert "releases" not in str(other.value)


# ---------------------------------------------------------------- the page


def tables() -> str:
    """The tables of departures, as the page shows them."""
    lines = ["| setting | authors | as published | why |", "| --- | --- | --- | --- |"]
    for key, d in DEPARTURES.items():
        where = {"bigearthnet": " (BigEarthNet)", "eurosat": " (EuroSAT)"}.get(d.only or "", "")
        lines.append(f"| `{key}`{where} | {d.theirs} | {d.ours} | {d.reason} |")
    lines += ["", '| key that "as it should be" changes | why |', "| --- | --- |"]
    lines += [f"| `{key}` | {why} |" for key, why in AS_IT_SHOULD_BE.items()]
    lines += ["", "| pretraining | authors | as published | why |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key}` | {t} | {o} | {why} |" for key, (t, o, why) in paper_departures.PRETRAINING.items()]
    lines += ["", "| key that `base/pretrain.yaml` changes | why |", "| --- | --- |"]
    lines += [f"| `{key}` | {why} |" for key, why in OURS_IN_PRETRAINING.items()]
    lines += ["", "| setting without a key | where it is dealt with |", "| --- | --- |"]
    lines += [f"| `{key}` | {why} |" for key, why in (ELSEWHERE | PRETRAINING_ELSEWHERE).items()]
    return "\n".join(lines)


def test_the_page_shows_these_departures():
    text = PAGE.read_text()
    assert tables() in text, f"{PAGE} is outdated: `python tests/test_paper_settings.py` prints its tables"


if __name__ == "__main__":
    sys.stdout.write(tables() + "\n")
