"""Compute the band statistics of a store: mean, deviation and extremes from exact sums, percentiles from histograms.

A conversion may write shards (files of many patches) on several machines, in any sequence. So it counts the pixels of
each shard separately, and adds the counts at its end. All counts and sums are integers: their total does not depend on
the sequence.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stssl.base.json_types import JsonObject, JsonValue

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)
BINS = 4096


def tally(
    block: NDArray[np.unsignedinteger], nodata: int | None = None, measured: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.int64]]:
    """Count the pixel values of each band in n patches.

    Return their number, sum, extremes and histogram as two arrays by name.

    Args:
        block: [n, bands, height, width] pixels of n patches, uint8 or uint16.
        nodata: Value of pixels that do not count; None if there is no such value.
        measured: [n, bands, height, width], True for each pixel that counts. None counts all pixels.

    Returns:
        `sums` [bands, 5]: count, sum, sum of squares, smallest and largest value (0 if the count is 0).
        `bins` [bands, 256 or 4096]: a histogram. Each bin counts an equal range of values.
    """
    values = np.iinfo(block.dtype).max + 1
    levels = np.arange(values)
    sums, bins = [], []
    for band in range(block.shape[1]):
        own = block[:, band].reshape(-1) if measured is None else block[:, band][measured[:, band]]
        counts = np.bincount(own, minlength=values)
        if nodata is not None:
            counts[nodata] = 0
        found = np.flatnonzero(counts)
        ends = (found[0], found[-1]) if len(found) else (0, 0)
        sums.append([counts.sum(), counts @ levels, counts @ levels**2, *ends])
        bins.append(counts.reshape(min(values, BINS), -1).sum(1))
    return {"sums": np.array(sums, np.int64), "bins": np.array(bins, np.int64)}


def statistics(parts: Sequence[dict[str, NDArray[np.int64]]], dtype: str, split: str) -> JsonObject:
    """Combine the pixel counts of all shards into the statistics of each band: mean, std, extremes and percentiles.

    Args:
        parts: Result of `tally` for each shard: arrays with the counts `sums` and `bins` of its pixel values.
        dtype: Type of the pixels, `uint8` or `uint16`.
        split: Name for the counted patches, such as `official:train`. The result repeats it.

    Returns:
        Dict with the lists `mean`, `std`, `min`, `max` and `count`, one number for each band. For a band without any
            counted pixel, this is 0 in `count` and None in the others. `percentiles` is a dict with such a list for
            each percentile. `split` is the name.
    """
    sums = np.stack([part["sums"] for part in parts])
    bins = np.sum([part["bins"] for part in parts], 0)
    found: dict[str, list[JsonValue]] = {name: [] for name in ("mean", "std", "min", "max", "count")}
    percentiles: dict[str, list[JsonValue]] = {str(p): [] for p in PERCENTILES}
    for band, histogram in enumerate(bins):
        count, total, squares = (sum(int(value) for value in sums[:, band, i]) for i in range(3))
        there = sums[sums[:, band, 0] > 0, band]
        if count:
            # Compute with Python's integers, which have any size: the variance of 10^10 pixels is exact until its root.
            spread = (squares * count - total * total) / (count * count)
            row = (total / count, spread**0.5, int(there[:, 3].min()), int(there[:, 4].max()), count)
        for i, name in enumerate(found):
            found[name].append(row[i] if count else (0 if name == "count" else None))
        for p in PERCENTILES:
            percentiles[str(p)].append(_percentile(histogram, p, dtype) if count else None)
    return {**found, "percentiles": {**percentiles}, "split": split}


def _percentile(histogram: NDArray[np.int64], percent: float, dtype: str) -> float:
    """Estimate a percentile of one band from a histogram of its pixel values. Interpolate inside the bin that has it.

    Args:
        histogram: Number of pixels in each bin; at least one pixel. Each bin counts an equal range of values.
        percent: Percent of the pixels that are not above the result, 0..100.
        dtype: Type of the pixels. It tells the range of values.

    Returns:
        The pixel value, rounded to three digits after the point.
    """
    width = (np.iinfo(dtype).max + 1) // len(histogram)
    reached = np.cumsum(histogram)
    wanted = reached[-1] * percent / 100
    bin_ = int(np.searchsorted(reached, wanted))
    before = reached[bin_] - histogram[bin_]
    share = (wanted - before) / histogram[bin_] if width > 1 else 0.0
    return round(float(width * (bin_ + share)), 3)
