"""Find temporal positives for pretraining: for each patch, a patch of the same place from another time.

See Ayush et al., ICCV 2021 (arXiv:2011.09980), section 3.3.
"""

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Ints
from stssl.base.randomness import RandomStream, uniforms


class Positives:
    """Find partners of patches, given by store rows: patches that show the same place at another time."""

    def __init__(self, rows: Ints, places: NDArray[np.integer]) -> None:
        """Group store rows by place, to find partners fast.

        Args:
            rows: [n] store rows that get partners, and among which partners are found.
            places: [N] number of the place of each of the N store rows; negative if the place is not known.
        """
        own_places = np.asarray(places)[rows]
        order = np.argsort(own_places, kind="stable")
        self._rows = rows[order]
        sorted_places = own_places[order]
        first = np.searchsorted(sorted_places, own_places, "left")
        last = np.searchsorted(sorted_places, own_places, "right")
        known = own_places >= 0
        size = int(rows.max()) + 1 if len(rows) else 0
        self._start, self._count, self._own = (np.zeros(size, np.int64) for _ in range(3))
        self._start[rows] = first
        self._count[rows] = np.where(known, last - first, 1)
        place_of = np.empty(len(rows), np.int64)
        place_of[order] = np.arange(len(rows))
        self._own[rows] = place_of - first

    def draw(self, rows: Ints, epochs: Ints, seed: int) -> Ints:
        """Choose a partner for each store row at random: another row of the same place; without one, the row itself.

        All other rows of the place are equally likely. The choice depends only on seed, epoch and row.

        Args:
            rows: [n] store rows.
            epochs: [n] epoch in which each row is read.
            seed: Seed of the run.

        Returns:
            [n] store rows of the partners.
        """
        others = self._count[rows] - 1
        numbers = uniforms((seed, RandomStream.PARTNER, epochs, rows), 1)[:, 0]
        pick = np.minimum((numbers * others).astype(np.int64), np.maximum(others - 1, 0))
        pick += pick >= self._own[rows]  # step over the row itself, since `pick` counts only the others of its place
        chosen = self._start[rows] + np.where(others > 0, pick, 0)
        return np.where(others > 0, self._rows[np.minimum(chosen, len(self._rows) - 1)], rows)

    def share(self, rows: Ints) -> float:
        """Return the share (0..1) of the store rows `rows` that have another row of the same place; 0 for no rows."""
        return float((self._count[rows] > 1).mean()) if len(rows) else 0.0
