"""Define the Zarr store of a converted archive, write it, check it, and read its pixels fast.

`schema` defines the layout of a store, `store_plan` plans one, `writer` writes it, and `verification` checks it.
`Store` opens a store and makes its readers. A reader takes patches from shard files, which hold many patches each
(`shards`, `shard_index`, `shard_layout`), or from an object store through a disk cache (`fetched`, `disk`). It reads
any other layout with zarr-python. `cache` keeps decoded copies in host memory or device memory.

Importing zarr and torch takes long. So each name below is imported only at its first use.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.store.cache import ArrayReader, Held, PixelSource, Streamed, hold
    from stssl.store.description import describe_store
    from stssl.store.disk import DiskCache, default_folder
    from stssl.store.files import sole_writer
    from stssl.store.lists import rows_named
    from stssl.store.reader import StoreReader
    from stssl.store.schema import (
        BadPatchError,
        Column,
        ColumnArray,
        Patch,
        PixelArray,
        Values,
        label_columns,
        split_column,
    )
    from stssl.store.store import BandGroup, Store
    from stssl.store.store_plan import StorePlan
    from stssl.store.verification import Findings, verify
    from stssl.store.writer import Writer

__all__ = [
    "ArrayReader",
    "BadPatchError",
    "BandGroup",
    "Column",
    "ColumnArray",
    "DiskCache",
    "Findings",
    "Held",
    "Patch",
    "PixelArray",
    "PixelSource",
    "Store",
    "StorePlan",
    "StoreReader",
    "Streamed",
    "Values",
    "Writer",
    "default_folder",
    "describe_store",
    "hold",
    "label_columns",
    "rows_named",
    "sole_writer",
    "split_column",
    "verify",
]

_MODULES = {
    "cache": (
        "ArrayReader",
        "Held",
        "PixelSource",
        "Streamed",
        "hold",
    ),
    "description": ("describe_store",),
    "disk": (
        "DiskCache",
        "default_folder",
    ),
    "files": ("sole_writer",),
    "lists": ("rows_named",),
    "reader": ("StoreReader",),
    "schema": (
        "BadPatchError",
        "Column",
        "ColumnArray",
        "Patch",
        "PixelArray",
        "Values",
        "label_columns",
        "split_column",
    ),
    "store": (
        "BandGroup",
        "Store",
    ),
    "store_plan": ("StorePlan",),
    "verification": (
        "Findings",
        "verify",
    ),
    "writer": ("Writer",),
}

__getattr__ = lazy_names(__name__, _MODULES)
