"""Say where a run lies: in a folder of a disk, or in an object store, of which this process has a local copy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from stssl.base.errors import DataError, StsslError
from stssl.base.lease import LOCK_FILE, Lease
from stssl.base.mirror import Mirror, cache_folder, mirror_of
from stssl.base.paths import is_url
from stssl.training.remote_checkpoints import COMMIT_FILE


def is_sent(name: str) -> bool:
    """Return True if a file of a run is sent as it is. Checkpoints are sent and committed in a certain order."""
    return name not in (COMMIT_FILE, LOCK_FILE) and not name.startswith("ray/") and not _is_checkpoint(name)


def is_fetched(name: str) -> bool:
    """Return True if a file of a run is fetched whenever the run is opened: it is small, and commands read it."""
    inner = name.startswith("probe/") and name.count("/") > 1  # runs of their own
    return is_sent(name) and not inner and not name.startswith("tensorboard/") and not name.endswith(".safetensors")


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/") and name.endswith(".pt")


class RunPlace:
    """Manage where the files of a run lie.

    Attributes:
        place: Path or URL of the run's folder, for messages and commands.
        path: Folder with the run's files. For a run in an object store: this process's copy.
        mirror: Connection with the object store; None for a run on a disk.
    """

    def __init__(self, place: str | Path) -> None:
        """Set the place by its path or URL. Create and fetch nothing yet.

        Raises:
            DataError: The URL is not one of an object store.
        """
        self.place = str(place)
        self.mirror: Mirror | None = mirror_of(self.place) if is_url(self.place) else None
        self.path = Path(place) if self.mirror is None else self.mirror.folder

    def refresh(self) -> None:
        """Fetch the run's files from the object store, without checkpoints and weights. Do nothing on a disk.

        Raises:
            DataError: The object store cannot be read.
        """
        if self.mirror is not None:
            self.mirror.pull(is_fetched)

    def publish(self) -> None:
        """Send the files that have changed here to the object store. Do nothing on a disk.

        Raises:
            DataError: The object store refuses a file, or does not answer.
        """
        if self.mirror is not None:
            self.mirror.push(is_sent)

    def remove(self, name: str) -> None:
        """Remove a file of the run, here and in the object store.

        Raises:
            DataError: The object store refuses it, or does not answer.
        """
        if self.mirror is not None:
            self.mirror.remote.remove(name)
        (self.path / name).unlink(missing_ok=True)

    def follow_file(self, name: str) -> None:
        """Fetch the newest content of one file, if another process writes it. Keep the old one if that fails."""
        if self.mirror is not None:
            with contextlib.suppress(DataError):
                self.mirror.fetch(name)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which no other process trains a run in an object store.

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
        """Let a thread send changed files every few seconds until `end_sending`. Do nothing on a disk."""
        if self.mirror is not None:
            self.mirror.start(is_sent)

    def end_sending(self) -> None:
        """Send the last changes and stop the thread. A failure must not hide how the run ended: it is not raised."""
        if self.mirror is not None and self.mirror.writing:
            with contextlib.suppress(StsslError):
                self.publish()
            self.mirror.stop()

    def check_sending(self) -> None:
        """Raise the error that ended the sending of files, if any.

        Raises:
            StsslError: The object store refuses files.
        """
        if self.mirror is not None:
            self.mirror.check()

    @property
    def for_ray(self) -> Path:
        """Return the folder for Ray's own files: the run's folder, or one of this machine for an object store."""
        # The workers do not read it: Ray writes only how far its own checkpoints are, and a run reports none to Ray.
        return self.path if self.mirror is None else cache_folder() / "ray" / self.path.parent.name / self.path.name
