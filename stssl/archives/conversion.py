"""Archives to stores: one Ray task a shard, each the only writer of its shard, restartable at any point.

What is written and in which order is `data.writer`'s matter, what is read the archive's; this file brings them
together and spreads the shards over the cluster.
"""

import csv
import hashlib
import inspect
import io
import itertools
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stssl.archives import ARCHIVES, Archive
from stssl.archives.base import OnProgress
from stssl.base.errors import ConfigError, DataError, RunError
from stssl.base.ray_session import connected_ray
from stssl.store.files import sole_writer, writing
from stssl.store.remote import is_remote
from stssl.store.schema import SHARD, Patch
from stssl.store.store import Store
from stssl.store.verification import Findings, verify
from stssl.store.writer import CODECS, StorePlan, Writer


@dataclass(frozen=True)
class Summary:
    """Summarize a conversion.

    Attributes:
        store: Its path.
        patches: Rows of the store.
        shards: Shards of the store.
        converted: Shards written now; the others were there from an earlier, interrupted conversion.
        errors: Error name -> how often it occurred.
        report: CSV that lists them.
        examples: Error name -> the first patch that has it, and the words.
        notes: What the archive says of itself, a line each: columns read and not read, unlabeled rows.
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
    """Set how to convert: codec, shard size, limits, workers.

    Attributes:
        codec: `lz4`, `zstd` or `none`.
        shard: Patches a shard.
        limit: Only the first patches.
        strict: The first bad patch is an error.
        workers: CPUs of a local Ray; None takes all, 0 converts in this process without Ray.
        address: Of a Ray cluster.
    """

    codec: str = "lz4"
    shard: int = SHARD
    limit: int | None = None
    strict: bool = False
    workers: int | None = None
    address: str | None = None


def convert(
    source: str,
    archive: str | Path,
    store: str | Path,
    options: Options = Options(),
    progress: OnProgress | None = None,
    **about: Any,
) -> Summary:
    """Convert an archive to a store.

    Args:
        source: A name in `ARCHIVES`.
        archive: Folder or file of the archive.
        store: Folder or URL to write; an interrupted conversion of the same archive with the same options goes on.
        options: Codec, shard size, limit, strictness, workers.
        progress: Called with the number of finished shards and of all shards.
        **about: What this source can be told besides, such as `coordinates`; None is left out.

    Returns:
        What was done.

    Raises:
        ConfigError: Unknown source, codec or option.
        DataError: No such archive, the store belongs to another conversion or is being written, or, with `strict`, a
            bad patch.
        RunError: Ray cannot be reached, or its workers keep dying.
    """
    if options.codec not in CODECS:
        raise ConfigError(f"unknown codec '{options.codec}'. Known: {', '.join(CODECS)}.")
    opened = open_archive(source, archive, **about)
    target = str(store) if is_remote(str(store)) else str(Path(store).absolute())
    plan = make_plan(source, opened, options, about)
    job = Job(opened, Writer(target, plan), options.strict, Path(archive).absolute())
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
            errors = job.writer.finish()
    report = job.writer.beside.path(job.writer.report)
    examples = _examples(job.writer) if errors else {}
    return Summary(target, plan.patches, plan.shards, len(missing), errors, report, examples, tuple(opened.notes))


def _examples(writer: Writer) -> dict[str, str]:
    """The first patch of each error, from the report; empty where somebody removed it."""
    found: dict[str, str] = {}
    text = (writer.beside.read(writer.report) or b"").decode("utf-8", "replace")
    for name, error, words in itertools.islice(csv.reader(io.StringIO(text, newline="")), 1, None):
        found.setdefault(error, words if name in words else f"{name}: {words}")
    return found


def named_folders(words: Sequence[str] | None) -> dict[str, Path] | None:
    """Folders by name from `NAME=FOLDER` words of a command line; None where there are none.

    Raises:
        ConfigError: A word is not of that form, or a name stands twice.
    """
    found: dict[str, Path] = {}
    for word in words or ():
        name, _, folder = word.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not folder or name in found:
            raise ConfigError(f"--split {word}: give NAME=FOLDER, each name once (small letters, digits and _)")
        if name == "blocks":
            raise ConfigError(f"--split {word}: data.split=blocks means blocks of places. Choose another name.")
        if not Path(folder).is_dir():
            raise ConfigError(f"--split {word}: there is no folder {folder}")
        found[name] = Path(folder).absolute()
    return found or None


def open_archive(source: str, archive: str | Path, **about: Any) -> Archive:
    """List an archive's patches.

    Args:
        source: Name of the archive format.
        archive: Folder or file.
        **about: Options of that format; None is left out.

    Raises:
        ConfigError: Unknown source, or an option that it does not have.
        DataError: No such archive.
    """
    if source not in ARCHIVES:
        raise ConfigError(f"unknown archive format '{source}'. Known: {', '.join(ARCHIVES)}.")
    path = Path(archive).absolute()  # Workers of a cluster have another working folder.
    if not path.exists():
        raise DataError(f"there is no archive at {archive}")
    given = {
        name: value.absolute() if isinstance(value, Path) else value
        for name, value in about.items()
        if value is not None
    }
    known = [name for name in inspect.signature(ARCHIVES[source]).parameters if name != "archive"]
    strangers = sorted(set(given) - set(known))
    if strangers:
        raise ConfigError(f"{source} has no option {', '.join(strangers)}. It has: {', '.join(known) or 'none'}.")
    return ARCHIVES[source](path, **given)


def make_plan(source: str, archive: Archive, options: Options, about: dict[str, Any]) -> StorePlan:
    """Plan the store of an archive, with the identity that tells this conversion from another.

    Args:
        source: Name of the archive format.
        archive: The open archive.
        options: Codec, shard size and limit.
        about: Options of the archive format.
    """
    patches = min(len(archive.names), options.limit or len(archive.names))
    for name in archive.names[:patches]:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise DataError(f"the name of {name.encode('utf-8', 'backslashreplace').decode()} is not UTF-8. Rename it.")
    identity = {
        "format": source,
        "archive": dict(archive.about),
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
    store: str | Path, archive: str | Path | None = None, progress: OnProgress | None = None, **about: Any
) -> Findings:
    """Check a store's checksums, hashes and counts, and with its archive every pixel.

    Args:
        store: Path or URL.
        archive: Folder or file that it was converted from.
        progress: Called with the number of checked and of all patches.
        **about: Tables and lists that the conversion was told of and that do not lie beside the archive.

    Raises:
        DataError: There is no finished store, or no such archive.
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
    """One conversion, as tasks carry it."""

    archive: Archive
    writer: Writer
    strict: bool
    root: Path

    def convert_shard(self, shard: int) -> int:
        """Read a shard's patches and write its part of everything."""
        rows = self.writer.plan.rows(shard)
        names = [self.archive.names[row] for row in rows]
        patches = [self._read(row) for row in rows]
        if not self.root.exists():
            # Else every patch that could not be found would be stored as a bad one.
            raise DataError(
                f"{self.root} is not there on {socket.gethostname()}. The archive must lie where every node of the "
                "cluster sees it; run the same `stssl convert` again then."
            )
        for name, patch in zip(names, patches, strict=True):
            if patch.problems and self.strict:
                code, words = patch.problems[0]
                raise DataError(f"patch {name}: {code}: {words}. Without --strict it would be listed and passed over.")
        self.writer.write_shard(shard, names, patches)
        return shard

    def _read(self, row: int) -> Patch:
        try:
            return self.archive.read(row)
        except OSError as error:
            return Patch(problems=[("unreadable", f"{type(error).__name__}: {error.strerror}")])


def run_shards(job: Job, shards: list[int], options: Options) -> Iterator[int]:
    """Convert shards, here or as Ray tasks with a bounded number in flight; yield each that is done.

    Args:
        job: Archive and writer.
        shards: Numbers of the shards to convert.
        options: Workers, and the address of a cluster.
    """
    if options.workers == 0 or not shards:
        for shard in shards:
            yield job.convert_shard(shard)
        return
    import ray

    with connected_ray(options.address, cpus=options.workers):
        # In a list, so that a task gets the reference: each worker unpacks the archive's listing once, not per shard.
        shared = [ray.put(job)]
        task = ray.remote(max_retries=3)(_task)
        waiting = list(reversed(shards))
        flying: list[Any] = []
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or flying:
            while waiting and len(flying) < most:
                flying.append(task.remote(shared, waiting.pop()))
            ready, flying = ray.wait(flying, num_returns=1)
            try:
                yield from ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise (DataError(str(error.cause)) if isinstance(error.cause, DataError) else error) from None
            except ray.exceptions.RayError as error:
                words = " ".join(str(error).split())[:300]
                raise RunError(
                    f"workers died again and again ({words}). Finished shards are kept: run the same command again, "
                    "with fewer --workers or a smaller --shard if memory ran out."
                ) from None


_jobs: dict[Any, Job] = {}


def _task(shared: list[Any], shard: int) -> int:
    import ray

    if shared[0] not in _jobs:
        _jobs.clear()
        _jobs[shared[0]] = ray.get(shared[0])
    return _jobs[shared[0]].convert_shard(shard)
