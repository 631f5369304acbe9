"""Manage where a run's files lie: in a folder on a disk, or in an object store with a local copy in this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import DataError, StsslError
from stssl.base.lease import LOCK_FILE, Lease
from stssl.base.mirror import Mirror, cache_folder, mirror_of
from stssl.base.paths import is_url
from stssl.training.remote_checkpoints import COMMIT_FILE


def is_sent(name: str) -> bool:
    """Return True if a file of a run is sent to the object store whenever it has changed.

    `name` is the file's path in the run's folder. Checkpoints are not sent in this way: `RemoteCheckpoints` sends them
    in a certain sequence. Files of locks and of Ray stay on this machine.
    """
    return name not in (COMMIT_FILE, LOCK_FILE) and not name.startswith("ray/") and not _is_checkpoint(name)


def is_fetched(name: str) -> bool:
    """Return True if a file is fetched each time the run is opened: it is small, and commands read it.

    `name` is the file's path in the run's folder.
    """
    # Leave out the folders below `probe`, which are runs of their own: commands that need one open it.
    inner = name.startswith("probe/") and name.count("/") > 1
    return is_sent(name) and not inner and not name.startswith("tensorboard/") and not name.endswith(".safetensors")


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/") and name.endswith(".pt")


class RunPlace:
    """Fetch, send and lock the files of a run, which lie on a disk or in an object store.

    Attributes:
        place: Path or URL of the run's folder, for messages and commands.
        path: Run's folder on a disk. If `place` is a URL, it is this process's local copy.
        mirror: Connection with the object store; None for a run on a disk.
    """

    def __init__(self, place: str | Path) -> None:
        """Store `place`, the path or URL of the run's folder. Create and fetch nothing yet.

        Raises:
            DataError: The URL is not one of an object store.
        """
        self.place = str(place)
        self.mirror: Mirror | None = mirror_of(self.place) if is_url(self.place) else None
        self.path = Path(place) if self.mirror is None else self.mirror.folder

    def refresh(self) -> None:
        """Fetch the run's files from the object store, except checkpoints and weights. Do nothing for a run on a disk.

        Raises:
            DataError: The object store cannot be read.
        """
        if self.mirror is not None:
            self.mirror.pull(is_fetched)

    def publish(self) -> None:
        """Send the files that have changed in the local copy to the object store. Do nothing for a run on a disk.

        Raises:
            DataError: The object store refuses a file, or does not answer.
        """
        if self.mirror is not None:
            self.mirror.push(is_sent)

    def remove(self, name: str) -> None:
        """Remove the file `name` in the run's folder, if it exists, from the disk and from the object store.

        Raises:
            DataError: The object store refuses to remove it, or does not answer.
        """
        if self.mirror is not None:
            self.mirror.remote.remove(name)
        (self.path / name).unlink(missing_ok=True)

    def follow_file(self, name: str) -> None:
        """Fetch the newest content of the file `name` in the run's folder from the object store.

        If that fails, or if the run lies on a disk, the file stays as it is.
        """
        if self.mirror is not None:
            with contextlib.suppress(DataError):
                self.mirror.fetch(name)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Return a context that locks a run in an object store: no other process can train it. On a disk, lock nothing.

        Raises:
            RunError: Another process trains the run.
            DataError: The bucket does not exist or refuses files, or the store does not answer.
        """
        if self.mirror is None:
            yield
            return
        with Lease(self.mirror.remote, "trains this run").held():
            yield

    def begin_sending(self) -> None:
        """Let a thread send changed files to the object store every few seconds until `end_sending` is called.

        Do nothing for a run on a disk.
        """
        if self.mirror is not None:
            self.mirror.start(is_sent)

    def end_sending(self) -> None:
        """Send the last changes and stop the sending thread. Raise no error, which would hide how the run ended."""
        if self.mirror is not None and self.mirror.writing:
            with contextlib.suppress(StsslError):
                self.publish()
            self.mirror.stop()

    def check_sending(self) -> None:
        """Raise the error that stopped the sending thread, if there was one.

        Raises:
            StsslError: The object store refuses files.
        """
        if self.mirror is not None:
            self.mirror.check()

    @property
    def for_ray(self) -> Path:
        """Return the folder for Ray's own files: the run's folder if the run lies on a disk.

        For a run in an object store, return a folder of this machine.
        """
        # A folder of this machine is enough: workers do not read it. Ray only writes there how far its own checkpoints
        # are, and a run reports no checkpoint to Ray.
        return self.path if self.mirror is None else cache_folder() / "ray" / self.path.parent.name / self.path.name
