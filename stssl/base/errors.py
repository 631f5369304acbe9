"""Define the errors that a user can act on: they say what is wrong, where, and what to do about it.

The command line prints their message without a traceback and exits with their `exit_code`.
"""


class StsslError(Exception):
    """Report a fault of the input or the environment: the base of all errors that are no defect of this program."""

    exit_code = 2
    passing = False
    """True if the cause may end by itself soon, so that another try may succeed."""


class ConfigError(StsslError):
    """Report that a recipe, sweep file or command line says something unknown, impossible or out of range."""


class DataError(StsslError):
    """Report that an archive, a store or a list of patches is missing, damaged, or of another kind than was given."""


class UnreachableError(DataError):
    """Report that a server that has the data does not answer, or breaks off an answer."""

    passing = True


class StoppedError(StsslError):
    """Report that the process ended because it was asked to; the same command resumes the work."""

    exit_code = 143

    def __init__(self, message: str, exit_code: int = 143) -> None:
        """Keep the message, which says how to resume, and the exit code: 128 plus the number of the signal."""
        super().__init__(message)
        self.exit_code = exit_code


class RunError(StsslError):
    """Report that a run cannot start, resume or be read.

    For instance, another recipe has its name, resources are lacking, its checkpoint is gone, or it diverged.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, or the name of its type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: object, most: int = 80) -> str:
    """Shorten a value to at most `most` printable characters, for an error message."""
    words = text if isinstance(text, str) else repr(text)
    words = words if len(words) <= most else f"{words[: most - 3]}..."
    return words if words.isprintable() else ascii(words)
