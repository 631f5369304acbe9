"""Define fixtures for all tests, distribute tests over processes, and stop tests that start Ray without a marker."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers a low priority: beside other programs on a busy machine, they would hardly advance.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Start no pool of compiler processes: each would import torch, which takes longer than to compile these few graphs.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
from far_storage import elsewhere, server
from marks import NO_RAY, SLOW

__all__ = ["elsewhere", "server"]
"""Fixtures of `far_storage` for all tests."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the names of slow tests, and put tests that start Ray first, because they take longest."""
    strangers = [item.nodeid for item in items if item.get_closest_marker("slow") and not SLOW.search(item.nodeid)]
    if strangers:
        kinds = SLOW.pattern.replace("|", ", ")
        raise pytest.UsageError(f"only tests named after one of {kinds} may be slow, not {', '.join(strangers)}")
    for item in items:
        if item.get_closest_marker("ray") is not None:
            # Run a failed Ray test once more: on a busy machine, processes of a cluster may miss each other's
            # deadlines.
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=10))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give pytest-xdist a scheduler that keeps the tests of a file, and all tests with Ray, in one process."""
    from shares import Shares

    return Shares(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Make the start of Ray fail in tests without the marker `ray`, by a folder for Ray that cannot be created."""
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
    """Return a recipe, as nested mappings, that trains in a second without Ray. Tests change some of its keys."""
    return tiny.tiny_recipe(store, tmp_path / "runs")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    made = subprocess.run(command, check=False, capture_output=True)
    if made.returncode:
        pytest.skip(f"this user may not mount: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
