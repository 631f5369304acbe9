"""Start from given weights: frozen backbones never change, layers have their own rates, and runs resume exactly."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from test_loop import flat, kill_at, last, make, same

from stssl.archives.nomenclature import EUROSAT
from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.ema import average_batchnorm, batchnorms
from stssl.recipes.build import build_step
from stssl.recipes.fine_tuning import about_fine_tuning, backbone_factor, require_same_classes
from stssl.recipes.optimizers import AdamWConfig, ScheduleConfig
from stssl.recipes.run_data import open_data
from stssl.training import loop
from stssl.training.launch import run
from stssl.training.optim import make_optimizer, set_learning_rates
from stssl.training.rates import layer_rates
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state

OPTIONS = {"channels": [4, 8, 8, 8]}


@pytest.fixture
def weights(tmp_path):
    """Weights of the recipes' backbone, with statistics that training would change."""
    torch.manual_seed(5)
    backbone = make_backbone("slim_resnet", OPTIONS, size=16, in_channels=3, classes=10, hub=False)
    for layer in batchnorms(backbone):
        layer.running_mean.uniform_(-0.1, 0.1)
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    return f"file:{tmp_path / 'weights.safetensors'}"


def backbone_of(state, network, kind="networks"):
    """Tensors of a backbone without its head, in a checkpoint."""
    start = f"{kind}.{network}.{'network.' if kind == 'averages' else ''}backbone."
    return {
        name.removeprefix(start): value
        for name, value in flat(state["step"])
        if name.startswith(start) and ".fc." not in name
    }


def first(recipe):
    """The same tensors before the first step."""
    step = build_step(recipe, open_data(recipe))
    return {"step": step.state_dict()}


def trained(tree, **changes):
    recipe = make(tree, **changes)
    run(recipe)
    return recipe, last(recipe)


def changed(one, other):
    assert one.keys() == other.keys() and one
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("given", [True, False])
def test_a_frozen_backbone_never_changes_and_its_average_is_equal(recipe_tree, weights, given):
    start = {"model__weights": weights} if given else {}
    recipe, state = trained(recipe_tree, name="frozen", model__freeze=True, **start)
    before = first(recipe)
    for network in ("student", "teacher"):
        for kind in ("networks", "averages"):
            assert changed(backbone_of(state, network, kind), backbone_of(before, network)) == set(), (network, kind)
    assert not same(state, before)  # the heads have learned


def test_control_a_free_backbone_changes_with_its_statistics(recipe_tree, weights):
    recipe, state = trained(recipe_tree, name="free", model__weights=weights)
    moved = changed(backbone_of(state, "student"), backbone_of(first(recipe), "student"))
    assert "layer1.0.conv1.weight" in moved and "layer1.0.bn1.running_mean" in moved


def test_ranks_and_new_estimates_leave_frozen_statistics_alone(recipe_tree, weights):
    step = open_train_state(
        make(recipe_tree, model__weights=weights, model__freeze=True), torch.device("cpu")
    ).task.step
    step.train()
    assert batchnorms(step) == [] and not any(module.training for module in step.backbones())
    average_batchnorm(step)
    step.train(False)
    free = open_train_state(make(recipe_tree, model__weights=weights), torch.device("cpu")).task.step
    assert len(batchnorms(free)) == 4 * len(batchnorms(free.networks["student"]))  # both networks and their averages


@pytest.mark.parametrize(
    "changes",
    [
        {"model__freeze": True},
        {"optimizer__layer_decay": 0.7, "optimizer__backbone_factor": 0.2, "schedule__head_steps": 5},
    ],
    ids=["frozen", "rates"],
)
def test_a_killed_run_ends_with_the_same_weights(recipe_tree, weights, changes):
    _, unbroken = trained(recipe_tree, name="unbroken", model__weights=weights, **changes)
    recipe = make(recipe_tree, name="killed", model__weights=weights, **changes)
    kill_at(recipe, 7, written=True)
    run(recipe)
    assert same(last(recipe)["step"], unbroken["step"])
    assert same(last(recipe)["optimizer"]["state"], unbroken["optimizer"]["state"])
    record = json.loads((RunFolder.of(recipe).path / "record.json").read_text())
    assert record["fine_tuning"]["head"] == "zero" and record["fine_tuning"]["freeze"] == bool(
        changes.get("model__freeze")
    )


def steps_of(recipe, count):
    """Take some steps, and return the state after each."""
    state = open_train_state(recipe, torch.device("cpu"))
    found = [{"step": {k: v.clone() for k, v in state.task.step.state_dict().items()}}]
    for raw in state.task.loader.batches(0, count):
        loop.train_step(state, raw)
        state.progress.step += 1
        found.append({"step": {k: v.clone() for k, v in state.task.step.state_dict().items()}})
    return found


def test_weights_wait_while_only_the_head_learns(recipe_tree, weights):
    tree = {"model__weights": weights, "schedule__head_steps": 2, "schedule__warmup": 0}
    states = steps_of(make(recipe_tree, **tree), 4)
    learned = [changed(backbone_of(b, "student"), backbone_of(a, "student")) for a, b in itertools.pairwise(states)]
    weighty = [{name for name in names if name.endswith("weight")} for names in learned]
    assert weighty[0] == weighty[1] == set() and weighty[2] and weighty[3]
    heads = [state["step"]["networks.student.backbone.fc.weight"] for state in states]
    assert not heads[0].any() and all(not torch.equal(a, b) for a, b in itertools.pairwise(heads))


def groups_of(recipe):
    state = open_train_state(recipe, torch.device("cpu"))
    set_learning_rates(state.optimizer, recipe.schedule.warmup, recipe.schedule, 1.0)
    networks, rates = state.task.step.networks, {}
    for group in state.optimizer.param_groups:
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    return {name: rates[id(value)] for name, value in networks["teacher"].named_parameters() if id(value) in rates}


def test_new_layers_learn_at_the_full_rate_and_the_backbone_at_a_tenth(recipe_tree, weights):
    rates = groups_of(make(recipe_tree, model__weights=weights))
    new = {name for name, rate in rates.items() if rate == 1.0}
    assert {"backbone.fc.weight", "encoder.head.0.weight"} <= new
    assert {rate for name, rate in rates.items() if name not in new} == {0.1}
    assert not any(name.startswith("backbone.layer") for name in new)
    assert set(groups_of(make(recipe_tree)).values()) == {1.0}  # control: random weights


def test_each_layer_learns_more_slowly_than_the_next(recipe_tree, weights):
    rates = groups_of(make(recipe_tree, model__weights=weights, optimizer__layer_decay=0.5))
    at = [rates[f"backbone.layer{number}.0.conv1.weight"] for number in (1, 2, 3, 4)]
    assert at == [0.125, 0.25, 0.5, 1.0] and rates["backbone.conv1.weight"] == 0.0625
    assert rates["backbone.fc.weight"] == 1.0


@pytest.mark.parametrize(
    ("name", "options", "first_layer", "last_layer"),
    [
        (
            "vit_tiny_patch16_224",
            {"embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 8},
            "patch_embed.",
            "blocks.2.",
        ),
        ("tf_efficientnet_lite0", {}, "conv_stem.", "conv_head."),
    ],
)
def test_layers_of_other_backbones_are_known(name, options, first_layer, last_layer):
    from stssl.models.backbones import layer_numbers

    size = 16 if "vit" in name else 32
    backbone = make_backbone(name, options, size=size, in_channels=3, classes=4, hub=False)
    numbers = layer_numbers(backbone)
    lowest = {number for key, number in numbers.items() if key.startswith(first_layer)}
    highest = {number for key, number in numbers.items() if key.startswith(last_layer)}
    assert lowest == {0} and highest == {max(numbers.values())} and len(set(numbers.values())) > 3
    assert not any(key.startswith(("head.", "classifier.")) for key in numbers)


def test_random_weights_train_as_before(recipe_tree):
    recipe = make(recipe_tree)
    assert backbone_factor(recipe) == 1.0 and about_fine_tuning(recipe) == {}
    step = build_step(recipe, open_data(recipe))
    assert step.networks["student"].backbone.fc.weight.any()
    assert layer_rates(step.networks, recipe) == {}
    optimizer = make_optimizer(step.networks, AdamWConfig(lr=0.5))
    set_learning_rates(optimizer, 3, ScheduleConfig(steps=10), 0.5)
    assert len(optimizer.param_groups) == 2 and len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__freeze": True, "schedule__head_steps": 2}, r"never learns, so leave out schedule.head_steps"),
        ({"model__freeze": True, "optimizer__layer_decay": 0.5}, r"leave out optimizer.layer_decay"),
        ({"schedule__head_steps": 12}, r"head_steps must be smaller than schedule.steps"),
        ({"model__head": "weights"}, r"model.head: weights needs the head of a student"),
        ({"optimizer__backbone_factor": 0}, r"optimizer.*backbone_factor"),
        ({"optimizer__layer_decay": 1.5}, r"optimizer.*layer_decay"),
    ],
)
def test_what_cannot_be_is_named(recipe_tree, changes, words):
    with pytest.raises(ConfigError, match=words):
        make(recipe_tree, **changes)


def test_a_head_is_taken_on_request_from_a_run_of_the_same_classes(recipe_tree):
    run(make(recipe_tree, name="first"))
    given = {"name": "second", "model__weights": "run:first"}
    taken = build_step(recipe := make(recipe_tree, model__head="weights", **given), open_data(recipe))
    head = last(make(recipe_tree, name="first"), "best")["step"]["averages.student.network.backbone.fc.weight"]
    for network in taken.networks.values():
        assert torch.equal(network.backbone.fc.weight[:, : head.shape[1]], head)
    fresh = build_step(recipe := make(recipe_tree, **given), open_data(recipe))
    assert not fresh.networks["student"].backbone.fc.weight.any()  # control: a new head starts from zero


def test_a_head_of_other_classes_is_refused(recipe_tree, tmp_path, weights):
    others = make_backbone("slim_resnet", OPTIONS, size=16, in_channels=3, classes=7, hub=False).state_dict()
    save_file(others, tmp_path / "seven.safetensors")
    recipe = make(recipe_tree, model__weights=f"file:{tmp_path / 'seven.safetensors'}", model__head="weights")
    with pytest.raises(ConfigError, match=r"other shapes: fc.bias \(7,\)"):
        build_step(recipe, open_data(recipe))
    run(make(recipe_tree, name="first"))
    recipe = make(recipe_tree, model__weights="run:first", model__head="weights")
    require_same_classes(recipe, EUROSAT)
    with pytest.raises(ConfigError, match=r"class 1 is AnnualCrop, and class 1 of the store is Forest"):
        require_same_classes(recipe, ("Forest", *EUROSAT[1:]))
    require_same_classes(make(recipe_tree, model__weights="run:first"), ("Forest", *EUROSAT[1:]))  # a new head
