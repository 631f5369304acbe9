"""Make the logger that the whole package writes to, and show its messages to the user."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LOG = logging.getLogger("stssl")
"""The terminal shows warnings without any set-up, and information while `shown_messages` lasts."""


def plain_printer(console: "Console") -> Callable[[str], None]:
    """Return a function that prints a text on a rich console unchanged: without colors, markup or added line breaks."""
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)


class _Shower(logging.Handler):
    """Pass each log message to a function that shows it to the user as one line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show(self.format(record))


@contextlib.contextmanager
def shown_messages(show: Callable[[str], None]) -> Iterator[None]:
    """Return a context in which the package's log messages, from level INFO up, are shown to the user.

    If the calling program has set up logging, change nothing: its own handlers get the messages.

    Args:
        show: Function that shows one message to the user.
    """
    if LOG.hasHandlers():
        yield
        return
    handler, level = _Shower(show), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
