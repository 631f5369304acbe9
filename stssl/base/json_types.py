"""Name the types of JSON values and of the trees that recipes are read from."""

from collections.abc import Mapping

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]
"""A JSON object that its holder may change."""
JsonMapping = Mapping[str, JsonValue]
"""A JSON object that is only read: also takes `dict[str, float]` and the like."""
ConfigTree = Mapping[str, object]
"""Keys and values of a recipe or sweep file before they are validated."""

__all__ = ["ConfigTree", "JsonMapping", "JsonObject", "JsonValue"]
