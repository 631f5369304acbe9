"""Simulate machines with addresses of their own: network namespaces that a bridge connects.

Each machine has one cable, the interface `eth0`, and the address 10.77.0.NUMBER. The bridge lies in a namespace too, so
the network of this computer does not change.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from processes import kill

NET = "10.77.0"


def why_not() -> str | None:
    """Return why this user cannot make network namespaces here, or None if it works."""
    if not shutil.which("ip"):
        return "there is no command `ip` (package iproute2)"
    try:
        with Machines(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"this user may not make network namespaces: {error.stderr.strip()}"


class Machines:
    """Make machines in network namespaces. The end of the context ends their processes and removes them."""

    def __init__(self, count: int) -> None:
        """Describe `count` machines, numbered from 0. Entering the context makes them."""
        self.count, self.name = count, f"stssl-{os.getpid()}"
        self.running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Machines":
        """Make the namespaces, the bridge and the cables."""
        try:
            _ip("netns", "add", self.switch)
            self._at_switch("link", "add", "bridge", "type", "bridge")
            self._at_switch("address", "add", f"{NET}.1/24", "dev", "bridge")
            self._at_switch("link", "set", "bridge", "up")
            for number in range(self.count):
                self._connect(number)
        except subprocess.CalledProcessError:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all processes, and remove the namespaces."""
        self.close()

    @property
    def switch(self) -> str:
        """Return the name of the namespace that has the bridge."""
        return f"{self.name}-switch"

    def address(self, number: int) -> str:
        """Return the address of a machine."""
        return f"{NET}.{10 + number}"

    def _namespace(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _connect(self, number: int) -> None:
        """Make a machine, and plug its cable into the bridge."""
        space = self._namespace(number)
        _ip("netns", "add", space)
        self._at_switch("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
        self._at_switch("link", "set", f"port{number}", "master", "bridge", "up")
        _ip("-n", space, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", space, "link", "set", device, "up")
        # Programs find their own address by the way to the internet. No packet goes there.
        _ip("-n", space, "route", "add", "default", "via", f"{NET}.1")

    def _at_switch(self, *words: str) -> None:
        _ip("-n", self.switch, *words)

    def cut(self, number: int) -> None:
        """Pull the cable of a machine. Its processes live on."""
        self._at_switch("link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        """Plug the cable of a machine in again."""
        self._at_switch("link", "set", f"port{number}", "up")

    def start(self, number: int, log: Path, environment: dict[str, str], *command: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine. Its output goes to the file `log`."""
        words = ["ip", "netns", "exec", self._namespace(number), *command]
        with log.open("ab") as file:
            options: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "env": environment}
            self.running.append(subprocess.Popen(words, start_new_session=True, **options))
        return self.running[-1]

    def processes(self, number: int) -> dict[int, str]:
        """Return the command lines of a machine's processes, by process id."""
        done = subprocess.run(
            ["ip", "netns", "pids", self._namespace(number)], check=False, capture_output=True, text=True, timeout=30
        )
        found = {}
        for pid in map(int, done.stdout.split()):
            with contextlib.suppress(psutil.Error):
                found[pid] = " ".join(psutil.Process(pid).cmdline())
        return found

    def close(self) -> None:
        """End the processes of all machines, and remove the namespaces."""
        for process in reversed(self.running):
            process.kill()
            process.wait()
        self.running.clear()
        for number in range(self.count):
            kill(self.processes(number))
        for space in (*map(self._namespace, range(self.count)), self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", space)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)
