"""What the tests of sweeps, jobs and clusters rely on: that nothing is left of a command."""

import sys

import psutil
import pytest
from processes import exit_code, family, finish, start, still_there

LEAVES = "import subprocess; subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"


def test_a_command_that_leaves_a_process_behind_is_noticed_and_the_process_ended():
    process = start(sys.executable, "-c", LEAVES)
    with pytest.raises(AssertionError, match=r"still there after the end .*sleep 60"):
        finish(process, 30, linger=0.5)
    assert not family(process.pid)


def test_control_one_that_leaves_nothing():
    code, output = finish(start(sys.executable, "-c", "print('done')"), 30)
    assert (code, output) == (0, "done\n")


def test_processes_that_go_on_are_named_and_those_that_ended_are_not():
    process = start("sleep", "60")
    one = psutil.Process(process.pid)
    assert still_there([one], 0.3) == {process.pid: "sleep 60"}
    process.kill()
    assert not still_there([one])  # nobody has read its exit status yet
    process.communicate()
    assert not still_there([one])


def test_exit_codes():
    assert exit_code(psutil.pid_exists, 1) == 0
    assert exit_code(sys.exit, 3) == 3
