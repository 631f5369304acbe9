"""Describe in words how two conversions differ: their identities say which archive, patches and options each has."""

from collections.abc import Mapping
from typing import Any


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return words on how the conversion that made a store differs from the wanted one.

    Args:
        found: Identity of the conversion that made the store (its format, archive, patches and options), from the
            store.
        wanted: Identity of the wanted conversion, with the same keys.

    Returns:
        Words such as `another (or a changed) table or archive, other --band-names`. Without a known difference: `other
            settings`.
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
    """Return the keys whose values differ in one part of two conversions' identities.

    If the part is no mapping in one of the identities, return its name, or an empty set if both are equal.

    Args:
        found: Identity of the conversion that made the store.
        wanted: Identity of the wanted conversion.
        part: Key of the part, such as `options`.
    """
    one, other = (side.get(part) or {} for side in (found, wanted))
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return {part} if one != other else set()
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
