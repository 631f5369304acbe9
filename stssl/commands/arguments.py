"""Check paths on the command line, and parse the options that archive formats declare."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from stssl.archives.formats import FORMATS

if TYPE_CHECKING:
    from stssl.archives.options import FormatOption

_GIVEN, _FORMAT = "stssl.archive_options", "stssl.archive_format"
_TYPES: dict[str, object] = {"text": str, "integer": int, "number": float, "switch": bool, "path": Path}
_TYPES["folders"] = list[str]

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change.")]


def local_path(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check that the value of an argument is a local path, not a URL. Return it unchanged.

    Without this check, a URL would make a folder named `s3:`.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: A path, a list of paths, or None, which passes.

    Raises:
        ConfigError: A path is a URL.
    """
    from stssl.base.paths import path_given

    return _checked(parameter, value, path_given)


def result_path(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check that the path of a result to write is local, not a URL, and return it unchanged.

    Warn if it lies in a Ray job's copy of the working folder, since Ray deletes this copy after the job.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: A path, or None, which passes.

    Raises:
        ConfigError: The path is a URL.
    """
    local_path(parameter, value)
    _warn_if_vanishing(parameter, value)
    return value


def new_store(parameter: typer.CallbackParam, value: str) -> str:
    """Check that the place of a store to write is a path or a URL that a store can have. Return it unchanged.

    Warn if it lies in a Ray job's copy of the working folder, since Ray deletes this copy after the job.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: Path or URL.

    Raises:
        ConfigError: The value is neither a path nor such a URL.
    """
    store_place(parameter, value)
    _warn_if_vanishing(parameter, value)
    return value


def _warn_if_vanishing(parameter: typer.CallbackParam, value: str | Path | None) -> None:
    from stssl.base.job_copy import vanishing
    from stssl.base.logs import LOG

    if value is not None and (warning := vanishing(_shown(parameter), value)):
        LOG.warning("%s", warning)


def run_place(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check that the place of a run (a training) is a path or the URL of an object store. Return it unchanged.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: A path or URL, a list of them, or None, which passes.

    Raises:
        ConfigError: A place is neither a path nor the URL of an object store.
    """
    from stssl.base.paths import folder_given

    return _checked(parameter, value, folder_given)


def new_result(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check that the place of a result to write is a path or the URL of an object store. Return it unchanged.

    Warn if it lies in a Ray job's copy of the working folder, since Ray deletes this copy after the job.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: A path or URL, or None, which passes.

    Raises:
        ConfigError: The value is neither a path nor the URL of an object store.
    """
    run_place(parameter, value)
    _warn_if_vanishing(parameter, value)
    return value


def store_place(parameter: typer.CallbackParam, value: Any) -> Any:
    """Check that the place of a store is a path or the URL of an object store. Return it unchanged.

    Args:
        parameter: The option or argument of the command line, for its name in messages.
        value: Path or URL, or None, which passes.

    Raises:
        ConfigError: The value is neither a path nor such a URL.
    """
    from stssl.base.paths import store_given

    return _checked(parameter, value, store_given)


def _checked(parameter: typer.CallbackParam, value: Any, check: Callable[[Any, str], object]) -> Any:
    """Check each path or URL in the value of an argument. Return the value unchanged.

    Args:
        parameter: The option or argument of the command line.
        value: A path or URL, a list of them, or None, which passes.
        check: Function that is called with each path or URL and the argument's name; it raises an error for a bad one.
    """
    for one in value if isinstance(value, list | tuple) else [value]:
        if one is not None:
            check(one, _shown(parameter))
    return value


def _shown(parameter: typer.CallbackParam) -> str:
    """Return the name of an option or argument, for messages.

    An option has the name that users type, such as `--out`. An argument has its name in capitals, such as `STORE`.
    """
    return next((one for one in parameter.opts if one.startswith("--")), (parameter.name or "").upper())


class ListCommand(TyperCommand):
    """Let an option of a command take several words at once: `--by country season` is `--by country --by season`.

    Attributes:
        lists: Options that take several words. A comma separates words too.
        switches: Options of the command that take no word, such as `--plan`.
    """

    lists: tuple[str, ...] = ("--by",)
    switches: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line into `ctx`, and return the words that are left, as typer does.

        Before that, repeat each option that takes several words before each of these words.

        Args:
            ctx: Context of the command.
            args: Words of the command line.
        """
        return list(super().parse_args(ctx, self.written_out(args)))

    @classmethod
    def ends(cls, word: str) -> bool:
        """Return True if a word that follows an option with several words is not one of these words.

        This class returns False: only the next option ends the list. Subclasses may know other words.

        Args:
            word: Word of the command line that does not begin with a hyphen.
        """
        return False

    @classmethod
    def written_out(cls, args: Sequence[str]) -> list[str]:
        """Return the words of a command line, with each option of `lists` repeated before each of its words.

        `--by country season` and `--by country,season` become `--by country --by season`. If the command line has no
        other word for the run, the last word of a list is the run, as in `evaluate --by country RUN`.

        Args:
            args: Words of the command line.
        """
        found: list[str] = []
        current, plain = "", 0
        for number, word in enumerate(args):
            if word.startswith("-"):
                name, given, values = word.partition("=")
                current = word if word in cls.lists else ""
                if given and name in cls.lists:
                    found += [part for value in values.split(",") for part in (name, value)]
                elif not current:
                    found.append(word)
            elif current and not cls.ends(word):
                found += [part for value in word.split(",") for part in (current, value)]
            else:
                before = args[number - 1] if number else ""
                takes = before.startswith("--") and "=" not in before and before not in cls.switches
                plain += not takes
                found.append(word)
        if not plain and len(found) > 3 and found[-2] in cls.lists and found[-4] in cls.lists:
            del found[-2]
        return found


class CompareCommand(ListCommand):
    """Let the option `--against` of `stssl compare` take several runs, as in `--against RUN1 RUN2`."""

    lists = ("--against",)


class ShiftCommand(ListCommand):
    """Let the options `--splits` and `--metadata` of `stssl shift` take several words.

    A change of a recipe key, such as `schedule.steps=100`, ends the words of an option.
    """

    lists = ("--splits", "--metadata")
    switches = ("--plan",)

    @classmethod
    def ends(cls, word: str) -> bool:
        """Return True if a word changes a recipe key, such as `schedule.steps=100`: it does not belong to an option.

        Args:
            word: Word of the command line.
        """
        return "=" in word


class ConvertCommand(TyperCommand):
    """Let `stssl convert` accept the options of the archive format (such as `eurosat`) that it converts.

    If the command line names a format, `--help` lists the options of that format. If not, it lists the options of all
    formats. The command also parses the options of other formats: an error can then name the options that the format
    has.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line into `ctx`, and return the words that are left, as typer does.

        The values of archive formats' options are stored in `ctx.meta`, where `given_options` finds them.

        Args:
            ctx: Context of the command.
            args: Words of the command line.
        """
        ctx.meta[_FORMAT] = next((word for word in args if word in FORMATS), None)
        rest: list[str] = super().parse_args(ctx, args)
        ctx.meta[_GIVEN] = {option.name: option.parsed(ctx.params.pop(option.name)) for option in self.accepted(ctx)}
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of the command: its own, and those made from the options of archive formats.

        Args:
            ctx: Context of the command.
        """
        title = f"Options of {ctx.meta.get(_FORMAT) or 'the archive formats'}"
        return [*super().get_params(ctx), *_parameters(self.accepted(ctx), self.listed(ctx), title)]

    def accepted(self, ctx: Any) -> Sequence["FormatOption"]:
        """Return the options that the parser accepts: those of all archive formats.

        The options of the format on the command line come first.

        Args:
            ctx: Context of the command.
        """
        from stssl.archives.options import all_options

        own = self.listed(ctx)
        names = {option.name for option in own}
        return (*own, *(option for option in all_options() if option.name not in names))

    def listed(self, ctx: Any) -> Sequence["FormatOption"]:
        """Return the options that `--help` shows: those of the archive format on the command line; without one, all.

        Args:
            ctx: Context of the command.
        """
        from stssl.archives.options import all_options, options_of

        name = ctx.meta.get(_FORMAT)
        return options_of(name) if name else all_options()


class VerifyCommand(ConvertCommand):
    """Let `stssl verify` accept those options of archive formats that are paths.

    A store does not record the paths of its conversion, so the user must give them again.
    """

    def accepted(self, ctx: Any) -> Sequence["FormatOption"]:
        """Return those options of archive formats that take a path, such as the path of a table or folder.

        Args:
            ctx: Context of the command; not used.
        """
        from stssl.archives.options import all_options

        return tuple(option for option in all_options() if option.kind == "path")

    listed = accepted


def given_options(ctx: typer.Context) -> dict[str, object]:
    """Return the values of archive formats' options on the command line: a dict from option name to value.

    The value is None for an option that is not given.

    Args:
        ctx: Context of the command, after its command line was parsed.
    """
    found: dict[str, object] = ctx.meta[_GIVEN]
    return found


def _parameters(options: Sequence["FormatOption"], listed: Sequence["FormatOption"], title: str) -> list[Any]:
    """Return parameters for a typer command, one for each option of archive formats.

    Args:
        options: Options that the command accepts.
        listed: Those options that the command's help shows.
        title: Title of the options in the help.
    """

    def carrier() -> None: ...

    hints: dict[str, object] = {}
    for option in options:
        callback = local_path if option.kind == "path" else None
        hidden = option not in listed
        about = typer.Option(option.flag, help=option.help, callback=callback, hidden=hidden, rich_help_panel=title)
        kind = _TYPES[option.kind]
        hints[option.name] = Annotated[kind | None, about]  # type: ignore[operator]  # known only at run time
    # Build a function with these options as its signature, since typer makes parameters only from a function.
    carrier.__annotations__ = hints
    carrier.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what `inspect.signature` returns
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
            for name, hint in hints.items()
        ]
    )
    app = typer.Typer(add_completion=False)
    app.command()(carrier)
    return list(typer.main.get_command(app).params)
