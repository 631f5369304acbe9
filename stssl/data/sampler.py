"""Shuffle the patches of a stream (labeled or unlabeled). Seed, stream and epoch decide the sequence.

Samplers compute the batch of any step from its number and have no other state. So a resumed run gets the same batches,
with any number of threads. The global batches of `StreamSampler` do not depend on the number of ranks (training
processes), but those of `ShardSampler` do.
"""

import threading

import numpy as np

from stssl.base.arrays import Ints
from stssl.base.distributed import rows_of
from stssl.base.errors import ConfigError
from stssl.base.randomness import RandomStream, permutation, uniforms


class StreamSampler:
    """Shuffle `size` patches anew for each epoch, and cut the endless sequence of all epochs into global batches.

    A global batch is the batch of all training processes together.
    """

    def __init__(self, size: int, batch: int, seed: int, stream: RandomStream) -> None:
        """Set the number of patches, the batch size and the seed of the shuffle.

        Args:
            size: Number of patches in the stream.
            batch: Number of patches in a global batch.
            seed: Seed of the run.
            stream: Name of the random numbers for the shuffle. Other names give independent numbers.
        """
        self.size, self.batch, self.seed, self.stream = size, batch, seed, stream

    def rows(self, step: int, rows: slice) -> tuple[Ints, Ints]:
        """Return which patches lie in some rows of a step's global batch: their positions [rows] and epochs [rows].

        A position is the index of a patch in the stream's list of patches.

        Args:
            step: Number of the step, counted from 0.
            rows: Wanted rows of the global batch, such as those of one rank.
        """
        places = step * self.batch + np.arange(rows.start, rows.stop, dtype=np.int64)
        epochs, offsets = np.divmod(places, self.size)
        positions = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = permutation(self.size, self.seed, self.stream, int(epoch))[offsets[here]]
        return positions, epochs

    def whole(self, step: int) -> Ints:
        """Return all patches of the global batch of step `step`, as positions [batch] in the stream's list."""
        return self.rows(step, slice(0, self.batch))[0]


class ShardSampler:
    """Shuffle patches that are downloaded shard by shard from an object store. A shard is a file with many patches.

    In each epoch, the shards are shuffled and divided among the ranks (training processes). A rank goes through its
    shards, and delays each patch at random by up to `mix` shards, as a shuffle buffer of `mix` shards would do. So a
    step of a rank uses patches of about `mix` shards, and most of these shards were used in the step before too. The
    sequence depends on the number of ranks.
    """

    def __init__(
        self, rows: Ints, shard: int, batch: int, seed: int, stream: RandomStream, *, mix: int, world: int = 1
    ) -> None:
        """Set the patches to shuffle, the size of batches and shards, and the random numbers for the shuffle.

        Args:
            rows: [size] store rows of the stream.
            shard: Number of patches in a shard.
            batch: Number of patches in a global batch.
            seed: Seed of the run.
            stream: Name of the random numbers for the shuffle. Other names give independent numbers.
            mix: Number of shards whose patches are mixed; 0 delivers one shard after the other.
            world: Number of ranks.

        Raises:
            ConfigError: The stream has fewer shards than the run has ranks.
        """
        self.size, self.batch, self.seed, self.stream, self.mix, self.world = len(rows), batch, seed, stream, mix, world
        shards = rows // shard
        # Sort stably: equal shards then keep the sequence of their positions, so every machine gets the same result.
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
        """Return which patches lie in some rows of a step's global batch: their positions [rows] and epochs [rows].

        A position is the index of a patch in the stream's list of patches. Ranks have different shards, which may hold
        different numbers of patches. So each rank counts its own epochs.

        Args:
            step: Number of the step, counted from 0.
            rows: Wanted rows of the global batch. A rank's rows lie one after the other.
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
        """Return all patches of the global batch of step `step`, as positions [batch] in the stream's list."""
        return self.rows(step, slice(0, self.batch))[0]

    def _drawn(self, rank: int, places: Ints) -> tuple[Ints, Ints]:
        """Return positions in the stream's list [k] and epochs [k] of some patches of one training process.

        A lock lets only one thread compute at a time, since all threads share the cached sequences of two epochs.

        Args:
            rank: Number of the training process.
            places: [k] indexes in the endless sequence of its patches over all epochs, from low to high.
        """
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
        """Return the shuffled shards that the training process `rank` gets in an epoch.

        Each shard is an array of the positions of its patches in the stream's list.
        """
        order = permutation(len(self._blocks), self.seed, self.stream, epoch)
        return [self._blocks[number] for number in order[rank :: self.world].tolist()]

    def _order(self, rank: int, epoch: int) -> Ints:
        """Return all patches that the training process `rank` gets in an epoch, shuffled.

        The result is an array of positions in the stream's list. Cache the results of two epochs for each rank.
        """
        known = self._orders[rank]
        if epoch not in known:
            blocks = self._dealt(rank, epoch)
            positions = np.concatenate(blocks)
            turn = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
            numbers = uniforms((self.seed, self.stream, RandomStream.SHARD_DELAY, epoch, positions), 1)[:, 0]
            # Use float64: the delay is added to the number of a shard, and with thousands of shards float32 would have
            # too few digits left for the delay.
            delay = numbers.astype(np.float64) * self.mix
            # Cache two epochs, because a batch may lie in two. Forget the older ones: for a large store, each takes
            # much memory.
            if len(known) > 1:
                known.pop(min(known))
            known[epoch] = positions[np.argsort(turn + delay, kind="stable")]
        return known[epoch]
