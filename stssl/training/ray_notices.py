"""Tell the ranks of a run on Ray that a signal asked its driver to end, or that a node will be taken away.

The driver (the process that started the run) gets the signal of Ctrl-C, of `ray job stop` or of a batch system. It
writes the signal's number to Ray's key-value store, under a key of this start of the run. A thread of rank 0 reads this
key. `Notices` then tells all ranks.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from stssl.base.stopping import SIGNALS, TOGETHER_S, Asked
from stssl.training.notices import Outside

POLL_S = 0.5
"""Seconds after which rank 0 reads the driver's key again."""
NODES_S = 10.0
"""Seconds after which rank 0 asks Ray again if a node will be taken away."""


class Post:
    """Write and read values in Ray's key-value store, under keys that belong to one start of a run."""

    def __init__(self, name: str) -> None:
        """Set `name` as the beginning of all keys. No other start of a run may use the same name."""
        self._name = f"stssl:{name}"

    def write(self, key: str, value: str) -> None:
        """Write a value into Ray's key-value store, under a key of this start of the run. Replace an older value."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self._name}:{key}", value, overwrite=True)

    def read(self, key: str) -> str | None:
        """Return the value of a key in Ray's key-value store; None if the key has no value."""
        from ray.experimental.internal_kv import _internal_kv_get

        found: bytes | None = _internal_kv_get(f"{self._name}:{key}")
        return None if found is None else found.decode()


class RayOutside(Outside):
    """Find out on a Ray worker whether a signal asked the run's driver to end, or a node will be taken away."""

    def __init__(self, post: Post) -> None:
        """Store `post`, which reads what the driver writes for this start of the run."""
        self.post = post
        self._by: signal.Signals | None = None
        self._asked_at = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Return a context in which a thread looks for the driver's signal. Tell the driver that training has begun."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(POLL_S):
                if found := self.post.read("stop"):
                    self._by = signal.Signals(int(found))
                    return

        thread = threading.Thread(target=look, name="stssl-notices", daemon=True)
        self.post.write("training", "yes")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def asked(self) -> signal.Signals | None:
        """Return the signal that asked the driver to end; None if no signal came so far."""
        return self._by

    def due(self) -> bool:
        """Return True if rank 0 must ask Ray again about leaving nodes: `NODES_S` seconds after it did so last."""
        if time.monotonic() - self._asked_at < NODES_S:
            return False
        self._asked_at = time.monotonic()
        return True

    def node_leaves(self) -> bool:
        """Return True if Ray knows that a node of this run will be taken away. All ranks call this together."""
        import ray.train

        # Look the function up by name: Ray has it only since the summer of 2026, and older releases cannot tell.
        ask = getattr(ray.train, "get_preemption_info", None)
        return ask is not None and ask() is not None


@contextlib.contextmanager
def passing_signals(post: Post) -> Iterator[None]:
    """Return a context in which the driver passes its first signal on to the ranks, which save and end the run.

    A second signal raises `Asked` at once. So does the first signal if training has not begun: there is nothing to
    save yet. `post` writes the signal's number to Ray's key-value store, where rank 0 reads it.

    Raises:
        Asked: A signal asked the process to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[tuple[signal.Signals, float]] = []
    at_once, wake, main = threading.Event(), threading.Event(), threading.main_thread().ident

    def ask(number: int, frame: FrameType | None) -> None:
        if at_once.is_set() or (first and time.monotonic() - first[0][1] > TOGETHER_S):
            raise Asked(number)
        if not first:
            first.append((signal.Signals(number), time.monotonic()))
            wake.set()

    def forward() -> None:
        wake.wait()
        if not first:
            return
        number, passed = first[0][0], False
        try:
            if post.read("training"):
                post.write("stop", str(int(number)))
                passed = True
        finally:
            if not passed and main is not None:
                at_once.set()
                signal.pthread_kill(main, number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    thread = threading.Thread(target=forward, name="stssl-signals", daemon=True)
    thread.start()
    for number in taken:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        wake.set()
        thread.join()


def new_name() -> str:
    """Return a name for a start of a run that no other start has."""
    return os.urandom(8).hex()
