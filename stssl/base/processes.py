"""Tell processes and machines apart, even after the system reuses a process number or the machine is restarted."""

import os
from pathlib import Path


def machine_start() -> str:
    """Return the random id that Linux draws at each start of this machine. Return an empty text on other systems."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """Return the id of the PID namespace of this process; "0" on a system without namespaces.

    Processes in two containers may have the same number. Their namespaces differ.
    """
    try:
        return "".join(filter(str.isdecimal, str(Path("/proc/self/ns/pid").readlink())))
    except OSError:
        return "0"


def process_start(number: int) -> str:
    """Return when the process with the process number `number` began, in clock ticks since the start of this machine.

    Return "gone" if the process does not exist or has ended, and "0" if it exists on a system without `/proc`.
    """
    try:
        words = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "gone" if words[0] == "Z" else words[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return "gone"
    try:  # without /proc, the system does not tell when a process began, only if it exists
        os.kill(number, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass
    return "0"
