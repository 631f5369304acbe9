"""Define short names for the types of JSON objects and of recipes before validation, for type annotations."""

from collections.abc import Mapping

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]
"""A JSON object that code may change."""
JsonMapping = Mapping[str, JsonValue]
"""A JSON object that code only reads. A `dict[str, float]` fits too."""
ConfigTree = Mapping[str, object]
"""Keys and values of a recipe or sweep file before validation."""

__all__ = ["ConfigTree", "JsonMapping", "JsonObject", "JsonValue"]
