"""Define the errors that a user can act on. They say what is wrong, in which place, and what to do.

The command line prints the message of an error without a traceback and exits with its `exit_code`. A notebook shows the
message without a traceback, too.
"""


class StsslError(Exception):
    """Report a fault of the input or the environment, not a defect of this program. Base of all such errors."""

    exit_code = 2
    passing = False
    """True if the cause may soon end by itself. Another try may succeed."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback: the name of the class, and the message.

        IPython calls this method if an exception has it. Python itself and other tools still show the traceback.
        """
        return f"{type(self).__name__}: {self}".splitlines()


class ConfigError(StsslError):
    """Report a value of a recipe, sweep file or command line that is unknown, impossible or out of range."""


class DataError(StsslError):
    """Report that an archive, a store or a list of patches is missing, damaged, or of the wrong kind."""


class UnreachableError(DataError):
    """Report that a server with the data does not answer, or sends only a part of an answer."""

    passing = True


class StoppedError(StsslError):
    """Report that a signal ended the process. The same command resumes the work."""

    exit_code = 143

    def __init__(self, message: str, exit_code: int = 143) -> None:
        """Store the message for the user, and the exit code of the command.

        Args:
            message: Says how to resume the work.
            exit_code: 128 plus the number of the signal.
        """
        super().__init__(message)
        self.exit_code = exit_code


class RunError(StsslError):
    """Report that a run cannot start, resume or be read.

    For example: another recipe has the name of the run, the machine has too few resources, the checkpoint is gone, or
    the training diverged.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: object, most: int = 80) -> str:
    """Return a text for an error message, cut to its first `most` characters.

    If one of these characters cannot be printed, all characters outside ASCII become Python's escapes. The escaped text
    may be longer than `most`.
    """
    words = text if isinstance(text, str) else repr(text)
    words = words if len(words) <= most else f"{words[: most - 3]}..."
    return words if words.isprintable() else ascii(words)
