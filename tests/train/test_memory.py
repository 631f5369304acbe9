"""Memory that a step frees stays with the process."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import numpy as np
from stssl.train.surroundings import keep_memory

if sys.argv[1] == "keep":
    keep_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [np.ones(2**20) for _ in range(8)]
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    """Page faults of ten steps that take 64 MB each and free them."""
    done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, timeout=300, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_steps_do_not_get_their_memory_anew():
    pages = 8 * 2**20 * 8 // 4096  # of one step
    assert faults("keep") < pages / 10
    assert faults("leave") > pages
