"""Share fixtures among all tests, deal tests out to processes, and keep Ray out of tests without its marker."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compilers that torch.compile keeps ready would each import torch for the few graphs of these tests.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
from marks import NO_RAY, SLOW


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check names of slow tests, and put tests on real Ray first: the share (shares.py) that takes longest."""
    strangers = [item.nodeid for item in items if item.get_closest_marker("slow") and not SLOW.search(item.nodeid)]
    if strangers:
        kinds = SLOW.pattern.replace("|", ", ")
        raise pytest.UsageError(f"only tests named after one of {kinds} may be slow, not {', '.join(strangers)}")
    for item in items:
        if item.get_closest_marker("ray") is not None:
            # On a busy machine the processes of a cluster may miss each other's deadlines once.
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=10))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Deal tests out to processes by file, those on real Ray to one."""
    from shares import Shares

    return Shares(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Let only tests with the marker `ray` start Ray: for all others its folder cannot be made."""
    if item.get_closest_marker("ray"):
        return (yield)
    with mock.patch.dict(os.environ, {"RAY_TMPDIR": NO_RAY}):
        return (yield)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny EuroSAT store: 200 patches, 10 classes, with places."""
    return tiny.tiny_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def big_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store of 120 synthetic patches in BigEarthNet's layout: 12 bands, 43 and 19 classes, places, dates."""
    return tiny.tiny_bigearthnet(tmp_path_factory.mktemp("big"))


@pytest.fixture
def recipe_tree(store: Path, tmp_path: Path) -> dict[str, Any]:
    """Write a recipe that trains in a second without Ray; tests change the keys that they are about."""
    return tiny.tiny_recipe(store, tmp_path / "runs")
