"""Collect the modules that all other folders of the package use.

- `config`, `yaml_text`, `mistakes` and `paths` read recipes and check them.
- `json_types` names the types of JSON values. `textfiles` reads JSON files and lists of patches.
- `errors` and `logs` define errors and log messages for the user. `stopping` turns signals into such errors.
- `batch`, `labels` and `scaling` define the data of a training step.
- `randomness` draws random numbers. `hashing` hashes data and settings, to find out if they have changed.
- `distributed` exchanges tensors between training processes. `ray_session` connects to Ray.
- `whole_files` writes files safely. `exclusive` locks folders on a disk, and `lease` folders in an object store.
- `remote`, `remote_folder`, `mirror` and `outputs` read and write object stores.
- `processes` and `job_copy` find out where a process runs.

The package exports the names that many modules use. It imports each name at its first use (see `lazy`): some modules
need torch, which takes seconds to import, and the command line must show its help without torch.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.base.arrays import AnyArray, Floats, Ints
    from stssl.base.batch import IGNORED, PLACE, Batch, MetadataColumn, Progress, Stream, View
    from stssl.base.config import (
        Config,
        Domain,
        Positive,
        Seed,
        Switch,
        Tree,
        apply_overrides,
        load_tree,
        merge,
        part_name,
        validate,
    )
    from stssl.base.distributed import gather_rows, rank, rows_of, sum_over_ranks, world_size
    from stssl.base.errors import ConfigError, DataError, RunError, StsslError, first_line, shown
    from stssl.base.hashing import digest_of
    from stssl.base.json_types import JsonMapping, JsonObject, JsonValue
    from stssl.base.labels import LabelSpace
    from stssl.base.logs import LOG
    from stssl.base.paths import Location
    from stssl.base.randomness import RandomStream, permutation, uniforms
    from stssl.base.ray_session import connected_ray
    from stssl.base.sphere import on_sphere
    from stssl.base.textfiles import parse_json, read_bounded, read_names
    from stssl.base.whole_files import cannot_write, is_there, write_whole

__all__ = [
    "IGNORED",
    "LOG",
    "PLACE",
    "AnyArray",
    "Batch",
    "Config",
    "ConfigError",
    "DataError",
    "Domain",
    "Floats",
    "Ints",
    "JsonMapping",
    "JsonObject",
    "JsonValue",
    "LabelSpace",
    "Location",
    "MetadataColumn",
    "Positive",
    "Progress",
    "RandomStream",
    "RunError",
    "Seed",
    "Stream",
    "StsslError",
    "Switch",
    "Tree",
    "View",
    "apply_overrides",
    "cannot_write",
    "connected_ray",
    "digest_of",
    "first_line",
    "gather_rows",
    "is_there",
    "load_tree",
    "merge",
    "on_sphere",
    "parse_json",
    "part_name",
    "permutation",
    "rank",
    "read_bounded",
    "read_names",
    "rows_of",
    "shown",
    "sum_over_ranks",
    "uniforms",
    "validate",
    "world_size",
    "write_whole",
]

_MODULES = {
    "arrays": ("AnyArray", "Floats", "Ints"),
    "batch": ("Batch", "IGNORED", "MetadataColumn", "PLACE", "Progress", "Stream", "View"),
    "config": (
        "Config",
        "Domain",
        "Positive",
        "Seed",
        "Switch",
        "Tree",
        "apply_overrides",
        "load_tree",
        "merge",
        "part_name",
        "validate",
    ),
    "distributed": ("gather_rows", "rank", "rows_of", "sum_over_ranks", "world_size"),
    "errors": ("ConfigError", "DataError", "RunError", "StsslError", "first_line", "shown"),
    "hashing": ("digest_of",),
    "json_types": ("JsonMapping", "JsonObject", "JsonValue"),
    "labels": ("LabelSpace",),
    "logs": ("LOG",),
    "paths": ("Location",),
    "randomness": ("RandomStream", "permutation", "uniforms"),
    "ray_session": ("connected_ray",),
    "sphere": ("on_sphere",),
    "textfiles": ("parse_json", "read_bounded", "read_names"),
    "whole_files": ("cannot_write", "is_there", "write_whole"),
}

__getattr__ = lazy_names(__name__, _MODULES)
