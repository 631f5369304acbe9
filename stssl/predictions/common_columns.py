"""Collect the columns that tables of predictions and of features share: names, places, dates, splits and errors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray

from stssl.archives.grids import Doubles
from stssl.base.errors import ConfigError
from stssl.base.paths import is_url
from stssl.predictions.geoparquet import outlines
from stssl.predictions.patches import PatchBatch, PatchSource
from stssl.store.schema import MISSING_TIME, SPLIT_CODES


@dataclass
class CommonColumns:
    """Collect, batch by batch, the columns of a table that describe its patches and do not depend on a model.

    They are names, places, dates, parts of splits, and errors.

    Attributes:
        source: Source of the patches.
    """

    source: PatchSource
    _names: list[str] = field(default_factory=list)
    _errors: list[str] = field(default_factory=list)
    _numbers: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)

    def add(self, batch: PatchBatch) -> None:
        """Add the names, places, dates, splits and errors of a batch of patches."""
        self._names += batch.names
        self._errors += batch.errors
        arrays = list(self.source.arrays.values())
        ground = max(array.meters * array.width for array in arrays)
        found = {name: batch.columns[name] for name in ("lat", "lon", "time", *self._splits())}
        found["rings"] = outlines(batch.columns, ground, max(array.width for array in arrays))
        for name, values in found.items():
            self._numbers.setdefault(name, []).append(values)

    def _splits(self) -> list[str]:
        return [f"split_{name}" for name in self.source.splits]

    def _joined(self, name: str) -> NDArray[np.generic]:
        return np.concatenate(self._numbers[name])

    @property
    def names(self) -> list[str]:
        """Return the names of all patches that were added, in the sequence in which they came."""
        return self._names

    @property
    def errors(self) -> list[str]:
        """Return the error of each patch that was added, as text. The text is empty for a patch without errors."""
        return self._errors

    @property
    def centers(self) -> Doubles:
        """Return the centers of the n patches that were added: longitudes and latitudes [n, 2]; NaN where unknown."""
        return np.stack([self._joined("lon"), self._joined("lat")], 1).astype(np.float64)

    @property
    def rings(self) -> Doubles:
        """Return the outlines of the n patches that were added, [n, 5, 2]: five points of longitude and latitude each.

        The last point is the first one again. Unknown outlines are NaN.
        """
        return self._joined("rings").astype(np.float64)

    def first(self) -> dict[str, pyarrow.Array]:
        """Return, by name, the columns that stand in the table before a model's results: names, places and dates.

        Missing values are null.
        """
        lat, lon, time = (self._joined(name) for name in ("lat", "lon", "time"))
        seconds = pyarrow.array(time.astype(np.int64), pyarrow.int64(), mask=time == MISSING_TIME)
        return {
            "patch_id": pyarrow.array(self._names, pyarrow.string()),
            "lat": pyarrow.array(lat.astype(np.float64), mask=~np.isfinite(lat.astype(np.float64))),
            "lon": pyarrow.array(lon.astype(np.float64), mask=~np.isfinite(lon.astype(np.float64))),
            "time": seconds.cast(pyarrow.timestamp("s", "UTC")),
        }

    def last(self) -> dict[str, pyarrow.Array]:
        """Return, by name, the columns that stand in the table after a model's results: parts of splits, and errors.

        A part of a split is `train`, `validation` or `test`. It is null for a patch in none of them, and so is a
        missing error.
        """
        words = {code: part for part, code in SPLIT_CODES.items()}
        found = {
            name: pyarrow.array([words.get(int(code)) for code in self._joined(name)], pyarrow.string())
            for name in self._splits()
        }
        return found | {"error": pyarrow.array([text or None for text in self._errors], pyarrow.string())}


def output_path(out: str | Path, inputs: Iterable[str | Path], suffixes: Sequence[str], what: str) -> Path:
    """Check the path of a command's output, such as a table, and return it as an absolute path.

    Args:
        out: Path that the user gave by `--out`.
        inputs: Paths or URLs that the command reads.
        suffixes: Allowed endings, such as `.parquet`.
        what: Words on what the output may be, for messages.

    Raises:
        ConfigError: The path has another ending, is a folder or an input, or lies inside an input folder.
    """
    path = Path(out).absolute()
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"--out: '{out}' must end in {' or '.join(suffixes)}: {what}.")
    if path.suffix.lower() != ".zarr" and path.is_dir():
        raise ConfigError(f"--out: {path} is a folder. Give the name of a file.")
    for given in inputs:
        if is_url(str(given)):
            continue
        own = Path(given).resolve()
        if path.resolve() == own:
            raise ConfigError(f"--out: {path} is the input itself. Give another name.")
        if own.is_dir() and path.resolve().is_relative_to(own):
            raise ConfigError(f"--out: {path} lies inside the input {given}. Give a file outside of it.")
    return path
