"""Tell processes and machines apart, also after a process number was given again or a machine was started again."""

import os
from pathlib import Path


def machine_start() -> str:
    """Return an id that the system draws when a machine starts: empty on a system that draws none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_space() -> str:
    """Return a name of the space of process numbers: containers have spaces of their own."""
    try:
        return "".join(filter(str.isdecimal, str(Path("/proc/self/ns/pid").readlink())))
    except OSError:
        return "0"


def process_start(number: int) -> str:
    """Return when a process began, in ticks since the machine began. Return "gone" if there is no such process."""
    try:
        words = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "gone" if words[0] == "Z" else words[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return "gone"
    try:  # a system without /proc
        os.kill(number, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass
    return "0"
