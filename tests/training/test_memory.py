"""Memory that a step frees stays with the process."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from stssl.training.runtime import keep_memory

def faults():
    for step in range(12):
        if step == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        activations = [np.ones(2**20) for _ in range(8)]
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = faults()
keep_memory()
print(left, faults())
"""
"""Prints the page faults of ten steps that take 64 MB each and free them, before and after memory is kept."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_steps_do_not_get_their_memory_anew():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=300, check=True)
    left, kept = map(int, done.stdout.split())
    pages = 8 * 2**20 * 8 // 4096  # of one step
    assert kept < pages / 10
    assert left > pages
