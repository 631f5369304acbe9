import os

import numpy as np
import pytest
import torch

from stssl.analysis.costs import Machines
from stssl.analysis.planning import plan_run
from stssl.base import distributed
from stssl.base.config import validate
from stssl.base.distributed import MOST_READING, reading_threads
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_pixels


def recipe_of(tree, **data):
    return validate(Recipe, tree | {"data": tree["data"] | data}, "test")


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 1, 8), (8, 4, 2), (2, 8, 1), (256, 1, MOST_READING)])
def test_ranks_divide_the_cores_of_their_machine(monkeypatch, cores, ranks, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert reading_threads(ranks) == threads
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert reading_threads() == threads
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert reading_threads() == min(cores, MOST_READING)


def test_runs_read_with_the_threads_of_their_recipe_and_get_the_same(recipe_tree, monkeypatch):
    rows, found = np.arange(199, -1, -1), []
    for threads in (1, 5):
        source = open_pixels(recipe_of(recipe_tree, threads=threads).data, torch.device("cpu")).reader
        assert source.reader._threads == threads
        found.append(source.read(rows))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    monkeypatch.setattr("stssl.recipes.run_data.reading_threads", lambda: 3)
    assert open_pixels(recipe_of(recipe_tree).data).reader.reader._threads == 3
    assert recipe_of(recipe_tree).hash() == recipe_of(recipe_tree, threads=7).hash()


def test_a_plan_reads_with_the_cores_of_one_rank(recipe_tree, monkeypatch):
    asked = []

    def share(ranks=None):
        asked.append(ranks)
        return distributed.ranks_here()

    monkeypatch.setattr("stssl.analysis.planning.reading_threads", share)
    plan_run(recipe_of(recipe_tree), Machines(2, 2, 10.0), steps=1)
    plan_run(recipe_of(recipe_tree, threads=2), Machines(1, 1, 10.0), steps=1)
    assert asked == [2]
