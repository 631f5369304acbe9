"""Define what the markers of tests mean; conftest.py enforces it."""

import re

SLOW = re.compile(r"soak|kill|fuzz|readme", re.IGNORECASE)
"""Names of tests that may be slow."""
NO_RAY = "/dev/null/a-test-that-starts-Ray-needs-the-marker-ray"
"""Ray's folder for tests without its marker."""
