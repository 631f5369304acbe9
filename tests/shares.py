"""Which tests run in one process, one after another: those of a file, and all files with tests on real Ray."""

import functools
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent
ON_RAY = "pytest.mark." + "ray"


@functools.cache
def share(file: str) -> str:
    """The name of what a file is dealt out with."""
    path = TESTS / Path(file).relative_to(TESTS.name) if file.startswith(f"{TESTS.name}/") else Path(file)
    return "ray" if ON_RAY in path.read_text() else file


class Shares(LoadFileScheduling):
    """Deals shares out in the order of the tests.

    xdist's own groups (`--dist loadgroup`) stand in ids of tests that pytest 9.2 no longer lets it change: each test is
    a group of its own there, and what a file makes once is made in each process.
    """

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid.split("::", 1)[0])
