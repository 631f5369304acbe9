"""Choose which tests run in one process: those of a file together, and all files with tests on real Ray together."""

import functools
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent
ON_RAY = "pytest.mark." + "ray"


@functools.cache
def share(file: str) -> str:
    """Return the name of the group of tests that a file belongs to."""
    path = TESTS / Path(file).relative_to(TESTS.name) if file.startswith(f"{TESTS.name}/") else Path(file)
    return "ray" if ON_RAY in path.read_text() else file


class Shares(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Deal groups of tests out to processes, in the order of the tests.

    xdist's own groups (`--dist loadgroup`) stand in ids of tests that pytest 9.2 no longer lets it change: each test is
    a group of its own there, and what a file makes once is made in each process.
    """

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid.split("::", 1)[0])
