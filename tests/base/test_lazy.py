"""Each folder of the package exports names that are imported at their first use."""

from importlib import import_module
from pathlib import Path

import pytest

import stssl
from stssl.base.lazy import lazy_names

INITS = Path(stssl.__file__).parent.glob("*/__init__.py")
FOLDERS = sorted(path.parent.name for path in INITS if "__all__" in path.read_text())


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_exports_what_it_promises(folder):
    package = import_module(f"stssl.{folder}")
    for name in package.__all__:
        assert getattr(package, name) is not None
    listed = [name for names in getattr(package, "_MODULES", {}).values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) <= set(package.__all__)


def test_control_a_name_that_is_not_exported_fails_as_in_python():
    find = lazy_names("stssl.base", {"sphere": ("on_sphere",)})
    assert callable(find("on_sphere"))
    with pytest.raises(AttributeError, match=r"module 'stssl\.base' has no attribute 'torch'"):
        find("torch")
