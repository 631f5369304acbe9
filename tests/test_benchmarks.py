"""Benchmark scripts: what they start ends with them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import study

class Job:
    name = "job"

    def run(self):
        Path({pid!r}).write_text(str(os.getpid()) + "\\n")
        time.sleep(60)

if __name__ == "__main__":
    {change}
    study.carry_out([Job()], 1)
"""


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@pytest.mark.slow
@pytest.mark.parametrize(("change", "leaves"), [("pass", True), ("study._leave_with = print", False)])
def test_workers_of_a_study_that_is_killed_end_too(change, leaves, tmp_path):
    """The second case is the control: left to themselves they go on."""
    script, file = tmp_path / "killed.py", tmp_path / "pid"
    script.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS), pid=str(file), change=change))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as study:
        assert until(lambda: file.exists() and file.read_text().endswith("\n"), 60)
        study.kill()
    worker = Path("/proc", file.read_text().strip())
    try:
        assert until(lambda: not worker.exists(), 20 if leaves else 6) == leaves
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
