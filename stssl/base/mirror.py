"""Keep a folder of this process and a folder in an object store the same.

Results are written to a local folder, as always, and sent to the object store. Each process has local folders of its
own, in the system's folder for temporary files or in STSSL_RUN_CACHE. They are removed when the process ends. So a
command always sees what the object store has, not what an earlier process left on this machine. Only `shared_object`
lets processes share local files: checkpoints, under names that are hashes of their content.
"""

import atexit
import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from stssl.base.errors import RunError, StsslError
from stssl.base.logs import LOG
from stssl.base.processes import process_space, process_start
from stssl.base.remote_folder import Listed, RemoteFolder
from stssl.base.whole_files import cannot_write, write_whole

PAUSE_S = 3.0
"""Seconds between two looks for changed files of a run."""
BUSY = 9
"""Sending takes at most one part in `1 + BUSY` of the time: after a slow upload, the next look comes later."""
FETCHERS = 8
"""Number of files that are fetched at the same time."""
MOST_AGE_S = 24 * 3600
"""Fetched checkpoints stay on this machine for this many seconds after their last use."""

ChoosesFile = Callable[[str], bool]
"""Function that chooses files by their names relative to the folder."""


class _Synced(NamedTuple):
    """Describe a file when it was last the same in the local folder and in the object store.

    Attributes:
        tag: Entity tag of the file in the object store; None if unknown.
        size: Size of the local file in bytes.
        changed_ns: Time of the last change of the local file, in nanoseconds.
    """

    tag: str | None
    size: int
    changed_ns: int


def cache_folder() -> Path:
    """Return the folder for this user's local copies of results in object stores. Make it if it is missing.

    This is the folder in the variable STSSL_RUN_CACHE. If it is not set, it is a folder for this user in the system's
    folder for temporary files.

    Raises:
        RunError: The folder cannot be made, or it belongs to another user.
    """
    given = os.environ.get("STSSL_RUN_CACHE")
    folder = Path(given).absolute() if given else Path(tempfile.gettempdir(), f"stssl-results-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        strange = folder.lstat().st_uid != os.getuid()
    except OSError as error:
        raise RunError(f"{cannot_write(folder, error)} Or set STSSL_RUN_CACHE.") from None
    if strange and not given:
        raise RunError(f"{folder} belongs to another user. Set STSSL_RUN_CACHE to a folder of your own.")
    return folder


class Mirror:
    """Copy files between a local folder and one folder in an object store, both ways. Threads may share this object.

    Attributes:
        remote: The folder in the object store.
        folder: The local folder.
        writing: True while this process writes the run: the local files then are the newest, and none is fetched.
    """

    def __init__(self, url: str, folder: Path) -> None:
        """Set the URL of the folder in the object store, and the local folder. Fetch nothing yet."""
        self.remote, self.folder = RemoteFolder(url), folder
        self.writing = False
        self._synced: dict[str, _Synced] = {}
        self._lock = threading.RLock()
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._trouble: StsslError | None = None

    def pull(self, wanted: ChoosesFile) -> dict[str, Listed]:
        """Make the wanted local files the same as in the object store.

        Fetch files that differ, and remove local files that the object store lacks. While this process writes the
        run, change nothing.

        Args:
            wanted: Function that takes a file's name and returns True if the file is wanted. All other local files stay
                as they are.

        Returns:
            Size and entity tag of all files in the object store, by name.

        Raises:
            DataError: The object store cannot be read.
            RunError: A local file cannot be written.
        """
        with self._lock:
            listed = self.remote.listed()
            if self.writing:
                return listed
            with ThreadPoolExecutor(FETCHERS, "stssl-fetch") as pool:
                chosen = [name for name in listed if wanted(name)]
                list(pool.map(self._fetch, chosen, [listed[name] for name in chosen]))
            for name in self._local():
                if wanted(name) and name not in listed:
                    (self.folder / name).unlink(missing_ok=True)
            return listed

    def fetch(self, name: str) -> None:
        """Fetch the file `name` from the object store. If the object store lacks the file, remove the local file.

        While this process writes the run, do nothing.
        """
        with self._lock:
            if not self.writing:
                data = self.remote.read(name)
                self._keep(name, data, None)

    def _fetch(self, name: str, about: Listed) -> None:
        known = self._synced.get(name)
        if about.tag is None or known is None or known.tag != about.tag or known != self._now(name, about.tag):
            self._keep(name, self.remote.read(name), about.tag)

    def _keep(self, name: str, data: bytes | None, tag: str | None) -> None:
        path = self.folder / name
        if data is None:
            path.unlink(missing_ok=True)
            return
        write_whole(path, data)
        now = self._now(name, tag)
        if now is not None:
            self._synced[name] = now

    def _now(self, name: str, tag: str | None) -> _Synced | None:
        try:
            about = (self.folder / name).stat()
        except OSError:
            return None
        return _Synced(tag, about.st_size, about.st_mtime_ns)

    def _local(self) -> list[str]:
        """Return the sorted paths of the files in the local folder, relative to it, without hidden, temporary files."""
        found = []
        for parent, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [str(Path(parent, name).relative_to(self.folder)) for name in files if not name.startswith(".")]
        return sorted(found)

    def push(self, wanted: ChoosesFile) -> None:
        """Send the wanted local files that have changed since they were last fetched or sent.

        Args:
            wanted: Function that takes a file's name and returns True if the file is wanted.

        Raises:
            DataError: The object store refuses a file, or does not answer.
        """
        with self._lock:
            for name in self._local():
                now, known = self._now(name, None), self._synced.get(name)
                if not wanted(name) or now is None or (known is not None and known[1:] == now[1:]):
                    continue
                # Skip a missing file: the code that writes results may have removed it after the files were listed.
                with contextlib.suppress(FileNotFoundError):
                    data = (self.folder / name).read_bytes()
                    # Send only whole lines: another thread may not have finished writing the last line.
                    self.remote.write(name, data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data)
                    self._synced[name] = now

    def start(self, wanted: ChoosesFile) -> None:
        """Start a thread that sends the wanted local files that have changed, every few seconds.

        From now on, this process writes the run: the local files are the newest, and none is fetched.

        Args:
            wanted: Function that takes a file's name and returns True if the file is wanted.
        """
        self.writing, self._trouble = True, None
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._follow, args=(wanted, self._stop), name="stssl-mirror", daemon=True
            )
            self._thread.start()

    def _follow(self, wanted: ChoosesFile, stop: threading.Event) -> None:
        pause, warned = PAUSE_S, False
        while not stop.wait(pause):
            begun = time.monotonic()
            try:
                self.push(wanted)
                warned = False
            except StsslError as error:
                if not error.passing:
                    self._trouble = error
                    return
                if not warned:
                    LOG.warning("%s; metrics wait here until it answers", error)
                warned = True
            pause = max(PAUSE_S, BUSY * (time.monotonic() - begun))

    def check(self) -> None:
        """Raise the error that ended the thread that sends files, if an error ended it.

        Raises:
            StsslError: The object store refuses files.
        """
        if self._trouble is not None:
            raise self._trouble

    def stop(self) -> None:
        """End the thread that sends files. From now on, `pull` and `fetch` fetch files from the object store again."""
        if self._thread is not None and self._stop is not None:
            self._stop.set()
            self._thread.join()
        self._thread, self._stop, self.writing = None, None, False


_MIRRORS: dict[tuple[int, str], Mirror] = {}
_GUARD = threading.Lock()


def mirror_of(url: str) -> Mirror:
    """Return this process's `Mirror` of the folder in an object store that a URL names.

    In one process, the same URL always gives the same object.

    Raises:
        DataError: The URL is not one of an object store.
        RunError: The local folder cannot be made.
    """
    with _GUARD:
        key = os.getpid(), url
        if key not in _MIRRORS:
            # Name the local folder like the last folder of the URL. This is the name of the run, and commands take
            # the name of a run from its folder.
            mark = blake2b(url.encode(), digest_size=6).hexdigest()
            _MIRRORS[key] = Mirror(url, _own_folder() / mark / url.rsplit("/", 1)[-1])
        return _MIRRORS[key]


def _own_folder() -> Path:
    """Return this process's folder for local copies; make it if it is missing.

    Also remove the folders of processes that were killed before they could remove them.
    """
    # Give each machine and container a folder of its own. They may share the cache, and this machine cannot find out
    # if a process of another machine is alive.
    kept = cache_folder() / "processes" / f"{socket.gethostname()}-{process_space()}"
    own = kept / _process_name(os.getpid())
    if own.exists():
        return own
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for other in kept.iterdir():
            number = other.name.partition("-")[0]
            if number.isdecimal() and other.name != _process_name(int(number)):
                shutil.rmtree(other, ignore_errors=True)
        own.mkdir()
    except OSError as error:
        raise RunError(f"{cannot_write(own, error)} Or set STSSL_RUN_CACHE.") from None
    atexit.register(_remove, own, os.getpid())
    return own


def _process_name(number: int) -> str:
    """Return a name that only one process ever has: `number` (its process number) and the time of its start."""
    return f"{number}-{process_start(number)}"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not remove its parent's files
        shutil.rmtree(folder, ignore_errors=True)


def shared_object(name: str, fetch: Callable[[], bytes]) -> Path:
    """Return the path of a local file that all processes of this user share. If it is missing, fetch its content.

    After a fetch, remove the shared files that were not used for a day.

    Args:
        name: Name that identifies the content, such as its hash.
        fetch: Function that downloads and returns the content.

    Raises:
        RunError: The file cannot be written.
    """
    folder = cache_folder() / "objects"
    path = folder / name
    with contextlib.suppress(OSError):
        os.utime(path)  # mark the file as used just now: files that nobody uses are removed after a day
    if not path.is_file():
        write_whole(path, fetch())
        now = time.time()
        for other in folder.iterdir():
            with contextlib.suppress(OSError):
                if now - other.stat().st_mtime > MOST_AGE_S:
                    other.unlink()
    return path
