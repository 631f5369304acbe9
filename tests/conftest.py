import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny


def pytest_collection_modifyitems(items):
    """Clusters of processes on a busy machine may miss each other once: such a test has a second try, and says so."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=10))


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Path of a tiny EuroSAT store: 200 patches, 10 classes, with places."""
    return tiny.tiny_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def big_store(tmp_path_factory):
    """Path of a store of 120 synthetic patches in BigEarthNet's layout: 12 bands, 43 and 19 classes, places, dates."""
    return tiny.tiny_bigearthnet(tmp_path_factory.mktemp("big"))


@pytest.fixture
def recipe_tree(store, tmp_path):
    """A recipe that trains in a second without Ray; tests change what they are about."""
    return tiny.tiny_recipe(store, tmp_path / "runs")
