"""What the markers of tests promise (conftest.py): no Ray without `ray`, and few kinds of tests that are `slow`."""

import os
from pathlib import Path

import pytest
from marks import NO_RAY

from stssl.base.ray_session import connected_ray

pytest_plugins = ["pytester"]


def test_ray_does_not_start_without_its_marker():
    assert os.environ["RAY_TMPDIR"] == NO_RAY  # also in processes that the test starts
    with pytest.raises(OSError, match="needs-the-marker-ray"), connected_ray():
        pass


@pytest.mark.parametrize(
    ("name", "fails"), [("test_a_killed_run", False), ("test_README", False), ("test_training_learns", True)]
)
def test_slow_tests_are_of_few_kinds(pytester, name, fails):
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(f"import pytest\n\n\n@pytest.mark.slow\ndef {name}(): pass")
    done = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:rerunfailures")
    if fails:
        done.stderr.fnmatch_lines(["*may be slow, not*test_training_learns*"])
    else:
        done.assert_outcomes(passed=1)
