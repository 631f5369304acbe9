"""Read recorded values of public implementations, and remember which of them a check has compared."""

import json
import os
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

OWN = Path(__file__).parent / "vectors"
FOLDER = Path(os.environ.get("STSSL_REFERENCE_VECTORS") or OWN)
GIVEN = ("in_", "init/", "init_geo/", "sd/", "param/", "hparams", "config", "margin")
"""Prefixes of arrays that are inputs. A check must compare all arrays with other names."""


class Tolerance(TypedDict):
    """Hold the largest allowed difference of two numbers: absolute, and relative to the recorded number."""

    atol: float
    rtol: float


LOSS: Tolerance = {"atol": 1e-5, "rtol": 2e-5}
GRADIENT: Tolerance = {"atol": 1e-5, "rtol": 1e-4}


class Oracle:
    """Hold one file of recorded values. `expect` compares a value; `unread` lists values not compared yet."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.arrays[name]

    def json(self, name: str) -> Any:
        return json.loads(str(self[name]))

    def names(self, prefix: str) -> list[str]:
        return [name for name in self.arrays if name.startswith(prefix)]

    def unread(self) -> list[str]:
        return sorted(name for name in self.arrays if name not in self.read and not name.startswith(GIVEN))

    def right(self, name: str, step: int | None = None) -> Any:
        """Return the recorded value of an output or gradient. If the file has a corrected one (`fix_*`), prefer it."""
        fix = "fix_" + name.removeprefix("out_")
        found = [self[key] for key in (fix, name) if key in self.arrays]
        assert found, f"neither {name} nor {fix} is there"
        found = [np.asarray(array if step is None else array[step], dtype=np.float64) for array in found]
        return np.where(np.isfinite(found[0]), found[0], found[-1])

    def expect(self, name: str, ours: Any, step: int | None = None, exact: bool = False, **tolerance: float) -> None:
        """Compare our value with the recorded one. If the recorded one is NaN, ours must only be finite."""
        right = self.right(name, step)
        mine = np.asarray(ours.detach().cpu() if hasattr(ours, "detach") else ours, dtype=np.float64)
        assert mine.shape == right.shape, f"{name}: shape {mine.shape}, not {right.shape}"
        assert np.isfinite(mine).all(), f"{name}, step {step}: not finite"
        known = ~np.isnan(right)
        if exact:
            np.testing.assert_array_equal(mine[known], right[known], err_msg=f"{name}, step {step}")
        else:
            limits: dict[str, Any] = {**tolerance} if tolerance else {**LOSS}
            np.testing.assert_allclose(mine[known], right[known], **limits, err_msg=f"{name}, step {step}")
