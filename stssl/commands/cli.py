"""Define the command `stssl`, and list its subcommands.

Each subcommand imports what it needs inside its function. Importing torch or Ray takes seconds, and `stssl --help` must
not wait for that.
"""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from stssl import __version__
from stssl.base.errors import StsslError
from stssl.base.stopping import heeding_signals, stopped
from stssl.commands.arguments import CompareCommand, ConvertCommand, ListCommand, ShiftCommand, VerifyCommand
from stssl.commands.data_commands import (
    convert_command,
    inspect_command,
    quickstart_command,
    synthesize_command,
    verify_command,
)
from stssl.commands.scoring_commands import (
    compare_command,
    evaluate_command,
    probe_command,
    report_command,
    weights_command,
)
from stssl.commands.student_commands import embed_command, export_command, predict_command
from stssl.commands.terminal import console, say
from stssl.commands.training_commands import (
    plan_command,
    pretrain_command,
    recipes_command,
    shift_command,
    submit_command,
    sweep_command,
    train_command,
)


class _Commands(TyperGroup):
    """Group the subcommands of `stssl`.

    After Ctrl-C or a signal that ends the process, raise an error with a message, since typer itself shows none.
    """

    def make_context(self, *given: Any, **named: Any) -> Any:
        """Parse the words of the command line, and return typer's context with the result. Arguments are typer's.

        Raises:
            StoppedError: A signal asked the process to end.
        """
        try:
            return super().make_context(*given, **named)
        except KeyboardInterrupt:
            raise stopped() from None

    def invoke(self, ctx: Any) -> object:
        """Run the subcommand that the command line names, and return what typer returns.

        Args:
            ctx: Context with the parsed command line.

        Raises:
            StoppedError: A signal asked the process to end.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise stopped() from None


_CONTROLS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that could control a terminal. Messages show `?` in their place."""

app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Land-cover classifiers from few labels and many unlabeled satellite patches.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Define the options of `stssl` itself, which stand before the subcommand. This function does nothing.

    Args:
        version: True to show the version and exit.
    """


def doctor_command() -> None:
    """Show what this machine has: versions, CPU, GPU, Ray, free disk, and optional packages that are absent."""
    from stssl.commands.doctor import examine

    for line in examine():
        print(line)


COMMANDS: tuple[tuple[str, Callable[..., None], type[TyperCommand]], ...] = (
    ("recipes", recipes_command, TyperCommand),
    ("doctor", doctor_command, TyperCommand),
    ("quickstart", quickstart_command, TyperCommand),
    ("synthesize", synthesize_command, TyperCommand),
    ("convert", convert_command, ConvertCommand),
    ("verify", verify_command, VerifyCommand),
    ("inspect", inspect_command, TyperCommand),
    ("train", train_command, TyperCommand),
    ("pretrain", pretrain_command, TyperCommand),
    ("probe", probe_command, TyperCommand),
    ("weights", weights_command, TyperCommand),
    ("sweep", sweep_command, TyperCommand),
    ("shift", shift_command, ShiftCommand),
    ("plan", plan_command, TyperCommand),
    ("submit", submit_command, TyperCommand),
    ("evaluate", evaluate_command, ListCommand),
    ("compare", compare_command, CompareCommand),
    ("export", export_command, TyperCommand),
    ("predict", predict_command, TyperCommand),
    ("embed", embed_command, TyperCommand),
    ("report", report_command, TyperCommand),
)
"""Name, function and class of each subcommand, in the order of `stssl --help`."""

for _name, _function, _class in COMMANDS:
    app.command(_name, cls=_class)(_function)


def main() -> None:
    """Run the command line. After a user's mistake or a stop signal, exit with a message and the error's exit code."""
    try:
        with heeding_signals():
            app()
    except StsslError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        say(str(error).translate(_CONTROLS))
        sys.exit(error.exit_code)
    except OSError as error:
        # An error that names no file is a defect of the program, not a wrong path: show the traceback.
        if error.filename is None:
            raise
        say(f"cannot use {error.filename}: {error.strerror}")
        sys.exit(2)


if __name__ == "__main__":
    main()
