"""Use Hugging Face's hub without long silent waits: test first whether it answers, else use only its local cache.

Of the ranks (training processes) on a machine, one asks the hub, and the others read what it left in the cache.
"""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

from stssl.base.distributed import gather_texts, rank, world_size
from stssl.base.errors import ConfigError

Read = TypeVar("Read")

WAIT = 10.0
"""Seconds to wait for the hub's first answer."""
UNREACHED = "it cannot be reached, and its cache (HF_HOME) does not have the file"


@contextlib.contextmanager
def short_of_hub() -> Iterator[bool]:
    """Test whether Hugging Face's hub answers. If not, let its client use only its local cache inside a `with` block.

    Without this test, the client would try each request six times, which takes a minute. The client's warnings are
    hidden inside the block.

    Yields:
        True if only the cache is used: the hub does not answer, or the user chose offline mode (`HF_HUB_OFFLINE`).
    """
    from httpx import HTTPError, InvalidURL, head
    from huggingface_hub import constants

    log = logging.getLogger("huggingface_hub")
    level, offline = log.level, constants.HF_HUB_OFFLINE
    if not offline:
        try:
            head(constants.ENDPOINT, timeout=WAIT)
        except (HTTPError, InvalidURL, OSError):
            offline = True
    log.setLevel(logging.ERROR)
    try:
        with hub_offline(offline):
            yield offline
    finally:
        log.setLevel(level)


def read_once_a_machine(read: Callable[[], Read]) -> Read:
    """Call a function that reads from the hub on one rank of each machine, then on the others from the cache alone.

    All ranks call this together. They wait for each other, at most as long as `launch.collective_timeout_s` says.

    Args:
        read: Function that downloads weights, or takes them from the cache, and returns them.

    Raises:
        ConfigError: The weights cannot be loaded. All ranks raise the error of the first one that met it.
    """
    if world_size() == 1:
        return read()
    machines = gather_texts(socket.gethostname())
    found: Read | None = None
    problem = ""
    if machines.index(machines[rank()]) == rank():
        try:
            found = read()
        except ConfigError as error:
            problem = str(error)
    for told in gather_texts(problem):
        if told:
            raise ConfigError(told)
    if found is None:
        # Machines may share a name, so the cache of this one may still be empty.
        with contextlib.suppress(ConfigError), hub_offline(True):
            found = read()
    return read() if found is None else found


@contextlib.contextmanager
def hub_offline(offline: bool) -> Iterator[None]:
    """In a `with` block, let Hugging Face's client use only its cache if `offline`, else let it ask the hub."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
