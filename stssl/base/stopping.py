"""Turn the signals that end a command into an exception, so that the command can print one line and end."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from stssl.base.errors import StoppedError

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
"""Signals that end a command, and their names in messages."""
TOGETHER_S = 1.0
"""Signals within this many seconds count as one. The terminal sends Ctrl-C to all processes, and some send it on."""


_asked: list[signal.Signals] = []
"""Signals that asked this process to end.

This list is needed, since Ray replaces the exception with a `KeyboardInterrupt` that does not name the signal.
"""


class Asked(KeyboardInterrupt):
    """Report that a signal asked the process to end. It is a KeyboardInterrupt, so code treats it like Ctrl-C."""

    def __init__(self, number: int) -> None:
        """Note the signal that arrived. `stopped` computes the exit code from it.

        Args:
            number: Number of the signal.
        """
        super().__init__()
        _asked.append(signal.Signals(number))


def stopped(words: str = "What is written is whole; run the same command again to resume.") -> StoppedError:
    """Return the error that a command raises after a signal. Its exit code is 128 plus the number of the signal.

    Args:
        words: Sentence that tells the user what was saved and how to resume.
    """
    by = _asked[0] if _asked else signal.SIGINT
    return StoppedError(f"interrupted ({SIGNALS[by]}). {words}", 128 + by)


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Return a context in which a signal that ends the process (such as Ctrl-C) raises the exception `Asked`.

    At the end of the context, `Asked` becomes a `StoppedError` for the user. If the process ignores a signal already,
    as under `nohup`, it continues to ignore it. In another thread than the main one, the context does nothing.

    Raises:
        StoppedError: A signal asked the process to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    at: list[float] = []
    _asked.clear()

    def end(number: int, frame: FrameType | None) -> None:
        if at and time.monotonic() - at[-1] < TOGETHER_S:
            return
        at.append(time.monotonic())
        raise Asked(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    except (KeyboardInterrupt, StoppedError) as asked:
        # Ignore signals from now on: a second one must not interrupt the code that closes files and workers.
        before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        if isinstance(asked, StoppedError):
            raise
        raise stopped() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
