"""Archives to stores: one Ray task a shard, each the only writer of its shard, restartable at any point.

A task reads the patches of a shard, writes that shard of every pixel array, a sidecar with its rows of metadata, and
last a marker that names the sidecar's hash. The driver writes the metadata arrays once, when all markers are there.
So a conversion that was killed goes on at the missing shards, and ends byte-identical to one that was not.
"""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from stssl.archives import ARCHIVES, Archive
from stssl.archives.base import Patch
from stssl.cluster import ray_session
from stssl.errors import ConfigError, DataError
from stssl.schema import ERRORS, NO_SPLIT, SCHEMA_VERSION, SHARD, SPLIT_CODES, UNUSABLE, Column, PixelArray

CODECS: dict[str, Any] = {
    "lz4": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    "zstd": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
    "none": None,
}
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        store: Its path.
        patches: Rows of the store.
        shards: Shards of the store.
        converted: Shards written now; the others were there from an earlier, interrupted conversion.
        errors: Error name -> patches.
        report: CSV that lists them.
    """

    store: str
    patches: int
    shards: int
    converted: int
    errors: dict[str, int]
    report: str


@dataclass(frozen=True)
class Options:
    """How to convert; everything but `workers`, `address` and `strict` shapes the store's bytes."""

    codec: str = "lz4"
    shard: int = SHARD
    limit: int | None = None
    strict: bool = False
    workers: int | None = None
    address: str | None = None


Progress = Callable[[int, int], None]


def convert(
    source: str,
    archive: str | Path,
    store: str | Path,
    options: Options = Options(),
    progress: Progress | None = None,
    **about: Any,
) -> Summary:
    """Convert an archive to a store.

    Args:
        source: A name in `ARCHIVES`.
        archive: Folder or file of the archive.
        store: Folder to write; an interrupted conversion of the same archive with the same options goes on.
        options: Codec, shard size, limit, strictness; `workers=0` converts in this process, without Ray.
        progress: Called with the number of finished shards and of all shards.
        **about: What this source needs besides, such as `coordinates`.

    Returns:
        What was done.

    Raises:
        ConfigError: Unknown source or codec.
        DataError: No such archive, the store belongs to another conversion, or, with `strict`, a bad patch.
    """
    options = options or Options()
    if source not in ARCHIVES:
        raise ConfigError(f"unknown archive format '{source}'. Known: {', '.join(ARCHIVES)}.")
    if options.codec not in CODECS:
        raise ConfigError(f"unknown codec '{options.codec}'. Known: {', '.join(CODECS)}.")
    path = Path(archive)
    if not path.exists():
        raise DataError(f"there is no archive at {archive}")
    opened = ARCHIVES[source](path, **{name: value for name, value in about.items() if value is not None})
    job = Job(opened, str(Path(store).absolute()), options)
    with job.alone():
        job.prepare()
        missing = [shard for shard in range(job.shards) if not job.is_done(shard)]
        done = job.shards - len(missing)
        for _ in run_shards(job, missing):
            done += 1
            if progress:
                progress(done, job.shards)
        return job.finish(len(missing))


def run_shards(job: "Job", shards: list[int]) -> Iterator[int]:
    """Convert shards, here or as Ray tasks with a bounded number in flight; yields each that is done."""
    if job.options.workers == 0 or not shards:
        for shard in shards:
            yield job.convert_shard(shard)
        return
    import ray

    with ray_session(job.options.address, cpus=job.options.workers):
        shared = ray.put(job)
        task = ray.remote(max_retries=3)(_task)
        waiting: list[int] = list(reversed(shards))
        flying: list[Any] = []
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or flying:
            while waiting and len(flying) < most:
                flying.append(task.remote(shared, waiting.pop()))
            ready, flying = ray.wait(flying, num_returns=1)
            try:
                yield from ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                cause = error.as_instanceof_cause()
                raise (DataError(str(error.cause)) if isinstance(error.cause, DataError) else cause) from None


def _task(job: "Job", shard: int) -> int:
    return job.convert_shard(shard)


class Job:
    """One conversion: knows where everything goes, and whether it is there."""

    def __init__(self, archive: Archive, store: str, options: Options) -> None:
        """Plan the conversion of `archive` to `store`."""
        self.archive, self.store, self.options = archive, store, options
        self.patches = min(len(archive.names), options.limit or len(archive.names))
        self.shards = -(-self.patches // options.shard)
        folder = Path(store)
        self.work = folder.with_name(f".{folder.name}.work")
        self.report = folder.with_name(f"{folder.name}.errors.csv")

    def identity(self) -> dict[str, Any]:
        """What the store is a conversion of; no path, host or time, so that a repeated one is byte-identical."""
        names = hashlib.blake2b("\n".join(self.archive.names[: self.patches]).encode(), digest_size=16).hexdigest()
        options = {"codec": self.options.codec, "shard": self.options.shard, "limit": self.options.limit}
        return {"archive": dict(self.archive.about), "options": options, "patches": self.patches, "names": names}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the store's lock, so that two conversions never write to it at once."""
        Path(self.store).mkdir(parents=True, exist_ok=True)
        folder = os.open(self.store, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise DataError(f"another conversion is writing to {self.store}. Wait for it, or stop it.") from None
        finally:
            os.close(folder)

    def prepare(self) -> None:
        """Create the group and its pixel arrays, or make sure that those there are this conversion's."""
        root = Path(self.store)
        found = self._attributes().get("conversion")
        if found == self.identity():
            return
        if found is not None:
            raise DataError(f"{self.store} is a store of another archive or of other options. Choose another path.")
        strangers = [path.name for path in root.iterdir()]
        if strangers and not self.work.exists():
            raise DataError(f"{self.store} is not empty and not a store ({strangers[0]}). Choose another path.")
        self.work.mkdir(exist_ok=True)
        for array in self.archive.arrays:
            shutil.rmtree(root / array.name, ignore_errors=True)
            zarr.create_array(
                self.store,
                name=array.name,
                shape=(self.patches, *array.shape),
                chunks=(1, *array.shape),
                shards=(self.options.shard, *array.shape),
                dtype=array.dtype,
                compressors=CODECS[self.options.codec],
                fill_value=0,
                dimension_names=array.dimensions,
                attributes={"bands": list(array.bands), "gsd_m": array.gsd_m, "units": "digital number"},
            )
        attributes = {"schema_version": SCHEMA_VERSION, "conversion": self.identity(), "complete": False}
        zarr.open_group(self.store, mode="r+").attrs.update(attributes)

    def _attributes(self) -> dict[str, Any]:
        """Of the store's group, which need not exist yet."""
        exists = (Path(self.store) / "zarr.json").exists()
        return dict(zarr.open_group(self.store, mode="r").attrs) if exists else {}

    def _sidecar(self, shard: int) -> Path:
        return self.work / f"{shard:06d}.npz"

    def is_done(self, shard: int) -> bool:
        """Whether a shard's marker is there and its sidecar is the one that the marker means."""
        marker, sidecar = self.work / f"{shard:06d}.done", self._sidecar(shard)
        if self.is_complete():
            return True
        return marker.exists() and sidecar.exists() and marker.read_text() == _digest(sidecar)

    def is_complete(self) -> bool:
        """Whether an earlier conversion finished this store."""
        return bool(self._attributes().get("complete"))

    def convert_shard(self, shard: int) -> int:
        """Read a shard's patches and write its part of everything, the marker last."""
        rows = range(shard * self.options.shard, min((shard + 1) * self.options.shard, self.patches))
        patches = [self.archive.read(row) for row in rows]
        for patch, row in zip(patches, rows, strict=True):
            if patch.problems and self.options.strict:
                code, words = patch.problems[0]
                raise DataError(f"patch {self.archive.names[row]}: {code}: {words} (--strict)")
        pixels = {array.name: _stack(patches, array) for array in self.archive.arrays}
        group = zarr.open_group(self.store, mode="r+")
        for name, block in pixels.items():
            group[name][rows.start : rows.stop] = block
        columns = self._columns(patches, rows, pixels)
        usable = columns["error_code"]
        train = columns.get(f"split_{self.archive.statistics_split}")
        counted = ~np.isin(usable, UNUSABLE) & (True if train is None else train == SPLIT_CODES["train"])
        sums = {f"sum_{name}": _moments(block[counted]) for name, block in pixels.items()}
        problems = [
            [self.archive.names[row], *problem] for row, p in zip(rows, patches, strict=True) for problem in p.problems
        ]
        self._write_sidecar(shard, columns | sums | {"problems": np.array(json.dumps(problems))})
        return shard

    def _write_sidecar(self, shard: int, arrays: Rows) -> None:
        sidecar = self._sidecar(shard)
        fresh = sidecar.with_suffix(f".{os.getpid()}")
        with fresh.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        fresh.replace(sidecar)
        (self.work / f"{shard:06d}.done").write_text(_digest(sidecar))

    def _columns(self, patches: list[Patch], rows: range, pixels: Rows) -> Rows:
        columns = {column.name: _empty(column, len(patches)) for column in self.archive.columns}
        columns["patch_id"] = np.array([self.archive.names[row] for row in rows])
        for place, patch in enumerate(patches):
            for name, value in patch.values.items():
                columns[name][place] = value
            columns["valid_bands"][place] = patch.valid_bands
            columns["error_code"][place] = ERRORS[patch.problems[0][0]] if patch.problems else 0
            content = hashlib.blake2b(digest_size=16)
            for block in pixels.values():
                content.update(np.ascontiguousarray(block[place], dtype=block.dtype.newbyteorder("<")).tobytes())
            columns["content_hash"][place] = np.frombuffer(content.digest(), np.uint8)
        for split in self.archive.splits:
            columns[f"split_{split}"][np.isin(columns["error_code"], UNUSABLE)] = NO_SPLIT
        return columns

    def finish(self, converted: int) -> Summary:
        """Write metadata arrays, statistics and the error report, and mark the store as whole."""
        if self.is_complete():
            return Summary(
                self.store, self.patches, self.shards, 0, dict(self._attributes()["errors"]), str(self.report)
            )
        parts = [dict(np.load(self._sidecar(shard))) for shard in range(self.shards)]
        columns = {c.name: np.concatenate([part[c.name] for part in parts]) for c in self.archive.columns}
        columns["location_id"] = location_ids(columns)
        group = zarr.open_group(self.store, mode="r+")
        for column in self.archive.columns:
            _write_column(group, column, columns[column.name])
        for array in self.archive.arrays:
            sums = np.sum([part[f"sum_{array.name}"][:3] for part in parts], 0)
            low = np.min([part[f"sum_{array.name}"][3] for part in parts], 0)
            high = np.max([part[f"sum_{array.name}"][4] for part in parts], 0)
            group[array.name].attrs["statistics"] = _statistics(sums, low, high, self.archive.statistics_split)
        problems = [row for part in parts for row in json.loads(str(part["problems"]))]
        errors = dict(sorted(Counter(code for _, code, _ in problems).items()))
        with self.report.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["patch", "error", "details"], *problems])
        group.attrs.update(
            {
                "pixel_arrays": [array.name for array in self.archive.arrays],
                "label_sets": list(self.archive.label_sets),
                "splits": list(self.archive.splits),
                "patches": self.patches,
                "errors": errors,
                "error_codes": ERRORS,
                "complete": True,
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.store)
        shutil.rmtree(self.work)
        return Summary(self.store, self.patches, self.shards, converted, errors, str(self.report))


def _stack(patches: list[Patch], array: PixelArray) -> NDArray[Any]:
    block = np.zeros((len(patches), *array.shape), array.dtype)
    for place, patch in enumerate(patches):
        if array.name in patch.arrays:
            block[place] = patch.arrays[array.name]
    return block


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _empty(column: Column, rows: int) -> NDArray[Any]:
    if column.dtype == "string":
        return np.full(rows, column.fill, dtype=object)
    return np.full((rows, column.width) if column.width else rows, column.fill, dtype=column.dtype)


def _moments(block: NDArray[Any]) -> NDArray[np.float64]:
    """Count, sum, sum of squares, minimum and maximum of each band: [5, bands]."""
    values = block.transpose(1, 0, 2, 3).reshape(block.shape[1], -1)
    if values.shape[1] == 0:
        return np.array([[0.0, 0.0, 0.0, np.inf, -np.inf]] * block.shape[1]).T
    exact = values.astype(np.float64)
    count = np.full(len(values), values.shape[1], np.float64)
    return np.stack([count, exact.sum(1), np.square(exact).sum(1), exact.min(1), exact.max(1)])


def _statistics(sums: NDArray[Any], low: NDArray[Any], high: NDArray[Any], split: str) -> dict[str, Any]:
    count, total, squares = sums
    counted = count > 0
    mean = np.divide(total, count, where=counted, out=np.zeros_like(total))
    variance = np.divide(squares, count, where=counted, out=np.zeros_like(total)) - mean**2
    values = {"mean": mean, "std": np.sqrt(np.maximum(variance, 0)), "min": low, "max": high, "count": count}
    kept = {
        name: [float(v) if c else None for v, c in zip(value, counted, strict=True)] for name, value in values.items()
    }
    return kept | {"split": f"{split}:train"}


def location_ids(columns: Rows) -> NDArray[np.int32]:
    """Number places: equal UTM corner where there is one, else what the archive said."""
    if "ulx" not in columns:
        return np.asarray(columns["location_id"], np.int32)
    corner = np.stack([columns["utm_epsg"], columns["ulx"], columns["uly"]], 1)
    known = np.isfinite(corner).all(1) & (columns["utm_epsg"] > 0)
    ids = np.full(len(corner), -1, np.int32)
    ids[known] = np.unique(corner[known], axis=0, return_inverse=True)[1].reshape(-1)
    return ids


def _write_column(group: Any, column: Column, values: NDArray[Any]) -> None:
    dimensions = ("patch", f"{column.name}_entry")[: values.ndim]
    options: dict[str, Any] = {"dtype": column.dtype, "fill_value": column.fill}
    array = group.create_array(
        column.name,
        shape=values.shape,
        chunks=tuple(max(1, size) for size in values.shape),
        dimension_names=dimensions,
        attributes=column.attributes,
        overwrite=True,
        **options,
    )
    array[:] = values.astype(object) if column.dtype == "string" else values
