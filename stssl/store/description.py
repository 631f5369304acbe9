"""Describe a store as text for `stssl inspect`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from stssl.base.errors import shown
from stssl.store.schema import ERRORS, MISSING_TIME, SPLIT_CODES, UNKNOWN_LABEL
from stssl.store.store import Store


def describe_store(store: Store) -> str:
    """Return a text that describes a store, one fact in a line: counts, splits, classes, dates, places, bands, errors.

    A last line says what has checksums.
    """
    return "\n".join(
        [
            f"{store.path}: {store.size:,} patches, {_size(store.path)}",
            f"schema    version {store.attrs['schema_version']}",
            f"source    {shown(store.attrs['conversion'].get('archive', {}).get('source', 'unknown'), 200)}",
            *_bands(store),
            *_places(store),
            *_regions(store),
            *_splits(store),
            *_classes(store),
            *_errors(store),
            f"checksums {_checksums(store)}",
        ]
    )


def _checksums(store: Store) -> str:
    if not store.unprotected:
        return "of columns, patches, shards and descriptions"
    return f"none of its {' and '.join(store.unprotected)}: an older store"


def _size(path: str) -> str:
    """Return the size of all files of a store in words, such as `1.50 GB`; for a URL, the word `remote`.

    Args:
        path: Path or URL of the store.
    """
    if "://" in path:
        return "remote"
    total = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return f"{total / 1e9:.2f} GB" if total > 1e9 else f"{total / 1e6:.1f} MB"


def _bands(store: Store) -> Iterator[str]:
    for group in store.groups.values():
        yield f"{group.name:<9} {' '.join(group.bands)}: {group.height}x{group.width} {group.dtype}"


def _places(store: Store) -> Iterator[str]:
    lat, lon, time = (store.column(name) for name in ("lat", "lon", "time"))
    known = np.isfinite(lat) & np.isfinite(lon)
    if known.any():
        south, north, west, east = lat[known].min(), lat[known].max(), lon[known].min(), lon[known].max()
        area = f"latitude {south:.2f} to {north:.2f}, longitude {west:.2f} to {east:.2f}"
        yield f"place     {known.sum():,} patches: {area}"
    else:
        yield "place     unknown"
    dated = time != MISSING_TIME
    if dated.any():
        first, last = (datetime.fromtimestamp(int(t), UTC).date() for t in (time[dated].min(), time[dated].max()))
        yield f"date      {dated.sum():,} patches: {first} to {last}"
    else:
        yield "date      unknown"
    locations = store.column("location_id")
    counts = np.bincount(locations[locations >= 0]) if (locations >= 0).any() else np.zeros(0, int)
    if len(counts):
        yield f"locations {(counts > 0).sum():,}, {(counts > 1).sum():,} of them with several dates"


def _regions(store: Store) -> Iterator[str]:
    """Yield lines of text: how many patches each country and season has, and how many have snow or clouds.

    Leave out what the store has no column of.
    """
    for name, title in (("country", "country"), ("season", "season")):
        if store.has_column(name):
            names, counts = np.unique(store.column(name).astype(str), return_counts=True)
            found = ", ".join(f"{own or 'unknown'} {count:,}" for own, count in zip(names, counts, strict=True))
            yield f"{title:<9} {found}"
    for name in ("seasonal_snow", "cloud_or_shadow"):
        if store.has_column(name):
            yield f"flag      {name}: {np.sum(store.column(name)):,}"


def _splits(store: Store) -> Iterator[str]:
    for name in store.split_names:
        codes = store.column(f"split_{name}")
        parts = ", ".join(f"{np.sum(codes == code):,} {part}" for part, code in SPLIT_CODES.items())
        yield f"split     {name}: {parts}, {np.sum(~np.isin(codes, list(SPLIT_CODES.values()))):,} none"


def _classes(store: Store) -> Iterator[str]:
    for label_set in store.label_sets:
        labels, classes = store.column(label_set), store.classes(label_set)
        multilabel = store.multilabel(label_set)
        yield f"labels    {label_set}: {len(classes)} classes, {'any number' if multilabel else 'one'} a patch"
        for i, name in enumerate(classes):
            count = np.sum(labels[:, i] == 1) if multilabel else np.sum(labels == i)
            yield f"          {count:>9,}  {name}"
        unknown = np.sum(labels[:, 0] == UNKNOWN_LABEL) if multilabel else np.sum(labels < 0)
        if unknown:
            yield f"          {unknown:>9,}  (unlabeled)"


def _errors(store: Store) -> Iterator[str]:
    codes = store.column("error_code")
    found = {name: int(np.sum(codes == code)) for name, code in ERRORS.items() if code}
    text = ", ".join(f"{count:,} {name}" for name, count in found.items() if count)
    yield f"errors    {text or 'none'}"
