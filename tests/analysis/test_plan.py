"""Test predictions: measured parts come from the real step, computed parts follow the formulas."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from stssl.analysis.costs import CostEstimate, Machines, Measured, describe_costs, exchange_seconds
from stssl.analysis.planning import _validation, machines_for, plan_run
from stssl.base.config import merge, validate
from stssl.base.errors import ConfigError
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import EvaluationConfig

GB = 10**9


@pytest.fixture
def recipe(recipe_tree):
    return validate(Recipe, recipe_tree, "test")


def test_a_ring_moves_twice_the_gradients():
    assert exchange_seconds(GB, Machines(1, 1, 10)) == 0
    assert exchange_seconds(GB, Machines(2, 1, 8)) == pytest.approx(1.0)
    assert exchange_seconds(GB, Machines(4, 1, 8)) == pytest.approx(1.5)
    assert exchange_seconds(GB, Machines(1, 2, 8)) == pytest.approx(0.1)
    assert exchange_seconds(GB, Machines(4, 2, 8)) == pytest.approx(1.6)


PLAN = CostEstimate(
    machines=Machines(2, 1, 10),
    one=Measured(step=1.0, load=0.2, rows=64, memory=GB),
    share=Measured(step=0.55, load=0.1, rows=32, memory=GB),
    exchange=0.05,
    link=0.3,
    validation=36.0,
    steps=1000,
    validations=10,
    gradients=10**8,
    checkpoint=10**9,
    stored=1000.0,
    rows=64,
    device="CPU",
)


def test_the_longest_part_limits_a_step():
    assert PLAN.step == pytest.approx(0.6) and PLAN.efficiency == pytest.approx(1.0 / 1.2)
    assert PLAN.hours == pytest.approx((1000 * 0.6 + 10 * 36) / 3600)
    assert "limited by computing" in describe_costs(PLAN) and "83% of 2" in describe_costs(PLAN)
    slow = replace(PLAN, link=2.0)
    assert slow.step == 2.0 and "limited by the network to the store" in describe_costs(slow)
    reading = replace(PLAN, share=replace(PLAN.share, load=0.9))
    assert reading.step == 0.9 and "limited by reading" in describe_costs(reading)
    assert "unknown" in describe_costs(replace(PLAN, one=None))


def test_real_steps_are_measured_and_nothing_is_written(recipe, tmp_path):
    found = plan_run(recipe, Machines(1, 2, 10), steps=2)
    assert found.share.rows == 12 and found.one.rows == 24 and found.rows == 24
    assert found.share.step > 0 and found.share.load > 0 and found.validation > 0
    assert found.steps == 12 and found.validations == 3
    assert 0 < found.gradients < found.checkpoint and found.share.memory > 10**7
    assert found.stored > 100
    assert not (tmp_path / "runs").exists()
    words = describe_costs(found)
    assert "2 workers (1 x 2)" in words and "Assumed" in words


@pytest.mark.parametrize(("patches", "seconds"), [(100_000, 15 + 1000 / 4), (200, 15 + 2.0)])
def test_a_validation_is_predicted_from_short_ones(recipe, monkeypatch, patches, seconds):
    """Use a clock that only validations move: 3 s a BatchNorm batch, 10 ms a patch, and once 5 s for the first."""
    clock, calls = [0.0], []
    options = EvaluationConfig(batch=256, batchnorm_batches=20)
    task = SimpleNamespace(data=SimpleNamespace(split=SimpleNamespace(validation=range(patches))))

    def validate(progress):
        asked = task.recipe.evaluation
        clock[0] += 3 * asked.batchnorm_batches + 0.01 * min(patches, asked.limit) + (0 if calls else 5)
        calls.append(asked.limit)

    task.validate = validate
    monkeypatch.setattr("stssl.analysis.planning.time.perf_counter", lambda: clock[0])
    train_state = SimpleNamespace(task=task, autocast=nullcontext, next_step=None)
    given = recipe.model_copy(update={"evaluation": options})
    # Each of the four workers passes 5 of the 20 BatchNorm batches.
    assert _validation(train_state, given, 4) == pytest.approx((seconds, 15))
    assert max(calls) < 100_000 / 50 and task.recipe is given


def test_steps_that_look_at_fewer_views_are_counted_as_they_are():
    begun = replace(PLAN, start=400, early=Measured(step=0.15, load=0.1, rows=8, memory=GB))
    assert begun.parts_of(begun.early)["the network to the store"] == pytest.approx(0.3 * 8 / 32)
    assert begun.hours == pytest.approx((400 * 0.2 + 600 * 0.6 + 10 * 36) / 3600) and begun.step == PLAN.step
    assert "of the first 400" in describe_costs(begun) and "0.200 s, at fewer views" in describe_costs(begun)
    assert "fewer views" not in describe_costs(PLAN) and "BatchNorm" not in describe_costs(PLAN)
    assert "new BatchNorm statistics" in describe_costs(replace(PLAN, batchnorm=3.0))


@pytest.mark.parametrize(
    ("changes", "start", "early", "late"),
    [
        ({"schedule": {"supervised_start": 8}}, 8, 4, 12),
        ({"schedule": {"supervised_start": 0}}, 0, None, 12),
        ({"schedule": {"supervised_start": 40}}, 0, None, 4),  # all steps are alike
        ({"algorithm": {"name": "softmatch"}, "schedule": {"supervised_start": 8}}, 8, 12, 12),
        ({"algorithm": {"name": "freematch", "supervised_steps": 11}}, 11, 12, 12),
    ],
)
def test_a_supervised_start_is_measured_on_its_own(recipe_tree, changes, start, early, late):
    found = plan_run(validate(Recipe, merge(recipe_tree, changes), "test"), Machines(1, 2, 10), steps=2)
    assert (found.start, found.share.rows) == (start, late)
    assert found.early is None if early is None else (found.early.rows == early and found.early.step > 0)


def test_a_larger_network_costs_more(recipe, recipe_tree):
    larger = merge(recipe_tree, {"model": {"backbone_args": {"channels": [8, 16, 16, 16]}}})
    one, other = (plan_run(r, Machines(1, 1, 10), steps=1) for r in (recipe, validate(Recipe, larger, "test")))
    assert other.gradients > 2 * one.gradients and other.checkpoint > 2 * one.checkpoint
    assert one.one is one.share


def test_workers_come_from_the_recipe(recipe, recipe_tree):
    elastic = validate(Recipe, merge(recipe_tree, {"launch": {"workers": [2, 6]}}), "test")
    assert machines_for(elastic, 2, None, 10).per_node == 3
    assert machines_for(recipe, 1, None, 10).workers == 1
    assert machines_for(recipe, 2, 4, 10).workers == 8


def test_more_workers_than_rows_is_an_error(recipe):
    with pytest.raises(ConfigError, match=r"batch.labeled 8 is smaller than 9 workers"):
        plan_run(recipe, Machines(3, 3, 10))
