"""Call a parser with randomly damaged files, and collect its failures.

A parser may succeed, or raise an error of the project that names the file. Anything else is a finding: another
exception, an error without the file's name, too much time or memory, or wrong values (a check inside `parse` raises
`AssertionError`). Each finding has the number of the input, with which it can be reproduced.
"""

import contextlib
import ctypes
import gc
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stssl.base.errors import StsslError

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200"))
SECONDS = 30.0
"""Time limit in seconds for one input. It is long, because the machine may be busy and a hang never ends."""
BYTES = 1 << 30

Mutation = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """Describe a parser to test with damaged files.

    Attributes:
        files: Files to damage, one at a time. They are restored afterwards.
        parse: Function that reads the files. It gets the path of the damaged one.
        mutations: Functions that damage a file's bytes. Each input uses one or a few of them.
        names: Function from the damaged file to texts, one of which the error must contain; by default the file's name.
        expected: Errors that the parser may raise for a damaged file.
    """

    files: tuple[Path, ...]
    parse: Callable[[Path], object]
    mutations: tuple[Mutation, ...]
    names: Callable[[Path], tuple[str, ...]] = lambda path: (path.name,)
    expected: tuple[type[Exception], ...] = (StsslError,)
    seconds: float = SECONDS
    memory: int = BYTES


@dataclass
class Outcome:
    """Count the inputs that the parser accepted and refused, and collect the findings."""

    accepted: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.accepted} accepted, {self.refused} refused in words, {len(self.findings)} findings"


class Hang(BaseException):
    """Exception that interrupts the parser if an input takes too long."""


def fuzz(target: Target, inputs: int = INPUTS, seed: int = 0) -> Outcome:
    """Call a parser with `inputs` damaged files. The seed determines all of them."""
    outcome, originals = Outcome(), {path: path.read_bytes() for path in target.files}
    gc.collect()
    for number in range(inputs):
        dice = random.Random(f"{seed}/{number}")
        path = dice.choice(target.files)
        mutated = originals[path]
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            mutated = dice.choice(target.mutations)(dice, mutated)
        path.write_bytes(mutated)
        try:
            _one(target, path, number, outcome)
        finally:
            path.write_bytes(originals[path])
    return outcome


def _one(target: Target, path: Path, number: int, outcome: Outcome) -> None:
    _return_free_memory()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # "5" resets the peak of memory, so it counts this input only
    try:
        with _limits(target):
            target.parse(path)
    except target.expected as error:
        outcome.refused += 1
        if not any(name in str(error) for name in target.names(path)):
            outcome.findings.append(f"input {number} of {path.name}: the error does not name the file: {error}")
    except Hang:
        outcome.findings.append(f"input {number} of {path.name}: longer than {target.seconds:g} s")
    except Exception as error:  # any other error is a finding: the parser must not raise it
        place = "".join(traceback.format_exception(error)[-4:])
        outcome.findings.append(f"input {number} of {path.name}: {type(error).__name__}\n{place}")
    else:
        outcome.accepted += 1
    if (more := _resident("VmHWM") - before) > target.memory:
        outcome.findings.append(f"input {number} of {path.name}: {more >> 20} MB of memory")


def _return_free_memory() -> None:
    """Give the heap's free pages back, because a parser that takes its memory from them would not be seen."""
    with contextlib.suppress(AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def _limits(target: Target) -> Iterator[None]:
    """Return a context with limits on time and on address space, so no input can stop the machine."""

    def end(number: int, frame: Any) -> None:
        raise Hang

    old, (soft, hard) = signal.signal(signal.SIGALRM, end), resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + target.memory + (4 << 30), hard))
    signal.setitimer(signal.ITIMER_REAL, target.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
