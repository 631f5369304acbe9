"""Errors that a user can act on: what is wrong, where, and what to do about it.

The command line prints their message without a traceback and exits with their `exit_code`.
"""


class StsslError(Exception):
    """Base of every error that is the input's or the environment's, not a defect of the program."""

    exit_code = 2
    passing = False
    """Whether it may be over by itself soon, so that trying again is worth it."""


class ConfigError(StsslError):
    """A recipe, sweep file or command line says something that is unknown, impossible or out of range."""


class DataError(StsslError):
    """An archive, store or list of patches is missing, damaged or not what its user says it is."""


class UnreachableError(DataError):
    """A server that has the data does not answer, or breaks off."""

    passing = True


class StoppedError(StsslError):
    """The process was asked to end, and did so at a place from which the same command goes on."""

    exit_code = 143

    def __init__(self, message: str, exit_code: int = 143) -> None:
        """Say how to go on; the exit code is 128 and the number of the signal."""
        super().__init__(message)
        self.exit_code = exit_code


class RunError(StsslError):
    """A run cannot start, go on or be read: another recipe, no resources, no checkpoint, diverged."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or the name of its type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: object, most: int = 80) -> str:
    """Something for a message, short and in printable characters."""
    words = text if isinstance(text, str) else repr(text)
    words = words if len(words) <= most else f"{words[: most - 3]}..."
    return words if words.isprintable() else ascii(words)
