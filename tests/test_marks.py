"""What the markers of tests promise (conftest.py): no Ray without `ray`, and few kinds of tests that are `slow`."""

import os
from pathlib import Path

import pytest
from marks import NO_RAY
from shares import ON_RAY

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


@pytest.mark.parametrize("dealt", [True, False], ids=["by file", "control: one by one"])
def test_what_belongs_together_runs_in_one_process(pytester, monkeypatch, dealt):
    for name in ("one", "two"):
        text = f"# {ON_RAY}\nimport os, time\n\n\ndef test_{name}_%d():\n    time.sleep(0.2)\n"
        text += f"    open('{name}-' + str(os.getpid()), 'w').close()\n"
        pytester.makepyfile(**{f"test_{name}": "".join(text % number for number in range(3))})
    pytester.makeconftest("from conftest_of_tests import pytest_xdist_make_scheduler" if dealt else "")
    Path("conftest_of_tests.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())]), prepend=os.pathsep)
    done = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "--dist", "load", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=6)
    processes = {path.name.rpartition("-")[2] for path in Path.cwd().glob("[ot][nw][eo]-*")}
    assert len(processes) == (1 if dealt else 2)
