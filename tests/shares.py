"""Choose which tests run in the same process: the tests of a file, and all files with tests that start Ray."""

import functools
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent
ON_RAY = "pytest.mark." + "ray"


@functools.cache
def share(file: str) -> str:
    """Return the name of the group to which the tests of a file belong. A group runs in one process."""
    path = TESTS / Path(file).relative_to(TESTS.name) if file.startswith(f"{TESTS.name}/") else Path(file)
    return "ray" if ON_RAY in path.read_text() else file


class Shares(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Schedule groups of tests on the processes of pytest-xdist, in the order of the tests.

    xdist's own option `--dist loadgroup` writes groups into the ids of tests, which pytest 9.2 no longer allows. With
    it, each test would be a group, and each process would make the fixtures of a file again.
    """

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid.split("::", 1)[0])
