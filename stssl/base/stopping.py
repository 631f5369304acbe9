"""Signals that ask a command to end: it does so as after Ctrl-C, whatever it was about, in one line."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from stssl.base.errors import StoppedError

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
"""What ends a command, and what it is called in messages."""
TOGETHER_S = 1.0
"""Signals so close to each other count as one: some programs hand on a Ctrl-C that the terminal sends to all."""


_asked: list[signal.Signals] = []
"""Signals that asked this process to end; Ray makes a new `KeyboardInterrupt`, which could not tell its signal."""


class Asked(KeyboardInterrupt):
    """The process got a signal to end; passes through code as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        """Remember the signal."""
        super().__init__()
        _asked.append(signal.Signals(number))


def stopped(words: str = "What is written is whole; run the same command again to go on.") -> StoppedError:
    """Make the error for a command that a signal ended, with the signal's exit code."""
    by = _asked[0] if _asked else signal.SIGINT
    return StoppedError(f"interrupted ({SIGNALS[by]}). {words}", 128 + by)


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Raise `Asked` where a signal asks the process to end; one that is ignored, as under `nohup`, stays ignored.

    Raises:
        StoppedError: One did. From then on signals are ignored, so that nothing disturbs what closes files and workers.
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
        before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        if isinstance(asked, StoppedError):
            raise
        raise stopped() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
