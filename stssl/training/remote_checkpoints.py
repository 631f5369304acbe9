"""Send the checkpoints of a run to an object store: files first, then a mark that they are whole and belong together.

The mark is `checkpoints/committed.json`. It names each checkpoint by the digest at the end of its file. A checkpoint
that the mark does not name does not count: its run died between the upload and the mark. Such a run resumes from the
checkpoints that the mark names. The object store still has them, because an upload first copies `last.pt` to
`previous.pt`.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stssl.base.errors import DataError, RunError
from stssl.base.logs import LOG
from stssl.base.mirror import Mirror, shared_object
from stssl.base.remote_folder import ObjectMark, OtherWriterError
from stssl.base.whole_files import write_whole

COMMIT_FILE = "checkpoints/committed.json"
COMMITTED = ("last", "previous", "best")
DIGEST_BYTES = 16
TAIL_BYTES = DIGEST_BYTES + 8
"""Number of bytes at the end of a checkpoint that tell its content: digest and mark."""
TRIES = 3
"""How often to look again if the run replaces its checkpoints during a fetch."""


def object_name(name: str) -> str:
    """Return the path of checkpoint `name` relative to the run's folder: `checkpoints/last.pt` for `last`."""
    return f"checkpoints/{name}.pt"


class RemoteCheckpoints:
    """Fetch the checkpoints of one run from an object store, and send them to it."""

    def __init__(self, mirror: Mirror, send_others: Callable[[], None]) -> None:
        """Store how to reach the object store. Fetch nothing yet.

        Args:
            mirror: Connection with the run's folder in the object store.
            send_others: Function that sends the run's other files that have changed, such as its metrics.
        """
        self.mirror, self.remote, self.send_others = mirror, mirror.remote, send_others
        self._committed: dict[str, str] = {}
        self._mark: ObjectMark | None = None
        self._at_last: str | None = None

    def fetch(self, *names: str) -> None:
        """Fetch the named checkpoints (by default all) that the run has committed and this machine does not have.

        A checkpoint is committed if the mark in the object store names it, so it is whole. Remove local checkpoints
        that the run has not committed. Do nothing if this process trains the run.

        Raises:
            DataError: The object store cannot be read, or the run replaces its checkpoints again and again.
            RunError: A local file cannot be written.
        """
        if self.mirror.writing:
            return
        for _ in range(TRIES):
            self._read_mark()
            found = [self._fetched(name) for name in names or COMMITTED]
            if all(found):
                return
        lost = [name for name in names or COMMITTED if name in self._committed and not self._local(name).exists()]
        LOG.warning("%s lacks what its run has committed: %s", self.remote.url, ", ".join(lost))
        if "last" in lost and not (self._fetched("previous") and self._local("previous").exists()):
            raise DataError(
                f"{self.remote.url} lacks the checkpoints that its run has committed. Put them back, or delete the run "
                "to train it again."
            )

    def any_committed(self, *names: str) -> bool:
        """Return True if the run has committed at least one of the named checkpoints. Do not fetch them.

        A checkpoint is committed if the mark in the object store names it, so it is whole.

        Args:
            names: Names of checkpoints, such as `last`.

        Raises:
            DataError: The object store cannot be read.
        """
        if self.mirror.writing:
            return any(self._local(name).exists() for name in names)
        self._read_mark()
        return any(name in self._committed for name in names)

    def begin(self) -> None:
        """Prepare to send checkpoints: fetch all, and replace the store's `best.pt` if it is not the committed one.

        `best.pt` is older if a process was killed between the commit and the replacement of `best.pt`.
        """
        self.fetch()
        self._at_last = self._digest_at("last")
        if "best" in self._committed and self._digest_at("best") != self._committed["best"]:
            self._copy("last" if self._at_last == self._committed["best"] else "", "best")

    def send(self, best: bool) -> None:
        """Send the local `last.pt` to the object store, and commit it: name it in `committed.json`.

        Send the run's other files before the commit: a resumed run cannot restore metrics of earlier steps.

        Args:
            best: True if `last.pt` is the best checkpoint, too.

        Raises:
            DataError: The object store refuses a file, or does not answer.
            OtherWriterError: Another process trains the same run.
        """
        self.send_others()
        data = self._local("last").read_bytes()
        digest, before = _digest(data[-TAIL_BYTES:]), self._committed.get("last")
        # Do not copy an uncommitted `last.pt`, which a kill between upload and commit leaves: the committed checkpoint
        # is already in `previous.pt` and would be lost.
        if before is not None and before == self._at_last:
            self._copy("last", "previous")
        self.remote.write(object_name("last"), data)
        self._at_last = digest
        marked = self._committed | {"last": digest} | ({"best": digest} if best else {})
        marked |= {"previous": before} if before is not None else {}
        content = json.dumps(marked, indent=1).encode()
        try:
            self._mark = self.remote.replace(COMMIT_FILE, content, self._mark)
        except OtherWriterError:
            raise OtherWriterError(
                f"{self.remote.url}: another process trains this run, so this one ends. Wait for it, or stop it."
            ) from None
        self._committed = marked
        if best:  # copy only after the commit: until then, the old mark names the old `best.pt`
            self._copy("last", "best")

    def _copy(self, name: str, target: str) -> None:
        """Copy the file of checkpoint `name` to that of checkpoint `target` in the object store.

        If that fails, or if `name` is empty, send the local file of `target`, if there is one.
        """
        with contextlib.suppress(DataError, FileNotFoundError):
            if name:
                return self.remote.copy(object_name(name), object_name(target))
        if self._local(target).exists():
            self.remote.write(object_name(target), self._local(target).read_bytes())
        return None

    def _read_mark(self) -> None:
        found = self.remote.read_marked(COMMIT_FILE)
        self._committed, self._mark = {}, None
        if found is None:
            # A run that a user copied into the bucket has no mark. If it is finished, its checkpoints must be whole, so
            # take them as committed.
            if self.remote.read("done.json") is not None:
                present = {name: self._digest_at(name) for name in COMMITTED}
                self._committed = {name: digest for name, digest in present.items() if digest is not None}
            return
        try:
            marked = json.loads(found[0].decode())
            self._committed = {name: str(marked[name]) for name in COMMITTED if name in marked}
        except (ValueError, TypeError, RecursionError):
            raise DataError(
                f"{self.remote.url}/{COMMIT_FILE} is damaged. Put it back, or remove the run to train it again."
            ) from None
        self._mark = found[1]

    def _fetched(self, name: str) -> bool:
        """Fetch checkpoint `name` if the run has committed it, else remove its local file. Return True if this worked.

        Return False if the object store does not have the committed content. For `previous`, return True even then: the
        local file is missing, but a run can do without it.
        """
        digest, path = self._committed.get(name), self._local(name)
        if digest is None:
            path.unlink(missing_ok=True)
            return True
        if path.exists() and _digest_of(path) == digest:
            return True
        path.unlink(missing_ok=True)
        for place in (name, *(other for other in COMMITTED if other != name)):
            if self._digest_at(place) == digest:
                kept = shared_object(f"{digest}.pt", partial(self._download, place))
                same = _digest_of(kept) == digest
                if same:
                    _link(kept, path)
                if not same or not _is_whole(kept):
                    kept.unlink(missing_ok=True)
                if same:
                    return True
        # Accept that `previous.pt` is lost: a kill between its replacement and the commit leaves other content in it.
        return name == "previous"

    def _download(self, name: str) -> bytes:
        return self.remote.read(object_name(name)) or b""

    def _digest_at(self, name: str) -> str | None:
        tail = self.remote.tail(object_name(name), TAIL_BYTES)
        return None if tail is None else _digest(tail)

    def _local(self, name: str) -> Path:
        return self.mirror.folder / object_name(name)


def _digest(tail: bytes) -> str:
    return tail.hex()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return _digest(file.read())


def _is_whole(path: Path) -> bool:
    """Return True if a checkpoint's file is undamaged: the digest at its end fits its content."""
    data = memoryview(path.read_bytes())
    return hashlib.blake2b(data[:-TAIL_BYTES], digest_size=DIGEST_BYTES).digest() == data[-TAIL_BYTES:][:DIGEST_BYTES]


def _link(source: Path, target: Path) -> None:
    """Make `target`, in the run's folder, a hard link to `source`, a file of this machine's shared cache.

    On file systems without hard links, copy the file.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except OSError:
        try:
            write_whole(target, source.read_bytes())
        except OSError as error:
            raise RunError(f"cannot read {source}: {error.strerror}") from None
