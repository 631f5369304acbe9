"""Make archives and stores, and open stores: the first functions that a user calls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stssl.api.progress import counting, default_console

if TYPE_CHECKING:
    from stssl.archives.conversion import Summary
    from stssl.store.store import Store


def synthesize(
    out: str | Path,
    patches: int = 2000,
    seed: int = 0,
    *,
    placeless: bool = False,
    misleading: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Write a synthetic archive in the file layout of BigEarthNet v1.0.

    Args:
        out: Folder to write.
        patches: Number of patches.
        seed: Seed of the contents. The same seed writes the same bytes.
        placeless: True to choose labels by chance, so that only pixels tell them. Place and date then tell nothing.
        misleading: Country, such as Finland, in which dates tell about labels the opposite of what they tell in all
            other countries. None lets dates tell nothing by themselves.
        progress: False shows no progress.

    Returns:
        Path of the folder.
    """
    from stssl.archives.synthetic import synthesize_archive

    with counting(default_console(progress), "write", "patches") as follow:
        return synthesize_archive(Path(out), patches, seed, placeless=placeless, misleading=misleading, progress=follow)


def convert(
    source: str,
    archive: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    codec: str = "lz4",
    shard: int = 512,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = 0,
    progress: bool | None = None,
    **about: object,
) -> "Summary":
    """Convert an archive to a Zarr store. The same call resumes an interrupted conversion.

    Args:
        source: Format of the archive: `bigearthnet-v1`, `bigearthnet-v2`, `eurosat`, `eurosat-ms`, `manifest` or
            `scenes`.
        archive: Folder or file of the archive; the format `scenes` takes several.
        store: Folder or URL to write.
        codec: Compression: `lz4`, `zstd` or `none`.
        shard: Number of patches in a shard file.
        limit: Number of patches to convert, from the first on; None converts all.
        strict: True to stop at the first bad patch.
        workers: Number of Ray tasks at the same time; 0 converts in this process, None uses all CPUs.
        progress: False shows no progress.
        **about: Options of the format, such as `coordinates=` or `size=`. `stssl convert FORMAT --help` lists them.

    Returns:
        What the conversion did. `patches` and `shards` are numbers; `converted` is the number of shards that this call
        wrote; `errors` has the number of patches by kind of error; `store` is the path or URL, and `report` the path of
        the CSV file of errors.

    Raises:
        ConfigError: The format, the codec or an option is unknown.
        DataError: The archive does not exist, or the store belongs to another conversion.
    """
    from stssl.archives.conversion import Options, convert_archive

    options = Options(codec=codec, shard=shard, limit=limit, strict=strict, workers=workers)
    with counting(default_console(progress), "convert", "shards") as follow:
        return convert_archive(source, archive, store, options, follow, **about)


def open_store(path: str | Path) -> "Store":
    """Open a store that `convert` wrote.

    Args:
        path: Folder or URL of the store.

    Returns:
        The store. For example, call `store.column("lat")`, `store.read([0, 1], ["B04"])` or `store.to_xarray()`.

    Raises:
        DataError: The path has no store, or the store is damaged.
    """
    from stssl.store.store import Store

    return Store.open(path)
