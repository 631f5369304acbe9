"""Convert archives to stores. One Ray task converts one shard (a file of many patches), and no other task writes it.

The archive reads patches, and `stssl.store.writer` writes the store's files. This module connects the two and spreads
the shards over the cluster. Ray repeats a task whose worker dies.
"""

import csv
import hashlib
import io
import itertools
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stssl.archives.base import Archive, OnProgress, SlicedArchive
from stssl.archives.options import options_of, takes_several
from stssl.archives.registry import ARCHIVES
from stssl.base.errors import ConfigError, DataError
from stssl.base.json_types import JsonObject
from stssl.base.ray_session import connected_ray, finished_tasks
from stssl.base.remote import is_remote
from stssl.store.files import sole_writer, writing
from stssl.store.schema import SHARD, Patch
from stssl.store.store import Store
from stssl.store.store_plan import CODECS, StorePlan
from stssl.store.verification import Findings, verify
from stssl.store.writer import Writer

ArchivePlace = str | Path | Sequence[str | Path]
"""Path of an archive, or paths of several scenes."""


@dataclass(frozen=True)
class Summary:
    """Hold the result of a conversion from an archive to a store: counts of patches, shards and errors.

    Attributes:
        store: Path or URL of the store.
        patches: Number of patches in the store.
        shards: Number of shards (files of many patches) in the store.
        converted: Number of shards that this call wrote. An earlier, interrupted call wrote the others.
        errors: Name of each error, and how many patches have it.
        report: Path or URL of the CSV file that lists the errors.
        examples: Name of each error, and one text: the first patch with this error, and the message about it.
        notes: Remarks of the archive, one line each, such as used and unused columns and the number of unlabeled rows.
    """

    store: str
    patches: int
    shards: int
    converted: int
    errors: dict[str, int]
    report: str
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """Hold options for the conversion of an archive to a store: codec, shard size, limit, strictness, workers.

    Attributes:
        codec: Compression of the pixels: `lz4`, `zstd` or `none`.
        shard: Number of patches in a shard (a file of the store).
        limit: Number of patches to convert, starting at the first one; None converts all.
        strict: True to stop at the first bad patch.
        workers: Number of CPUs that Ray may use on this machine; None takes all. 0 converts in this process, without
            Ray. A cluster uses all its CPUs.
        address: Address of a Ray cluster. None takes `RAY_ADDRESS`, or starts Ray on this machine if that is not set.
    """

    codec: str = "lz4"
    shard: int = SHARD
    limit: int | None = None
    strict: bool = False
    workers: int | None = None
    address: str | None = None


def convert_archive(
    source: str,
    archive: ArchivePlace,
    store: str | Path,
    options: Options = Options(),
    progress: OnProgress | None = None,
    **about: object,
) -> Summary:
    """Convert an archive to a store. To continue an interrupted conversion, repeat the same call.

    Args:
        source: Name of the archive format, such as `eurosat`.
        archive: Folder or file of the archive. The format `scenes` takes several.
        store: Folder or URL to write.
        options: Codec, shard size, limit, strictness, workers.
        progress: Function that is called after each shard, with the numbers of finished shards and of all shards.
        **about: The format's own options, such as `coordinates`. An option that is None counts as not given.

    Returns:
        Counts of patches, shards and errors, the path of the error report, and the archive's remarks.

    Raises:
        ConfigError: The format, the codec or an option is unknown, or the store lies in a folder of scenes.
        DataError: The archive does not exist, the store belongs to another conversion, another process writes the
            store, no patch can be used, or a patch is bad and `strict` is set.
        RunError: Ray cannot be reached, or its workers die again and again.
    """
    if options.codec not in CODECS:
        raise ConfigError(f"unknown codec '{options.codec}'. Known: {', '.join(CODECS)}.")
    opened = open_archive(source, archive, **about)
    target = str(store) if is_remote(str(store)) else str(Path(store).absolute())
    plan = make_plan(source, opened, options, about)
    if takes_several(source):
        _require_outside(target, archive)
    roots = [*_paths(archive), *(value for value in about.values() if isinstance(value, Path))]
    job = Job(opened, Writer(target, plan), options.strict, tuple(path.absolute() for path in roots))
    with sole_writer(target):
        with writing(target):
            job.writer.prepare()
            missing = job.writer.missing()
        done = plan.shards - len(missing)
        for _ in run_shards(job, missing, options):
            done += 1
            if progress:
                progress(done, plan.shards)
        with writing(target):
            job.writer.require_usable()
            errors = job.writer.finish()
    report = job.writer.beside.path(job.writer.report)
    examples = _examples(job.writer) if errors else {}
    return Summary(target, plan.patches, plan.shards, len(missing), errors, report, examples, tuple(opened.notes))


def _examples(writer: Writer) -> dict[str, str]:
    """Return for each error of a conversion its first patch, from the conversion's CSV error report.

    The result is a dict from error name to a text with the patch and the message. It is empty if the report was
    removed.

    Args:
        writer: Writer of the store. It knows where the report lies.
    """
    found: dict[str, str] = {}
    text = (writer.beside.read(writer.report) or b"").decode("utf-8", "replace")
    for name, error, words in itertools.islice(csv.reader(io.StringIO(text, newline="")), 1, None):
        found.setdefault(error, words if name in words else f"{name}: {words}")
    return found


def _paths(archive: ArchivePlace) -> list[Path]:
    return [Path(archive)] if isinstance(archive, str | Path) else [Path(one) for one in archive]


def _require_outside(store: str, archive: ArchivePlace) -> None:
    """Raise an error if a store lies inside a folder of scenes.

    A later conversion of this folder would search the store for images.

    Args:
        store: Path or URL of the store.
        archive: Path of the archive, or several paths.

    Raises:
        ConfigError: The store lies inside a folder of the archive.
    """
    for path in _paths(archive):
        if not is_remote(store) and path.is_dir() and Path(store).resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"the store {store} lies inside the archive {path}. Give a path outside of it.")


def open_archive(source: str, archive: ArchivePlace, **about: object) -> Archive:
    """Open an archive (a published data set), which finds its patches. Return the open archive.

    Args:
        source: Name of the archive format, such as `eurosat`.
        archive: Folder or file of the archive. The format `scenes` takes several.
        **about: The format's own options. An option that is None counts as not given.

    Raises:
        ConfigError: The format is unknown, or it has no such option.
        DataError: The archive does not exist.
    """
    if source not in ARCHIVES:
        raise ConfigError(f"unknown archive format '{source}'. Known: {', '.join(ARCHIVES)}.")
    paths = [path.absolute() for path in _paths(archive)]  # The workers of a cluster run in another working folder.
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no archive at {path}")
    if len(paths) != 1 and not takes_several(source):
        raise ConfigError(f"{source} takes one archive, and {len(paths)} paths are given before the store.")
    given: dict[str, Any] = {
        name: value.absolute() if isinstance(value, Path) else value
        for name, value in about.items()
        if value is not None
    }
    known = [option.name for option in options_of(source)]
    strangers = sorted(set(given) - set(known))
    if strangers:
        raise ConfigError(f"{source} has no option {', '.join(strangers)}. It has: {', '.join(known) or 'none'}.")
    return ARCHIVES[source](*paths, **given)


def make_plan(source: str, archive: Archive, options: Options, about: Mapping[str, object]) -> StorePlan:
    """Return the plan of what a conversion will write: arrays, columns, splits, and its identity.

    The identity is a dict of values. It is equal if the same conversion is started again, and differs for any other
    conversion.

    Args:
        source: Name of the archive format.
        archive: The open archive.
        options: Codec, shard size and largest number of patches.
        about: Options of the archive format by name.

    Raises:
        DataError: The name of a patch is not UTF-8.
    """
    patches = min(len(archive.names), options.limit or len(archive.names))
    for name in archive.names[:patches]:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"the name of {name.encode('utf-8', 'backslashreplace').decode()} is not UTF-8. Rename it.")
    identity: JsonObject = {
        "format": source,
        "archive": {**archive.about},
        "patches": patches,
        "names": hashlib.blake2b("\n".join(archive.names[:patches]).encode(), digest_size=16).hexdigest(),
        "options": {"codec": options.codec, "shard": options.shard, "limit": options.limit},
        "about": {name: value for name, value in about.items() if isinstance(value, str | int | float)},
    }
    return StorePlan(
        patches=patches,
        shard=options.shard,
        codec=options.codec,
        arrays=archive.arrays,
        maps=archive.maps,
        columns=archive.columns,
        label_sets=archive.label_sets,
        splits=archive.splits,
        statistics_split=archive.statistics_split,
        identity=identity,
        attributes=dict(archive.attributes),
    )


def verify_store(
    store: str | Path, archive: ArchivePlace | None = None, progress: OnProgress | None = None, **about: object
) -> Findings:
    """Check a store's checksums, hashes and counts. Return the numbers of checked patches, and a list of problems.

    If an archive is given, compare every pixel of the store with it.

    Args:
        store: Path or URL.
        archive: Folder or file of the archive that became this store, or several; None compares with no archive.
        progress: Function that is called with the numbers of checked patches and of all patches.
        **about: Those options of the archive format that are paths, as in the conversion. The store has recorded the
            others.

    Raises:
        DataError: The store does not exist or is not finished, or the archive does not exist.
    """
    if archive is None:
        return verify(store, progress=progress)
    conversion = {"about": {}, "patches": 0} | Store.open(store).attrs["conversion"]
    original = open_archive(conversion["format"], archive, **(conversion["about"] | about))
    if len(original.names) < conversion["patches"]:
        words = f"{archive} has {len(original.names)} patches, and {store} was converted from {conversion['patches']}"
        return Findings(0, 0, (words,))
    return verify(store, original.read, lambda row: original.names[row], progress)


@dataclass
class Job:
    """Hold what a worker process needs to convert shards (files of many patches): the archive and the store's writer.

    Attributes:
        archive: The open archive.
        writer: Writer of the store.
        strict: True to stop at the first bad patch.
        roots: Paths of the archive, which every node must see.
    """

    archive: Archive
    writer: Writer
    strict: bool
    roots: tuple[Path, ...]

    def convert_shard(self, shard: int) -> int:
        """Read all patches of the shard with the number `shard`, write them into the store, and return `shard`.

        Raises:
            DataError: This node does not see the archive, or a patch is bad and `strict` is set.
        """
        rows = self.writer.plan.rows(shard)
        names = [self.archive.names[row] for row in rows]
        patches = [self._read(row) for row in rows]
        lost = [root for root in self.roots if not root.exists()]
        if lost:
            # Without this error, all patches of the shard would be stored as bad ones.
            raise DataError(
                f"{lost[0]} is not there on {socket.gethostname()}. The archive must lie where every node of the "
                "cluster sees it; run the same `stssl convert` again then."
            )
        for name, patch in zip(names, patches, strict=True):
            # Check `strict` only after the paths: if this node does not see the archive, all patches are bad, and only
            # the error above names the cause.
            if patch.problems and self.strict:
                code, words = patch.problems[0]
                raise DataError(f"patch {name}: {code}: {words}. Without --strict it would be listed and passed over.")
        self.writer.write_shard(shard, names, patches)
        return shard

    def _read(self, row: int) -> Patch:
        """Read the patch in one row of the store from the archive, and return it.

        If the file system fails, return a patch without pixels that has the problem `unreadable`.
        """
        try:
            return self.archive.read(row)
        except OSError as error:
            return Patch(problems=[("unreadable", f"{type(error).__name__}: {error.strerror}")])


def run_shards(job: Job, shards: list[int], options: Options) -> Iterator[int]:
    """Convert shards (files of many patches) in this process or in Ray tasks. Yield the number of each finished shard.

    Args:
        job: The archive, and the writer of the store.
        shards: Numbers of the shards to convert.
        options: Its number of workers (0 for no Ray) and its address of a cluster are used.

    Raises:
        DataError: A task failed.
        RunError: Ray's workers die again and again.
    """
    if options.workers == 0 or not shards:
        for shard in shards:
            yield job.convert_shard(shard)
        return
    import ray

    with connected_ray(options.address, cpus=options.workers):
        sliced = job.archive if isinstance(job.archive, SlicedArchive) else None
        # A listing of a million rows takes hundreds of MB in each worker. Where possible, send each task its own rows.
        common = job if sliced is None else replace(job, archive=sliced.of_rows(range(0)))
        # In a list, Ray passes the reference, not the job: a worker unpacks the archive's listing once, not per shard.
        shared = [ray.put(common)]
        task = ray.remote(max_retries=3)(_task)
        # Start two tasks for each CPU: when one ends, the other already waits, so no CPU is idle.
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]  # Ray has no types here
        advice = (
            "Finished shards are kept: run the same command again, with fewer --workers or a smaller --shard if memory "
            "ran out."
        )

        def start(shard: int, _: int | None) -> "ray.ObjectRef[int]":
            return task.remote(shared, shard, sliced and sliced.of_rows(job.writer.plan.rows(shard)))

        yield from finished_tasks(start, shards, most, advice)


_jobs: dict[object, Job] = {}


def _task(shared: list[Any], shard: int, archive: Archive | None) -> int:
    """Convert one shard (a file of many patches) in a Ray worker, and return its number.

    The worker process keeps the job (archive and writer), so its next tasks need not load it again.

    Args:
        shared: List with one item, Ray's reference to the job (archive and writer).
        shard: Number of the shard.
        archive: The archive, cut to the shard's rows; None if the job has the whole archive.
    """
    import ray

    if shared[0] not in _jobs:
        # Delete the old job: its archive's listing takes much memory, and a worker serves one conversion at a time.
        _jobs.clear()
        _jobs[shared[0]] = ray.get(shared[0])
    job = _jobs[shared[0]]
    return (job if archive is None else replace(job, archive=archive)).convert_shard(shard)
