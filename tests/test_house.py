"""Limits on how hard the package may be to enter; `tests/house_table.py` prints the numbers."""

import pytest
from house_table import PACKAGE, measure

MOST = {
    "lines of the longest function": 60,
    "median lines of a function": 12,
    "docstrings that open with a relative clause, %": 1.0,
    "public names defined in two modules, %": 0,
    "Any per 1,000 lines": 6.0,
    "circles of folders": 0,
    "circles of modules": 0,
}
LEAST = {"of these with Args, %": 90.0}


@pytest.fixture(scope="module")
def found():
    return measure(PACKAGE)


@pytest.mark.parametrize("name", MOST)
def test_the_package_stays_below(found, name):
    assert found[name] <= MOST[name]


@pytest.mark.parametrize("name", LEAST)
def test_the_package_stays_above(found, name):
    assert found[name] >= LEAST[name]


def test_control_a_package_of_riddles_is_found(tmp_path):
    package = tmp_path / "stssl"
    package.mkdir()
    (package / "__init__.py").write_text("")
    riddle = 'def f(a, b, c):\n    """What it takes."""\n\n\nclass G:\n    """Whose it is."""\n'
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(riddle)
    counted = measure(package)
    assert counted["docstrings that open with a relative clause, %"] == 100
    assert counted["public names defined in two modules, %"] == 100
    assert counted["of these with Args, %"] == 0
