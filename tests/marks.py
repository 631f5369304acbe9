"""Define rules for the markers `slow` and `ray` of tests. `conftest.py` enforces them."""

import re

SLOW = re.compile(r"soak|kill|fuzz|readme", re.IGNORECASE)
"""Pattern that the name of a slow test must contain."""
NO_RAY = "/dev/null/a-test-that-starts-Ray-needs-the-marker-ray"
"""Folder for Ray in tests without the marker `ray`. It cannot be created, so the start of Ray fails."""
