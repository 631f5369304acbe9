"""Compare the identities (archive, patches and options) of two conversions, and describe the differences in words."""

from collections.abc import Mapping
from typing import Any


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Compare the conversion that made a store with the wanted one, and describe the differences in words.

    Args:
        found: Identity of the conversion that made the store, as the store has it.
        wanted: Identity of the wanted conversion.

    Returns:
        Words such as `another table or archive, other --band-names`.
    """
    differ = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    given = [_changed(found, wanted, part) for part in ("about", "options")]
    archive = _changed(found, wanted, "archive") - given[0]
    words = [
        *(["another format"] if "format" in differ else []),
        *(["another (or a changed) table or archive"] if archive else []),
        *(["other patches"] if {"names", "patches"} & differ else []),
        *(f"other --{name.replace('_', '-')}" for part in given for name in sorted(part)),
    ]
    return ", ".join(words) or "other settings"


def _changed(found: Mapping[str, Any], wanted: Mapping[str, Any], part: str) -> set[str]:
    """Return the keys with different values in one part of two conversions' identities, such as `options`.

    If the part is no mapping in one of them, return the name of the part if it differs.
    """
    one, other = (side.get(part) or {} for side in (found, wanted))
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return {part} if one != other else set()
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
