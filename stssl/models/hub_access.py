"""Use Hugging Face's hub without long silent waits: test first whether it answers, else use only its local cache."""

import contextlib
import logging
from collections.abc import Iterator

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

    before, log = constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub")
    level, offline = log.level, before
    if not offline:
        try:
            head(constants.ENDPOINT, timeout=WAIT)
        except (HTTPError, InvalidURL, OSError):
            offline = True
    constants.HF_HUB_OFFLINE = offline
    log.setLevel(logging.ERROR)
    try:
        yield offline
    finally:
        constants.HF_HUB_OFFLINE = before
        log.setLevel(level)
