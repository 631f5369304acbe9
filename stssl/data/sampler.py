"""Order patches as a pure function of seed, stream, epoch and patch.

Nothing here depends on threads or restarts, so one rank and many see the same global batches, and a resumed run
continues exactly: the whole state of a sampler is the step number.
"""

import threading

import numpy as np

from stssl.base.arrays import Ints
from stssl.base.distributed import rows_of
from stssl.base.errors import ConfigError
from stssl.base.randomness import RandomStream, permutation, uniforms


class StreamSampler:
    """Order one stream without end: epochs of `size` patches, each shuffled anew, cut into global batches."""

    def __init__(self, size: int, batch: int, seed: int, stream: RandomStream) -> None:
        """Order `size` patches into global batches.

        Args:
            size: Patches of the stream.
            batch: Patches in a global batch.
            seed: Seed of the run.
            stream: Use of random numbers that shuffles it.
        """
        self.size, self.batch, self.seed, self.stream = size, batch, seed, stream

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return positions and epochs, each [rows], of some rows of a step's global batch.

        Args:
            step: Counted from 0.
            rows: Rows of the global batch that are wanted (a rank's rows).
        """
        places = step * self.batch + np.arange(rows.start, rows.stop, dtype=np.int64)
        epochs, offsets = np.divmod(places, self.size)
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = permutation(self.size, self.seed, self.stream, int(epoch))[offsets[here]]
        return positions, epochs

    def whole(self, step: int) -> Ints:
        """Return the positions [batch] of a step's global batch."""
        return self.rows(step, slice(0, self.batch))[0]


class ShardSampler:
    """Order a stream that is fetched shard by shard from an object store.

    Each epoch puts the shards in random order and deals them out to the ranks. A rank goes through its shards and
    delays each patch by up to `mix` shards at random, as a buffer of that many shards would. So a step touches about
    `mix` shards a rank, of which few are new. The order is a function of seed, stream, epoch and number of ranks.
    """

    def __init__(
        self, rows: Ints, shard: int, batch: int, seed: int, stream: RandomStream, *, mix: int, world: int = 1
    ) -> None:
        """Order the patches at store rows `rows` into global batches.

        Args:
            rows: [size] store rows of the stream.
            shard: Patches in a shard.
            batch: Patches in a global batch.
            seed: Seed of the run.
            stream: Use of random numbers that shuffles it.
            mix: Shards that are mixed; 0 delivers one shard after the other.
            world: Number of ranks.

        Raises:
            ConfigError: There are fewer shards than ranks.
        """
        self.size, self.batch, self.seed, self.stream, self.mix, self.world = len(rows), batch, seed, stream, mix, world
        shards = rows // shard
        # Stable, so that positions within a shard keep their order and the result is the same on every machine.
        order = np.argsort(shards, kind="stable").astype(np.int64)
        self._blocks = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)
        if len(self._blocks) < world:
            raise ConfigError(
                f"the training patches lie in {len(self._blocks)} shards, fewer than {world} ranks: "
                "lower launch.workers, or set data.cache=host"
            )
        self._starts: list[list[int]] = [[0] for _ in range(world)]
        self._orders: list[dict[int, Ints]] = [{} for _ in range(world)]
        self._lock = threading.Lock()

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return positions and epochs, each [rows], of some rows of a step's global batch.

        Ranks have different shards, and so each counts its own epochs.

        Args:
            step: Counted from 0.
            rows: Rows of the global batch that are wanted.
        """
        parts = []
        for rank in range(self.world):
            block = rows_of(self.batch, rank, self.world)
            start, stop = max(rows.start, block.start), min(rows.stop, block.stop)
            if start < stop:
                first = step * (block.stop - block.start) - block.start
                parts.append(self._drawn(rank, np.arange(first + start, first + stop, dtype=np.int64)))
        positions, epochs = zip(*parts, strict=True)
        return np.concatenate(positions), np.concatenate(epochs)

    def whole(self, step: int) -> Ints:
        """Return the positions [batch] of a step's global batch."""
        return self.rows(step, slice(0, self.batch))[0]

    def _drawn(self, rank: int, places: Ints) -> tuple[Ints, Ints]:
        """Return positions and epochs at places of a rank's own order, for one thread at a time."""
        with self._lock:
            return self._placed(rank, places)

    def _placed(self, rank: int, places: Ints) -> tuple[Ints, Ints]:
        starts = self._starts[rank]
        while starts[-1] <= places[-1]:
            starts.append(starts[-1] + sum(len(block) for block in self._dealt(rank, len(starts) - 1)))
        epochs = np.searchsorted(starts, places, side="right").astype(np.int64) - 1
        positions = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            positions[here] = self._order(rank, epoch)[places[here] - starts[epoch]]
        return positions, epochs

    def _dealt(self, rank: int, epoch: int) -> list[Ints]:
        """Return the shards of a rank in one epoch, in order, each as an array of positions."""
        order = permutation(len(self._blocks), self.seed, self.stream, epoch)
        return [self._blocks[number] for number in order[rank :: self.world].tolist()]

    def _order(self, rank: int, epoch: int) -> Ints:
        """Return the positions of a rank in one epoch, in their order; the last two epochs are remembered."""
        known = self._orders[rank]
        if epoch not in known:
            blocks = self._dealt(rank, epoch)
            positions = np.concatenate(blocks)
            turn = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
            numbers = uniforms((self.seed, self.stream, RandomStream.SHARD_DELAY, epoch, positions), 1)[:, 0]
            # float64, since turn numbers of thousands of shards leave float32 too few digits for the delay.
            delay = numbers.astype(np.float64) * self.mix
            # A batch may span two epochs; older orders of a large store would only take memory.
            if len(known) > 1:
                known.pop(min(known))
            known[epoch] = positions[np.argsort(turn + delay, kind="stable")]
        return known[epoch]
