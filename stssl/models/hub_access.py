"""Reach Hugging Face without long silent waits: one short question first, then the hub or its cache."""

import contextlib
import logging
from collections.abc import Iterator

WAIT = 10.0
"""Seconds to wait for the hub's first answer."""
UNREACHED = "it cannot be reached, and its cache (HF_HOME) does not have the file"


@contextlib.contextmanager
def short_of_hub() -> Iterator[bool]:
    """In a `with` block, let Hugging Face's client use only its cache if the hub does not answer. Hide its warnings.

    The client itself tries each request six times, which takes a minute.

    Yields:
        True if only the cache is used.
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
