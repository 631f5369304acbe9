"""Let one process at a time work on a folder in an object store.

The process writes the file `lock.json` into the folder if the folder has none, and writes it again every few seconds.
A lock that is not written again for `EXPIRE_S` seconds belongs to a process that died: another may take it over.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from stssl.base.errors import RunError, StsslError
from stssl.base.logs import LOG
from stssl.base.processes import machine_start, process_space, process_start
from stssl.base.remote_folder import ObjectMark, OtherWriterError, RemoteFolder

LOCK_FILE = "lock.json"
RENEW_S = 15.0
"""Seconds between two renewals of a lock."""
EXPIRE_S = 60.0
"""A lock that was not renewed for this many seconds is free. Only this process's clock counts."""
LOOK_S = 5.0
"""Seconds between two looks at the lock of another process."""


class Lease:
    """Lock one folder in an object store for this process. A thread writes the lock again while it is held."""

    def __init__(self, remote: RemoteFolder, doing: str) -> None:
        """Set the folder to lock. Lock nothing yet.

        Args:
            remote: Folder in the object store.
            doing: What the holder does, for messages, such as "trains this run".
        """
        self.remote, self.doing = remote, doing
        self._mark: ObjectMark | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Return a context in which this process holds the lock.

        If another process takes the lock during the context, this process only logs a warning.

        Raises:
            RunError: Another process holds the lock.
            DataError: The bucket does not exist or refuses the file, or the store does not answer.
        """
        self._take()
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, name="stssl-lease", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            if self._mark is not None:
                with contextlib.suppress(StsslError):  # an unreachable store must not hide how the work ended
                    self.remote.remove(LOCK_FILE)

    def _take(self) -> None:
        found = self.remote.read_marked(LOCK_FILE)
        if found is not None:
            found = self._left_behind(*found)
        try:
            self._mark = self.remote.replace(LOCK_FILE, _content(), None if found is None else found[1])
        except OtherWriterError:
            raise self._refused("") from None

    def _left_behind(self, data: bytes, mark: ObjectMark) -> tuple[bytes, ObjectMark] | None:
        """Check that the process that holds the lock died.

        If this machine cannot tell, wait to see if the lock is renewed.

        Args:
            data: Content of the lock.
            mark: Entity tag and version of this content. If they change, the holder is alive.

        Returns:
            `data` and `mark`; None if the lock was removed during the wait.

        Raises:
            RunError: The holder is alive.
        """
        holder, since = _holder(data), time.monotonic()
        alive = _is_alive(holder)
        if alive is None:
            LOG.warning("%s: looking if the process that holds its lock is alive%s", self.remote.url, _who(holder))
        while alive is None and time.monotonic() - since < EXPIRE_S:
            time.sleep(LOOK_S)
            found = self.remote.read_marked(LOCK_FILE)
            if found is None:
                return None
            alive = True if found[1] != mark else None
        if alive:
            raise self._refused(_who(holder))
        return data, mark

    def _refused(self, who: str) -> RunError:
        return RunError(f"{self.remote.url}: another process {self.doing}{who}. Wait for it, or stop it.")

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self._mark = self._renewed()
            except OtherWriterError as error:
                # Only warn: this thread cannot end the run. The run ends when it sends its next checkpoint, because
                # this also notices the other process.
                LOG.warning("%s: this process has lost its lock", error)
                self._mark = None
                return
            except StsslError as error:
                LOG.warning("%s; the lock was not renewed", error)

    def _renewed(self) -> ObjectMark:
        """Write the lock again, and return the mark (entity tag and version) of its new content.

        Raises:
            OtherWriterError: Another process has taken or removed the lock.
            DataError: The store refuses the lock, or does not answer.
        """
        try:
            return self.remote.replace(LOCK_FILE, _content(), self._mark)
        except OtherWriterError:
            # The store may have taken an earlier renewal although its answer was lost. Then the lock has a mark that
            # this process does not know, but it still belongs to this process.
            found = self.remote.read_marked(LOCK_FILE)
            if found is None or _holder(found[0]) | {"at": None} != _myself() | {"at": None}:
                raise
            return found[1]


def _content() -> bytes:
    """Return the content of a lock that this process holds, as JSON: a description of the process, and the time."""
    return json.dumps(_myself() | {"at": time.time_ns()}).encode()


def _myself() -> dict[str, object]:
    """Return values by name that identify this process.

    They are the machine, the id of its last start, the PID namespace, the process number and the start of the process.
    """
    number = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": machine_start(),
        "space": process_space(),
        "pid": number,
        "started": process_start(number),
    }


def _holder(data: bytes) -> dict[str, object]:
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(holder: dict[str, object]) -> bool | None:
    """Return True if the process that holds a lock is alive, and False if it died.

    Return None if it runs on another machine: then only a wait can show if the lock is still renewed.

    Args:
        holder: Description of the process in the lock. It may be empty.
    """
    own, number = _myself(), holder.get("pid")
    here = own["boot"] and all(holder.get(name) == own[name] for name in ("host", "boot", "space"))
    if not here or not isinstance(number, int):
        return None
    return process_start(number) == holder.get("started")


def _who(holder: dict[str, object]) -> str:
    """Return words for a message about the process that holds a lock, such as ` (process 7 on node1)`.

    Args:
        holder: Description of the process in the lock. If it lacks the process or the machine, return an empty text.
    """
    number, host = holder.get("pid"), holder.get("host")
    known = isinstance(number, int) and isinstance(host, str) and host.isprintable()
    return f" (process {number} on {str(host)[:64]})" if known else ""
