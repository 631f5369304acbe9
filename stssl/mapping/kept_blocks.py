"""Save finished blocks beside the map, so that a killed prediction can resume, and lock a map for one prediction.

A block is a group of windows. The folder `.NAME.parts` has one file with the predictions of each finished block, and
the file `plan.json`, which says what is predicted. A block's file begins with a checksum of its other bytes. If they
do not match, the block counts as missing and is predicted again.
"""

import contextlib
import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stssl.base.arrays import Floats
from stssl.base.errors import RunError
from stssl.base.exclusive import sole_holder
from stssl.base.json_types import JsonObject
from stssl.base.whole_files import cannot_write, write_whole
from stssl.mapping.blocks import BlockPlan, BlockResult

DIGEST = 16
"""Size of a block's checksum in bytes."""
PLAN = "plan.json"


class KeptBlocks:
    """Write and read the predictions of one map's finished blocks in a hidden folder beside the map.

    A block is a group of windows (parts of the scene that a student classifies).
    """

    def __init__(self, out: Path, plan: BlockPlan) -> None:
        """Choose the folder in which the predictions of the map's blocks will lie. Write nothing yet.

        Args:
            out: Path of the map.
            plan: Blocks (groups of windows) of the map.
        """
        self.out, self.plan = out, plan
        self.folder = out.with_name(f".{out.name}.parts")
        self._cache: OrderedDict[int, BlockResult] = OrderedDict()

    def prepare(self, identity: str, about: JsonObject) -> JsonObject:
        """Make the folder ready for the blocks of a prediction. If it has blocks of another prediction, remove them.

        Args:
            identity: Hash of all that decides the predictions.
            about: Entries to write into `plan.json` beside the hash, such as the date at which the prediction began.

        Returns:
            The entries that an earlier call for the same prediction wrote, or else `about`.

        Raises:
            RunError: The folder cannot be written.
        """
        found = self.begun(identity)
        if found is not None:
            return found
        self._empty()
        write_whole(self.folder / PLAN, json.dumps({"identity": identity, "about": about}))
        return about

    def begun(self, identity: str) -> JsonObject | None:
        """Return the entries that an earlier, unfinished prediction with this hash wrote into `plan.json`.

        Return None if there was no such prediction.

        Args:
            identity: Hash of all that decides the predictions.
        """
        try:
            kept = json.loads((self.folder / PLAN).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or kept.get("identity") != identity or not isinstance(kept.get("about"), dict):
            return None
        found: JsonObject = kept["about"]
        return found

    def _empty(self) -> None:
        """Create the folder of the blocks. If it exists, remove all files from it.

        Raises:
            RunError: The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                path.unlink()
        except OSError as error:
            raise RunError(cannot_write(self.folder, error)) from None

    def path(self, number: int) -> Path:
        """Return the path of the file that has, or will have, the block with this number."""
        return self.folder / f"block_{number:06d}.bin"

    def write(self, number: int, data: bytes) -> None:
        """Write the predictions of a finished block to disk.

        Args:
            number: Number of the block.
            data: Predictions of the block as bytes (made by `BlockResult.packed`).

        Raises:
            RunError: The disk is full, or cannot be written.
        """
        write_whole(self.path(number), hashlib.blake2b(data, digest_size=DIGEST).digest() + data)

    def _read(self, number: int) -> bytes | None:
        """Return the predictions of a finished block as bytes, without checksum.

        Return None if the file of the block `number` is missing or damaged.
        """
        try:
            data = self.path(number).read_bytes()
        except OSError:
            return None
        digest, rest = data[:DIGEST], data[DIGEST:]
        return rest if hashlib.blake2b(rest, digest_size=DIGEST).digest() == digest else None

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that must be predicted: their files are missing or damaged."""
        return [number for number in range(self.plan.count) if self._read(number) is None]

    def block(self, number: int) -> BlockResult:
        """Return the predictions of the finished block `number`, from its file or from memory.

        About two rows of blocks stay in memory, because neighboring pixels of the map need the same blocks.

        Raises:
            RunError: The file of the block was deleted or damaged after it was written.
        """
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        data = self._read(number)
        if data is None:
            raise RunError(f"{self.path(number)} is gone or damaged. Run the same command again.")
        while len(self._cache) >= 2 * self.plan.shape[1] + 2:
            self._cache.popitem(last=False)
        self._cache[number] = BlockResult.unpacked(data)
        return self._cache[number]

    def windows(self, down: range, across: range) -> tuple[Floats, NDArray[np.bool_]]:
        """Collect the predictions of a rectangle of windows from the finished blocks.

        Args:
            down: Numbers of m rows of windows.
            across: Numbers of n columns of windows.

        Returns:
            [m, n, C] probabilities of C classes, and [m, n] booleans: False for windows in which a band has no measured
            pixel. Their probabilities are 0.

        Raises:
            RunError: The file of a block was deleted or damaged after it was written.
        """
        rows = range(down.start // self.plan.rows, (down.stop - 1) // self.plan.rows + 1)
        columns = range(across.start // self.plan.columns, (across.stop - 1) // self.plan.columns + 1)
        found = [[self.block(row * self.plan.shape[1] + column) for column in columns] for row in rows]
        values = np.concatenate([np.concatenate([one.values for one in row], 1) for row in found], 0)
        valid = np.concatenate([np.concatenate([one.valid for one in row], 1) for row in found], 0)
        top, left = rows.start * self.plan.rows, columns.start * self.plan.columns
        area = slice(down.start - top, down.stop - top), slice(across.start - left, across.stop - left)
        return values[area], valid[area]

    def measured(self, rows: range, columns: range) -> NDArray[np.bool_]:
        """Return for each pixel of a rectangle of the scene whether it is measured in all bands.

        Args:
            rows: Row numbers of the rectangle.
            columns: Column numbers of the rectangle.

        Returns:
            [height, width] booleans.

        Raises:
            RunError: The file of a block was deleted or damaged after it was written.
        """
        height, width = (
            self.plan.rows * self.plan.grid.down.stride,
            self.plan.columns * self.plan.grid.across.stride,
        )
        out = np.zeros((len(rows), len(columns)), np.bool_)
        for row in range(rows.start // height, (rows.stop - 1) // height + 1):
            for column in range(columns.start // width, (columns.stop - 1) // width + 1):
                mask = self.block(row * self.plan.shape[1] + column).measured
                down, across = _shared(rows, row * height, len(mask)), _shared(columns, column * width, mask.shape[1])
                out[down[0], across[0]] = mask[down[1], across[1]]
        return out

    def clean(self) -> None:
        """Remove the map's temporary GeoTIFFs after an error, but keep the finished blocks.

        If there are no finished blocks, remove the whole folder.
        """
        if not any(self.folder.glob("block_*.bin")):
            self.remove()
        with contextlib.suppress(OSError):  # ignore a read-only disk: the user sees the first error
            for path in self.folder.glob("*.tif"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all saved blocks of the map, and the temporary files in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _shared(wanted: range, start: int, size: int) -> tuple[slice, slice]:
    """Find the numbers that the range `wanted` and the range start..start+size-1 have in common.

    Return them as two slices: their positions in the first range, and their positions in the second.
    """
    first, last = max(wanted.start, start), min(wanted.stop, start + size)
    return slice(first - wanted.start, last - wanted.start), slice(first - start, last - start)


@contextlib.contextmanager
def sole_prediction(out: Path) -> Iterator[None]:
    """Return a context in which no other process predicts the map `out`. If this process dies, the lock is freed.

    Raises:
        RunError: Another prediction writes the same map, or the lock file cannot be written.
    """
    busy = f"another prediction is writing {out}. Wait for it, stop it, or give another --out."
    with sole_holder(out.with_name(f".{out.name}.lock"), out, busy):
        yield
