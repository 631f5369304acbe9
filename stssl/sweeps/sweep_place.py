"""Manage where a sweep's files lie: in a folder on a disk, or in an object store with a local copy in this process.

Runs of trials lie in the same object store. The process that trains a run sends its files there.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from stssl.base.errors import RunError, StsslError
from stssl.base.lease import LOCK_FILE, Lease
from stssl.base.mirror import Mirror, mirror_of
from stssl.base.paths import below, is_url
from stssl.base.remote_folder import RemoteFolder
from stssl.base.whole_files import as_size

STUDY_FILE = "study.db"
TRIALS = "trials"
"""Folder in a sweep's folder that holds the runs of the trials."""
RUNS = (f"{TRIALS}/", "confirm/", "tune/")
"""Folders in a sweep's folder that hold runs, and files of Ray Tune."""


def is_own(name: str) -> bool:
    """Return True if a file in a sweep's folder belongs to the sweep's results, such as its report.

    Files of runs, of Ray Tune, of locks and of the study do not. `name` is the file's path, relative to the folder.
    """
    return not name.startswith((*RUNS, STUDY_FILE)) and name not in (LOCK_FILE, "lock")


class SweepPlace:
    """Lock, fetch and send the files of a sweep, which lie on a disk or in an object store.

    Attributes:
        place: Path or URL of the sweep's folder.
        folder: Sweep's folder on a disk. If `place` is a URL, it is this process's local copy.
        mirror: Connection with the object store; None for a sweep on a disk.
    """

    def __init__(self, place: str) -> None:
        """Set the path or URL of the sweep's folder. Create and fetch nothing yet."""
        self.place = place
        self.mirror: Mirror | None = mirror_of(place) if is_url(place) else None
        self.folder = Path(place) if self.mirror is None else self.mirror.folder

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Return a context in which no other process can run a sweep that lies in an object store.

        The context fetches the sweep's files at its start, and sends them at its end. For a sweep on a disk, it does
        nothing.

        Raises:
            RunError: Another process runs the sweep.
            DataError: The object store refuses files, or does not answer.
        """
        if self.mirror is None:
            yield
            return
        with Lease(self.mirror.remote, "runs this sweep").held():
            self.mirror.pull(lambda name: is_own(name) or name == STUDY_FILE)
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                yield
            finally:
                with contextlib.suppress(StsslError):  # an unreachable store must not hide how the sweep ended
                    self.send_study()
            self.mirror.push(is_own)

    def send_study(self) -> None:
        """Send the study's SQLite file to the object store. Do nothing for a sweep on a disk, or without such a file.

        Raises:
            RunError: The study cannot be copied.
            DataError: The object store refuses the file, or does not answer.
        """
        study, copy = self.folder / STUDY_FILE, self.folder / f".{STUDY_FILE}.copy"
        if self.mirror is None or not study.exists():
            return
        try:
            # Let SQLite copy the file: another thread may be writing, and a plain copy could get half of its change.
            with contextlib.closing(sqlite3.connect(study)) as source, contextlib.closing(sqlite3.connect(copy)) as out:
                source.backup(out)
        except sqlite3.Error as error:
            raise RunError(f"cannot copy {study} ({as_size(study.stat().st_size)}): {error}") from None
        self.mirror.remote.write(STUDY_FILE, copy.read_bytes())

    def remove_checkpoints(self, runs: Collection[str]) -> None:
        """Remove all checkpoints of some trials' runs, including half-written ones.

        Args:
            runs: Names of the runs, such as `trial-0007`.

        Raises:
            DataError: The object store refuses to remove a file, or does not answer.
        """
        if self.mirror is None:
            for folder in (self.folder / TRIALS / run / "checkpoints" for run in runs):
                for path in [*folder.glob("*.pt"), *folder.glob(".*.pt.*")]:
                    path.unlink(missing_ok=True)
            return
        trials = RemoteFolder(below(self.place, TRIALS))
        # List all trials at once: a sweep calls this method at the end of each trial, with the runs of all earlier
        # trials. A request for each run would be slow.
        listed = trials.listed() if runs else {}
        # First remove `committed.json`, which lists the run's checkpoints: it must not name files that are gone.
        for name in sorted(listed, key=lambda name: name.endswith(".pt")):
            run, _, file = name.partition("/checkpoints/")
            if run in runs and file.endswith((".pt", ".json")):
                trials.remove(name)

    def has_runs(self) -> bool:
        """Return True if the sweep's folder, on a disk or in an object store, has runs of trials."""
        if self.mirror is not None:
            return any(name.startswith(f"{TRIALS}/") for name in self.mirror.remote.listed())
        runs = self.folder / TRIALS
        return runs.is_dir() and any(runs.iterdir())
