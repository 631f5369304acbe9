"""Hold the logger that the whole package writes to."""

import logging

LOG = logging.getLogger("stssl")
"""Warnings reach the terminal without any set-up; information does so only after the command line asked for it."""
