"""Which patch comes when, and with what random numbers: pure functions of seed, stream, epoch and patch.

Nothing here depends on ranks, threads or restarts, so one rank and many see the same global batches, and a resumed
run goes on where it was: the whole sampler state is the step number.
"""

import numpy as np

from stssl.randomness import Ints, permutation


class StreamSampler:
    """The infinite order of one stream: epochs of `size` patches, each shuffled anew, cut into global batches."""

    def __init__(self, size: int, batch: int, seed: int, stream: str) -> None:
        """Order `size` patches into batches of `batch`; `stream` names the order."""
        self.size, self.batch, self.seed, self.stream = size, batch, seed, stream

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Positions and epochs, each [rows], of some rows of the global batch of a step.

        Args:
            step: Counted from 0.
            rows: The rows of the global batch that are wanted (a rank's block).
        """
        places = step * self.batch + np.arange(rows.start, rows.stop, dtype=np.int64)
        epochs, offsets = np.divmod(places, self.size)
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = permutation(self.size, self.seed, self.stream, int(epoch))[offsets[here]]
        return positions, epochs
