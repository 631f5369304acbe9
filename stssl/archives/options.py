"""Find the options that archive formats declare in their constructors, for Python and for the command line."""

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from stssl.archives.base import ArchiveFormat, Option
from stssl.archives.registry import ARCHIVES
from stssl.base.errors import ConfigError
from stssl.base.textfiles import refuse_pickle

Kind = Literal["text", "integer", "number", "switch", "path", "folders"]
_KINDS: dict[object, Kind] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "switch",
    Path: "path",
    Mapping[str, Path]: "folders",
}


@dataclass(frozen=True)
class FormatOption:
    """Describe one command-line option of one or more archive formats.

    Attributes:
        name: Name of the parameter in the archive format's constructor.
        flag: Name of the option on the command line, with two hyphens.
        kind: Type of the option's value. An option of type `folders` is given as NAME=FOLDER or NAME=TABLE, once for
            each name.
        help: Description of the option in one line, for the command line's help.
    """

    name: str
    flag: str
    kind: Kind
    help: str

    def parsed(self, given: object) -> object:
        """Convert the value of this option on the command line to the type of the constructor's parameter. Return it.

        For `folders`, this is a dict from name to path.

        Args:
            given: Value of the option, a list of words for `folders`; None, which is returned, if the user did not give
                it.

        Raises:
            ConfigError: A word of `folders` is not NAME=FOLDER, or its folder does not exist.
            DataError: A word of `folders` names a pickle.
        """
        if given is None:
            return None
        if self.kind == "folders":
            return named_folders(given if isinstance(given, list | tuple) else [given], self.flag)
        return Path(str(given)) if self.kind == "path" else given


def options_of(name: str) -> tuple[FormatOption, ...]:
    """Return the options of an archive format, in the sequence of the parameters of its constructor.

    Args:
        name: Name of the format, such as `eurosat`.

    Raises:
        TypeError: A parameter has no `Option` in its annotation, or has an unsupported type.
    """
    constructor: ArchiveFormat = ARCHIVES[name]
    hints = get_type_hints(constructor.__init__, include_extras=True)  # type: ignore[misc]  # it is a class
    several = _further(name)
    return tuple(
        _declared(f"{name}: parameter {parameter}", parameter, hint)
        for parameter, hint in hints.items()
        if parameter not in ("archive", "return", several)
    )


def takes_several(name: str) -> bool:
    """Return True if an archive format takes several paths, as the format `scenes` does."""
    return bool(_further(name))


def _further(name: str) -> str:
    """Return the name of the parameter that takes further paths of an archive, such as `others` for `*others`.

    Return an empty text if the format takes one path only.

    Args:
        name: Name of the archive format.
    """
    parameters = inspect.signature(ARCHIVES[name]).parameters.values()
    return next((one.name for one in parameters if one.kind is inspect.Parameter.VAR_POSITIONAL), "")


def all_options() -> tuple[FormatOption, ...]:
    """Return the options of all archive formats.

    An option of several formats occurs once, and its help names these formats.
    """
    formats: dict[str, list[str]] = {}
    found: dict[str, FormatOption] = {}
    for name in ARCHIVES:
        for option in options_of(name):
            formats.setdefault(option.name, []).append(name)
            found.setdefault(option.name, option)
    return tuple(
        FormatOption(name, option.flag, option.kind, f"{', '.join(formats[name])}: {option.help}")
        for name, option in found.items()
    )


def _declared(where: str, name: str, hint: object) -> FormatOption:
    """Return the command-line option that the annotation of a constructor's parameter declares.

    Args:
        where: Names of the archive format and the parameter, for messages.
        name: Name of the parameter.
        hint: Annotation of the parameter: a type and an `Option`.

    Raises:
        TypeError: The annotation has no `Option`, or an unsupported type.
    """
    base, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    declared = next((extra for extra in extras if isinstance(extra, Option)), None)
    # Compare with both kinds of unions: `Path | None` is a `UnionType`, and `Optional[Path]` is a `Union`.
    if get_origin(base) in (Union, types.UnionType):
        (base,) = (part for part in get_args(base) if part is not type(None))
    if declared is None or base not in _KINDS:
        known = ", ".join(sorted(str(kind) for kind in _KINDS))
        raise TypeError(f"{where} must be annotated with an Option and one of the types {known}")
    flag = f"--{(declared.flag or name).replace('_', '-')}"
    return FormatOption(name, flag, _KINDS[base], declared.help)


def named_folders(words: Sequence[object], flag: str = "--split") -> dict[str, Path] | None:
    """Parse the words NAME=FOLDER of a command line, and check that the folders exist. FOLDER may also be a table file.

    Args:
        words: Words, such as `mine=lists/mine`.
        flag: Name of the option in messages.

    Returns:
        A dict from name to the absolute path of its folder or table; None if `words` is empty.

    Raises:
        ConfigError: A word has another form, a name occurs twice, or a folder does not exist.
        DataError: A word names a pickle.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, _, folder = str(word).partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not folder or name in found:
            raise ConfigError(f"{flag} {word}: give NAME=FOLDER, each name once (small letters, digits and _)")
        if name == "blocks":
            raise ConfigError(f"{flag} {word}: data.split=blocks means blocks of places. Choose another name.")
        if not Path(folder).is_dir():
            refuse_pickle(Path(folder))
            if not Path(folder).is_file():
                raise ConfigError(f"{flag} {word}: there is no folder {folder}, and no table of that name")
        found[name] = Path(folder).absolute()
    return found or None
