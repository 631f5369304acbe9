"""Hold the logger that the whole package writes to."""

import logging

LOG = logging.getLogger("stssl")
"""The terminal shows warnings without any set-up. It shows information only if the command line asks for it."""
