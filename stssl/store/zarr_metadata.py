"""Read the description of a store within limits, check it, and compare it with the hashes of its conversion.

The `zarr.json` of the store has a copy of the descriptions of all arrays (consolidated metadata), so that one file is
enough to open the store. If the copy is missing, the `zarr.json` of each array is read. The attributes of the group
hold hashes of everything that gives numbers their meaning: the sequence of classes and bands, means, shapes and codes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stssl.base.errors import DataError, shown
from stssl.base.remote import RemoteFiles, is_remote
from stssl.base.textfiles import JSON_BYTES, parse_json, read_bounded
from stssl.store.encode import SHARD_CHECKSUMS
from stssl.store.files import files_at
from stssl.store.rules import ADVICE, Rule, are_names, check_array, is_list, is_name, is_whole, one_of, require
from stssl.store.schema import COMMON, CONDITIONS, GEOREFERENCE, REGION, SCHEMA_VERSION
from stssl.store.shard_layout import MOST_PATCHES, ZarrTree, known_layout

COLUMN_HASHES, DESCRIPTION_HASHES = "column_hashes", "description_hashes"
ALL = "all"
"""Key of the hash over all other hashes. It shows if one of them is lost."""
_MEANING = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value")
_NOT_MEANT = ("complete", DESCRIPTION_HASHES)
MOST_STATISTIC = 1e30
"""Limit for the size of a statistic. It is far below the largest float32, 3.4e38."""
_SCHEMA = {column.name: column for column in (*COMMON, *GEOREFERENCE, *REGION, *CONDITIONS)}
"""Columns that have the same type and width in all stores."""


@dataclass(frozen=True)
class Description:
    """Hold the checked description of a store, which are the contents of its `zarr.json` files.

    Attributes:
        attributes: Attributes of the store's Zarr group.
        arrays: Description of each array, by name of the array, as in its `zarr.json`.
        digest: Hash of the store's own `zarr.json`, as hexadecimal text.
    """

    attributes: ZarrTree
    arrays: dict[str, ZarrTree]
    digest: str = field(default="", compare=False)

    def about(self, name: str) -> ZarrTree:
        """Return the Zarr attributes of the array with the name `name`, as a new dict."""
        return dict(self.arrays[name].get("attributes", {}))

    @property
    def images(self) -> tuple[str, ...]:
        """Return the names of the arrays with images or maps. All other arrays are metadata columns."""
        return (*self.attributes["pixel_arrays"], *self.attributes.get("maps", ()))


def _is_hashes(value: object) -> bool:
    """Return True if a JSON value is a table of hashes: an object in which each value is a text."""
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _is_conversion(value: object) -> bool:
    """Return True if a JSON value has the form of the attribute `conversion`, which says what archive was converted."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("format"), str)
        and all(isinstance(value.get(key, {}), dict) for key in ("archive", "about"))
        and is_whole(value.get("patches", 0), 0, MOST_PATCHES)
    )


_NAMES = Rule(are_names, "a list of names that differ")
GROUP: dict[str, Rule] = {
    "pixel_arrays": Rule(lambda value: are_names(value, 1), "a list of at least one name, names that differ"),
    "maps": Rule(are_names, _NAMES.words, needed=False),
    "label_sets": _NAMES,
    "splits": _NAMES,
    "patches": Rule(lambda value: is_whole(value, 0, MOST_PATCHES), f"a whole number from 0 to {MOST_PATCHES:,}"),
    COLUMN_HASHES: Rule(_is_hashes, "a hash for each column", needed=False),
    DESCRIPTION_HASHES: Rule(_is_hashes, "a hash for each key", needed=False),
    "conversion": Rule(_is_conversion, "what was converted: format, archive, patches and what was told about it"),
    "errors": Rule(
        lambda value: isinstance(value, dict) and all(is_whole(one, 0, 2**63) for one in value.values()),
        "a number for each error",
        needed=False,
    ),
}
"""Attributes of a finished store."""
_LABELS: dict[str, Rule] = {
    "kind": one_of("single-label", "multi-label"),
    "classes": Rule(
        lambda value: is_list(value, lambda one: isinstance(one, str)) and 0 < len(value) == len(set(value)),
        "a list of at least one name of a class, names that differ",
    ),
}


def read_description(store: str) -> Description:
    """Read and check the description of a finished store: all its `zarr.json` files. Return it.

    Args:
        store: Path or URL of the store.

    Raises:
        DataError: The store does not exist, its conversion did not finish, it has another schema version, or its
            description is damaged. The message names the file and the key.
    """
    content = read_file(store, "zarr.json")
    if content is None and not is_remote(store) and os.path.lexists(store):
        raise DataError(f"{store} is not a Zarr store: it has no zarr.json. Give the path of a store.")
    if content is None:
        raise DataError(f"there is no store at {store}. Make one with `stssl convert`.")
    file = f"{store}/zarr.json"
    tree: ZarrTree = parse_json(content, f"{file} is damaged: it", advice=ADVICE)
    require(tree, {"zarr_format": one_of(3), "node_type": one_of("group")}, f"{file}: ")
    attributes = tree.get("attributes", {})
    if not isinstance(attributes, dict):
        raise DataError(f"{file}: attributes must be keys and values, not {shown(attributes, 60)}. {ADVICE}")
    _check_version(attributes, store)
    require(attributes, GROUP, f"{file}: attributes.")
    arrays = _consolidated(tree, file)
    if arrays is None:
        own = {name: read_array(store, name) for name in _listed(store)}
        arrays = {name: tree for name, tree in own.items() if tree is not None}
        places = {name: f"{store}/{name}/zarr.json: " for name in arrays}
    else:
        places = {name: f"{file}: consolidated_metadata.metadata.{name}." for name in arrays}
    found = Description(attributes, arrays, hashlib.blake2b(content, digest_size=16).hexdigest())
    _check_all(found, store, places)
    compare_hashes(found, f"{file}: ", places)
    return found


def read_file(store: str, name: str) -> bytes | None:
    """Return the contents of a description file (`zarr.json`) of a store. Return None if the file does not exist.

    Args:
        store: Path or URL of the store.
        name: Path of the file inside the store.

    Raises:
        DataError: The file cannot be read, or has more than `JSON_BYTES` bytes.
    """
    if is_remote(store):
        return RemoteFiles(store).read(name, JSON_BYTES)
    path = f"{store}/{name}"
    return read_bounded(path, JSON_BYTES, advice=ADVICE) if os.path.lexists(path) else None


def read_array(store: str, name: str) -> ZarrTree | None:
    """Read and check the `zarr.json` of one array, and return its contents. Return None if the file does not exist.

    Args:
        store: Path or URL of the store.
        name: Name of the array.

    Raises:
        DataError: The description is damaged. The message names the file and the key.
    """
    file = f"{store}/{name}/zarr.json"
    content = read_file(store, f"{name}/zarr.json")
    if content is None:
        return None
    tree: ZarrTree = parse_json(content, f"{file} is damaged: it", advice=ADVICE)
    check_array(tree, f"{file}: ")
    return tree


def _check_version(attributes: ZarrTree, store: str) -> None:
    """Check that a Zarr group is a finished store with the schema version of this program.

    Args:
        attributes: Attributes of the group.
        store: Path or URL of the store, for messages.

    Raises:
        DataError: The group is no store, has another schema version, or its conversion did not finish.
    """
    version = attributes.get("schema_version")
    if version is None:
        raise DataError(f"{store} is a Zarr group, but not a store of stssl: it has no schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DataError(
            f"{store} has schema version {shown(version, 60)}, and this program reads {SCHEMA_VERSION}. "
            "Convert the archive again."
        )
    if attributes.get("complete") is not True:
        raise DataError(f"the conversion to {store} was not finished. Run the same `stssl convert` again.")


def _consolidated(tree: ZarrTree, file: str) -> dict[str, ZarrTree] | None:
    """Check the copies of the arrays' descriptions in a store's `zarr.json`, and return them by name of the array.

    Return None if the file has no copies.

    Args:
        tree: Contents of the `zarr.json`.
        file: Path of the file, for messages.

    Raises:
        DataError: A copy is damaged. The message names the file and the key.
    """
    about = tree.get("consolidated_metadata")
    if about is None:
        return None
    where = f"{file}: consolidated_metadata"
    parts = about.get("metadata") if isinstance(about, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise DataError(f"{where}.metadata must be the description of each array. {ADVICE}")
    if about.get("kind", "inline") != "inline":
        raise DataError(f"{where}.kind must be inline. {ADVICE}")
    arrays = {name: part for name, part in parts.items() if part.get("node_type") != "group" and "/" not in name}
    for name, part in arrays.items():
        if not is_name(name):
            raise DataError(f"{where}.metadata: {shown(name, 60)} cannot be the name of an array. {ADVICE}")
        check_array(part, f"{where}.metadata.{name}.")
    return arrays


def _listed(store: str) -> list[str]:
    """Return a list of the names in a store's folder that may be arrays. It is for a `zarr.json` that lists no arrays.

    Args:
        store: Path or URL of the store.
    """
    return [name for name in files_at(store).names() if is_name(name) and name[0] != "." and name != "zarr.json"]


def _check_all(found: Description, store: str, places: dict[str, str]) -> None:
    """Check that all arrays that a store's attributes name exist, and that the description of each fits the attributes.

    Args:
        found: Description of the store.
        store: Path or URL of the store, for messages.
        places: For the name of each array, the file and the keys above its description, for messages.

    Raises:
        DataError: An array is lost or does not fit. The message names the file and the key.
    """
    group = found.attributes
    known = (*found.images, *group["label_sets"], *(f"split_{name}" for name in group["splits"]))
    lost = [name for name in dict.fromkeys((*known, *group.get(COLUMN_HASHES, ()))) if name not in found.arrays]
    if lost:
        raise DataError(f"{store} has lost its array {shown(', '.join(lost), 200)}. {ADVICE}")
    if len(set(found.images)) < len(found.images) or set(found.images) & set(group["label_sets"]):
        raise DataError(f"{store}/zarr.json: attributes.maps must be names that no other array has. {ADVICE}")
    bands = [band for name in group["pixel_arrays"] for band in _image(found, name, places[name])]
    if len(set(bands)) < len(bands):
        raise DataError(f"{store}/zarr.json: a band stands in two of its arrays ({', '.join(bands)}). {ADVICE}")
    for name in group.get("maps", ()):
        _image(found, name, places[name])
    for name in set(found.arrays) - set(found.images):
        _check_column(found, name, places[name])
    for name in group["label_sets"]:
        _check_labels(found, name, places[name])


def _image(found: Description, name: str, where: str) -> list[str]:
    """Check the description of a pixel array, and return the names of its bands.

    Args:
        found: Description of the store.
        name: Name of the pixel array.
        where: File and keys above the array's description, for messages.

    Raises:
        DataError: A value is wrong. The message names the file and the key.
    """
    tree, about = found.arrays[name], found.about(name)
    shape = tree["shape"]
    require(tree, {"data_type": one_of("uint8", "uint16"), "fill_value": one_of(0)}, where)
    if len(shape) != 4 or shape[0] != found.attributes["patches"] or 0 in shape[1:]:
        raise DataError(
            f"{where}shape must be [{found.attributes['patches']}, bands, height, width], not {shape}. {ADVICE}"
        )
    rules = {
        "bands": Rule(
            lambda value: (
                is_list(value, lambda one: isinstance(one, str) and one != "", shape[1])
                and len(set(value)) == len(value)
            ),
            f"a list of {shape[1]} names of bands that differ",
        ),
        "statistics": Rule(lambda value: isinstance(value, dict), "keys and values", needed=False),
        SHARD_CHECKSUMS: Rule(
            lambda value: is_list(value, lambda one: is_whole(one, 0, 2**32 - 1)), "a list of checksums", needed=False
        ),
    }
    require(about, rules, f"{where}attributes.")
    numbers = Rule(lambda value: is_list(value, _is_number, shape[1]), f"{shape[1]} numbers, one a band", needed=False)
    names = ("mean", "std", "min", "max", "count")
    require(about.get("statistics", {}), dict.fromkeys(names, numbers), f"{where}attributes.statistics.")
    layout = known_layout(tree)
    if about.get(SHARD_CHECKSUMS) and layout is None:
        raise DataError(
            f"{where}codecs, chunk_grid and attributes.{SHARD_CHECKSUMS} must be those of {shape[0]} patches in "
            f"shards, as `stssl convert` writes them. {ADVICE}"
        )
    return list(about["bands"])


def _is_number(value: object) -> bool:
    """Return True if a value can be a band statistic: None, or a number whose magnitude is below `MOST_STATISTIC`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) < MOST_STATISTIC
    return value is None


def _check_column(found: Description, name: str, where: str) -> None:
    """Check that a metadata column has one row for each patch, and that known columns have the right type and width.

    Args:
        found: Description of the store.
        name: Name of the column.
        where: File and keys above the column's description, for messages.

    Raises:
        DataError: The column has a wrong shape or type. The message names the file and the key.
    """
    tree, patches = found.arrays[name], found.attributes["patches"]
    shape, column = tree["shape"], _SCHEMA.get(name)
    if len(shape) > 2 or (shape[0] != patches and (column or name in found.attributes.get(COLUMN_HASHES, ()))):
        raise DataError(f"{where}shape must be of {patches} patches, not {shape}. {ADVICE}")
    if column is None:
        return
    require(tree, {"data_type": one_of(column.dtype)}, where)
    if shape[1:] != ([column.width] if column.width else []):
        raise DataError(f"{where}shape must be {column.width or 'one value'} a patch, not {shape}. {ADVICE}")


def _check_labels(found: Description, name: str, where: str) -> None:
    """Check the description of a label column: class names, type, and how many values it has for each patch.

    Args:
        found: Description of the store.
        name: Name of the column.
        where: File and keys above the column's description, for messages.

    Raises:
        DataError: A value is wrong. The message names the file and the key.
    """
    tree, about = found.arrays[name], found.about(name)
    require(about, _LABELS, f"{where}attributes.")
    several, classes = about["kind"] == "multi-label", about["classes"]
    require(tree, {"data_type": one_of("uint8" if several else "int16")}, where)
    if tree["shape"][1:] != ([len(classes)] if several else []):
        raise DataError(
            f"{where}attributes.classes has {len(classes)} classes ({about['kind']}), which do not fit the column's "
            f"shape {tree['shape']}. {ADVICE}"
        )


def description_hashes(attributes: ZarrTree, arrays: Mapping[str, ZarrTree]) -> dict[str, str]:
    """Return a hash of each part of a store's description that gives numbers their meaning, such as class names.

    The hashes are hexadecimal texts by key, such as `attributes.splits`. Under the key `all` is one hash over all of
    them. A key that someone later adds to the description has no hash in the store, and is not compared.

    Args:
        attributes: Attributes of the store's Zarr group.
        arrays: Description of each array (its `zarr.json`), by name.
    """
    hashes = {key: _hash(value) for key, value in _meant(attributes, arrays)}
    return hashes | {ALL: _hash(hashes)}


def _meant(attributes: ZarrTree, arrays: Mapping[str, ZarrTree]) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each part of a store's description that gives numbers their meaning, such as classes.

    Args:
        attributes: Attributes of the store's Zarr group.
        arrays: Description of each array (its `zarr.json`), by name.
    """
    for key, value in attributes.items():
        if key not in _NOT_MEANT:
            yield f"attributes.{key}", value
    for name, tree in arrays.items():
        yield from ((f"{name}/{key}", tree[key]) for key in _MEANING)
        yield from ((f"{name}/attributes.{key}", value) for key, value in tree.get("attributes", {}).items())


def _hash(value: object) -> str:
    """Return a hash of a JSON value, as hexadecimal text."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def compare_hashes(found: Description, root: str, places: Mapping[str, str]) -> None:
    """Check by the hashes in a store's description that it did not change since the conversion.

    Skip the check for older stores, which have no hashes.

    Args:
        found: Description of the store, whose attributes have the hashes.
        root: Path of the store's `zarr.json`, for messages.
        places: For the name of each array, the file and the keys above its description, for messages.

    Raises:
        DataError: A value changed or is lost. The message names the file and the key.
    """
    listed = found.attributes.get(DESCRIPTION_HASHES)
    if listed is None:
        return
    rest = {key: value for key, value in listed.items() if key != ALL}
    if listed.get(ALL) != _hash(rest):
        raise DataError(f"{root}attributes.{DESCRIPTION_HASHES} is damaged. {ADVICE}")
    actual = description_hashes(found.attributes, found.arrays)
    for key, hashed in rest.items():
        if actual.get(key) != hashed:
            name, slash, own = key.partition("/")
            where = places.get(name, f"{root}{name}: ") + own if slash else root + key
            raise DataError(
                f"{where} is not what was converted: it was changed or lost since, and what it says of the numbers "
                f"would be wrong. {ADVICE}"
            )


def differing_entries(own: ZarrTree, copy: ZarrTree) -> list[str]:
    """Return a sorted list of the keys that differ between an array's own description and its copy.

    Compare only keys that give numbers their meaning.

    Args:
        own: Contents of the array's own `zarr.json`.
        copy: Description of the array in the store's `zarr.json`.
    """
    first, second = (dict(_meant({}, {"": tree})) for tree in (own, copy))
    return sorted(key[1:] for key in first.keys() | second.keys() if first.get(key) != second.get(key))
