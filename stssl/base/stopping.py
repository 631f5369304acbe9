"""Turn signals that ask a command to end into an exception, so that every command ends in one line."""

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
"""Signals within this many seconds count as one: the terminal sends Ctrl-C to all processes, and some send it on."""


_asked: list[signal.Signals] = []
"""Signals that asked this process to end.

They are kept here, since Ray replaces the exception by a `KeyboardInterrupt` that does not say which signal it was.
"""


class Asked(KeyboardInterrupt):
    """Report that a signal asked the process to end; code passes it on as it passes on Ctrl-C."""

    def __init__(self, number: int) -> None:
        """Store the signal for `stopped`."""
        super().__init__()
        _asked.append(signal.Signals(number))


def stopped(words: str = "What is written is whole; run the same command again to resume.") -> StoppedError:
    """Make the error for a command that a signal ended, with the signal's exit code."""
    by = _asked[0] if _asked else signal.SIGINT
    return StoppedError(f"interrupted ({SIGNALS[by]}). {words}", 128 + by)


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Raise `Asked` in the main thread when a signal asks the process to end, for as long as the context lasts.

    Signals that are ignored already, as under `nohup`, stay ignored.

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
        # Ignored from now on, so that a second signal does not interrupt the code that closes files and workers.
        before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        if isinstance(asked, StoppedError):
            raise
        raise stopped() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
