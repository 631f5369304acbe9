"""Runs whose pseudo-labels neighbors vote on."""

import pytest
import torch
from test_loop import kill_at, last, make, same

from stssl.base.errors import ConfigError
from stssl.recipes.build import check_recipe
from stssl.recipes.run_data import open_data
from stssl.training.checkpoints import read_state, write_state
from stssl.training.launch import run
from stssl.training.run_folder import RunFolder
from stssl.training.state import open_train_state
from stssl.training.trained_run import evaluate_run

PREDICTED = {"name": "softmatch", "target": "predicted"}
CPU = torch.device("cpu")


@pytest.fixture
def voting(recipe_tree):
    """The tiny recipe, soft labels of all patches: its losses follow every vote."""
    votes = {"name": "votes", "count": 6, "reach_km": 100.0}
    return recipe_tree | {"votes": votes, "algorithm": {"name": "fixmatch", "threshold": 0.0, "soft": True}}


def test_votes_change_a_run_and_only_labels_of_labeled_patches_are_known(voting):
    recipe, without = make(voting, name="voting"), make(voting | {"votes": {"name": "none"}}, name="without")
    for each in (recipe, without):
        run(each)
    rows, others = (list(RunFolder.of(each).rows()) for each in (recipe, without))
    assert rows[0]["loss"] == others[0]["loss"] and rows[-2]["loss"] != others[-2]["loss"]
    data = open_data(recipe)
    found = open_train_state(make(voting, name="fresh"), CPU).task.step.votes
    known = torch.isin(torch.from_numpy(data.split.train), torch.from_numpy(data.labeled))
    assert torch.equal(found.fixed.any(1), known) and found.last_probabilities[~known].sum() == 0
    truth = data.targets[torch.from_numpy(data.split.train)][known]
    assert torch.equal(found.last_probabilities[known].argmax(-1), truth)


@pytest.mark.parametrize("forgets", [False, True], ids=["", "control: without its memory"])
def test_a_killed_run_ends_with_the_same_weights(voting, forgets):
    unbroken, recipe = make(voting, name="unbroken"), make(voting, name="killed")
    run(unbroken)
    kill_at(recipe, 11, written=True)
    path = RunFolder.of(recipe).checkpoints.path("last")
    state = read_state(path)
    assert state["progress"]["step"] == 8 and state["step"]["votes.last_probabilities"].sum() > 30
    if forgets:
        fresh = open_train_state(make(voting, name="fresh"), CPU).task.step.votes
        assert not torch.equal(state["step"]["votes.last_probabilities"], fresh.last_probabilities)
        state["step"]["votes.last_probabilities"].copy_(fresh.last_probabilities)
        path.unlink()
        write_state(state, path)
    run(recipe)
    assert same(last(recipe)["step"], last(unbroken)["step"]) != forgets


def test_a_store_without_places_is_told(voting, monkeypatch):
    recipe = make(voting | {"model": voting["model"] | {"metadata": "none"}})
    monkeypatch.setattr("stssl.recipes.run_data.metadata_table", lambda lat, *_: torch.full((len(lat), 4), torch.nan))
    with pytest.raises(ConfigError, match=r"votes: at most one training patch of .* has a place"):
        run(recipe)
    assert not RunFolder.of(recipe).path.exists()


@pytest.mark.parametrize(
    "algorithm", [{"name": name} for name in ("supervised", "adamatch", "defixmatch", "udal")] + [PREDICTED]
)
def test_an_algorithm_that_has_no_use_for_votes_is_refused(voting, algorithm):
    recipe = make(voting | {"algorithm": algorithm})
    with pytest.raises(ConfigError, match=rf"votes.name: {algorithm['name']} as it is set has no use for votes"):
        run(recipe)
    assert not RunFolder.of(recipe).path.exists()


def test_control_votes_are_not_refused_where_only_unlabeled_patches_are_looked_at(voting):
    check_recipe(make(voting | {"algorithm": PREDICTED | {"target": "labeled"}}))


def test_a_run_is_evaluated_without_its_votes(voting, monkeypatch):
    recipe = make(voting, name="voting")
    run(recipe)
    before = evaluate_run(RunFolder.of(recipe).path, "validation")
    monkeypatch.setattr("stssl.recipes.build._votes", lambda recipe, *_: 1 / (recipe.votes.name == "none") and None)
    assert evaluate_run(RunFolder.of(recipe).path, "validation") == before
