"""Divide the windows of a scene into blocks, and predict blocks. The predictions of a block are saved as one file."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stssl.base.arrays import AnyArray, Floats
from stssl.base.errors import DataError
from stssl.mapping.ensemble import Ensemble
from stssl.mapping.layers import Layer, LayerReader, Region
from stssl.mapping.scene import Scene
from stssl.mapping.windows import WindowAxis, WindowGrid

BLOCK_SIDE = 2048
"""Largest height and width of a block's cells in pixels, if memory allows it."""
BLOCK_BYTES = 48 << 20
"""Largest size of a block's stored values in memory, in bytes. Two blocks are in memory at a time."""

OnWindows = Callable[[int], None]
"""Function that gets the number of windows that were predicted since its last call."""


@dataclass(frozen=True)
class SceneBlock:
    """Describe a block (rectangle of windows of a scene).

    It has a number, and the numbers of its rows of windows (`down`) and of its columns of windows (`across`).
    """

    number: int
    down: range
    across: range


@dataclass(frozen=True)
class BlockPlan:
    """Divide the windows of a scene into blocks: rectangles of windows.

    Attributes:
        grid: Windows of the scene.
        rows: Height of a block, in windows.
        columns: Width of a block, in windows.
    """

    grid: WindowGrid
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return into how many rows and how many columns of blocks (rectangles of windows) the scene is divided."""
        return -(-self.grid.down.count // self.rows), -(-self.grid.across.count // self.columns)

    @property
    def count(self) -> int:
        """Return how many blocks (rectangles of windows) the scene has."""
        return self.shape[0] * self.shape[1]

    def block(self, number: int) -> SceneBlock:
        """Return the description of the block with this number. Blocks are numbered from 0, row by row."""
        row, column = divmod(number, self.shape[1])
        down = range(row * self.rows, min((row + 1) * self.rows, self.grid.down.count))
        across = range(column * self.columns, min((column + 1) * self.columns, self.grid.across.count))
        return SceneBlock(number, down, across)

    def windows(self, number: int) -> int:
        """Return how many windows the block with this number has."""
        block = self.block(number)
        return len(block.down) * len(block.across)

    def cells(self, block: SceneBlock) -> tuple[range, range]:
        """Return the row numbers and the column numbers of the scene's pixels that belong to a block.

        These are the pixels in the cells (middle parts) of the block's windows. Each pixel belongs to one block.
        """
        return _cells(self.grid.down, block.down), _cells(self.grid.across, block.across)


def _cells(axis: WindowAxis, numbers: range) -> range:
    return range(numbers.start * axis.stride, min(numbers.stop * axis.stride, axis.size))


def plan_blocks(scene: Scene, stride: int, window: int) -> BlockPlan:
    """Lay windows over a scene, and return them divided into blocks (rectangles of windows) that fit into memory.

    Args:
        scene: The scene.
        stride: Distance between the first pixels of neighboring windows, in pixels of the student's finest band.
        window: Side of a window, in pixels of the student's finest band.
    """
    ratios = [round(layer.rows) for layer in scene.layers], [round(layer.columns) for layer in scene.layers]
    down, across = (
        _axis(size, own, max(1, round(stride * own / window)), coarse)
        for size, own, coarse in zip((scene.height, scene.width), scene.window, ratios, strict=True)
    )
    pixel_bytes = sum(
        len(layer.bands) * np.dtype(layer.dtype).itemsize / (layer.rows * layer.columns) for layer in scene.layers
    )
    side = min(BLOCK_SIDE, int((BLOCK_BYTES / pixel_bytes) ** 0.5))
    return BlockPlan(WindowGrid(down, across), max(1, side // down.stride), max(1, side // across.stride))


def _axis(size: int, window: int, stride: int, ratios: Sequence[int]) -> WindowAxis:
    """Lay windows along one axis of a scene, and return them.

    If possible, they begin where pixels of coarser layers (bands of larger pixels) begin.

    Args:
        size: Length of the scene in pixels.
        window: Length of a window in pixels.
        stride: Distance between the first pixels of neighboring windows.
        ratios: Size of a pixel of each layer, in pixels of the scene, the smallest first.
    """
    margin = (window - stride) // 2
    # Begin windows where coarse pixels begin. Otherwise the coarse bands would be shifted by a part of a pixel.
    for ratio in ratios:
        if stride % ratio == 0:
            margin -= margin % ratio
    return WindowAxis(size, window, stride, margin)


@dataclass(frozen=True)
class BlockResult:
    """Describe the predictions for the windows of a block: `rows` times `columns` windows.

    Attributes:
        values: [rows, columns, C] probabilities of C classes for each window; 0 for windows that are not valid.
        valid: [rows, columns] False for windows in which a band has no measured pixel.
        measured: [height, width] True for pixels that are measured in all bands. The pixels are those in the cells
            (middle parts) of the windows.
    """

    values: Floats
    valid: NDArray[np.bool_]
    measured: NDArray[np.bool_]

    def packed(self) -> bytes:
        """Return the predictions of the block as bytes, in NumPy's format `npz`."""
        buffer = io.BytesIO()
        shape = np.array(self.measured.shape)
        arrays = {"values": self.values, "valid": self.valid, "measured": np.packbits(self.measured), "shape": shape}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stubs take a keyword for `allow_pickle`
        return buffer.getvalue()

    @classmethod
    def unpacked(cls, data: bytes) -> "BlockResult":
        """Return the predictions of a block, read from the bytes `data` that `packed` made."""
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            height, width = (int(size) for size in found["shape"])
            measured = np.unpackbits(found["measured"], count=height * width).astype(np.bool_).reshape(height, width)
            return cls(found["values"], found["valid"], measured)


@dataclass(frozen=True)
class BlockInput:
    """Hold the pixel values of a block, as they are read from a scene's files: a rectangle of each layer.

    A layer has the bands of one pixel size. Each item of `regions` has the values of a layer, and the row and the
    column of the layer at which they begin.
    """

    block: SceneBlock
    regions: tuple[tuple[Region, int, int], ...]


class BlockPredictor:
    """Read blocks (groups of windows) of a scene from its files, and predict them.

    One thread may read while another one predicts.
    """

    def __init__(
        self, scene: Scene, plan: BlockPlan, ensemble: Ensemble, *, batch: int, models: Sequence[str] = ()
    ) -> None:
        """Store the scene, its blocks and the students.

        Args:
            scene: The scene.
            plan: Blocks of the scene.
            ensemble: Students, whose probabilities are averaged.
            batch: Number of windows that the students see at a time.
            models: Name of each student for error messages; empty for `model 1`, `model 2`, ...
        """
        self.scene, self.plan, self.ensemble, self.batch = scene, plan, ensemble, batch
        self.models = tuple(models) or tuple(f"model {number}" for number in range(1, len(ensemble.students) + 1))
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> "BlockPredictor":
        """Move the students to a device, and return this object."""
        self.device = device
        self.ensemble.to(device)
        return self

    def read(self, reader: LayerReader, number: int) -> BlockInput:
        """Read the pixel values of a block from the scene's files, and return them.

        Args:
            reader: Reader that only the calling thread uses.
            number: Number of the block.

        Raises:
            DataError: A file cannot be read.
        """
        block = self.plan.block(number)
        down, across = self.plan.grid.down, self.plan.grid.across
        regions = []
        for layer in self.scene.layers:
            tops, lefts = self._starts(layer, block)
            height, width = self._size(layer)
            shape = (tops[-1] - tops[0] + height, lefts[-1] - lefts[0] + width)
            regions.append((reader.read(layer, tops[0], lefts[0], *shape), tops[0], lefts[0]))
        # Larger strides would leave gaps between windows, and pixels in gaps would get no prediction.
        assert down.stride <= down.window and across.stride <= across.window
        return BlockInput(block, tuple(regions))

    def _starts(self, layer: Layer, block: SceneBlock) -> tuple[list[int], list[int]]:
        """Return the first row of each row of a block's windows, and the first column of each column of its windows.

        Both are counted in pixels of the layer `layer` (bands of one pixel size), and may be negative.
        """
        grid = self.plan.grid
        tops = [layer.own_row(grid.down.start(number)) for number in block.down]
        return tops, [layer.own_column(grid.across.start(number)) for number in block.across]

    def _size(self, layer: Layer) -> tuple[int, int]:
        """Return the height and width of a window, in pixels of a layer (bands of one pixel size)."""
        height, width = self.scene.window
        return max(1, round(height / layer.rows)), max(1, round(width / layer.columns))

    @torch.inference_mode()
    def predict(self, given: BlockInput, progress: OnWindows | None = None) -> BlockResult:
        """Predict the class probabilities of a block's windows, and say which windows and pixels are measured.

        Args:
            given: Pixel values of the block, as `read` returns them.
            progress: Called after each batch of windows, with the number of windows in it.

        Returns:
            Predictions of the block. Windows in which a band has no measured pixel have the probabilities 0.

        Raises:
            DataError: A student gives numbers that are not finite.
        """
        block, count = given.block, len(given.block.down) * len(given.block.across)
        valid = self._valid(given)
        chosen = np.flatnonzero(valid.reshape(-1))
        classes = len(self.ensemble.students[0].classes)  # type: ignore[arg-type]  # torch does not know the type
        values = np.zeros((count, classes), np.float32)
        for start in range(0, len(chosen), self.batch):
            numbers = chosen[start : start + self.batch]
            windows = {
                place: torch.from_numpy(self._windows(layer, given, place, numbers)).to(self.device)
                for place, layer in enumerate(self.scene.layers)
            }
            values[numbers] = self.ensemble(windows).cpu().numpy()
            if not np.isfinite(values[numbers]).all():
                raise DataError(self._broken(block, windows, numbers))
            if progress:
                progress(len(numbers))
        shape = (len(block.down), len(block.across))
        return BlockResult(values.reshape(*shape, classes), valid, self._measured(given))

    def _broken(self, block: SceneBlock, windows: Mapping[int, Tensor], numbers: NDArray[np.intp]) -> str:
        """Return the error message about predictions that are not finite. It names the model and the window.

        Args:
            block: Block with the windows.
            windows: Pixel values of a batch of windows, by the number of the layer.
            numbers: Number of each window of the batch in the block.
        """
        student, window = self.ensemble.broken(windows) or (0, 0)
        row, column = divmod(int(numbers[window]), len(block.across))
        top, left = self.plan.grid.down.start(block.down[row]), self.plan.grid.across.start(block.across[column])
        return (
            f"{self.models[student]} gives probabilities that are not finite, for the window at row {top}, column "
            f"{left} of {self.scene.name}. Most likely the model is damaged: copy it again, or give another one. No "
            "map is written."
        )

    def _windows(self, layer: Layer, given: BlockInput, place: int, numbers: NDArray[np.intp]) -> Floats:
        """Return the pixel values of n windows in one layer, [n, bands, height, width].

        Pixels that are not measured get the mean of their band in the window.

        Args:
            layer: The layer (bands of one pixel size).
            given: Pixel values of the block.
            place: Position of the layer among the scene's layers.
            numbers: [n] numbers of the windows in the block, counted row by row.
        """
        (region, top, left), (height, width) = given.regions[place], self._size(layer)
        tops, lefts = self._starts(layer, given.block)
        out = np.empty((len(numbers), len(layer.bands), height, width), np.float32)
        for target, number in zip(out, numbers, strict=True):
            row, column = divmod(int(number), len(lefts))
            area = _area(tops[row] - top, lefts[column] - left, height, width)
            target[...] = region.values[:, *area]
            if region.measured is not None:
                _fill(target, region.measured[:, *area])
        return out

    def _valid(self, given: BlockInput) -> NDArray[np.bool_]:
        """Return for each window of a block whether every band has a measured pixel in it, as booleans [rows, columns].

        `given` has the pixel values of the block.
        """
        valid = np.ones((len(given.block.down), len(given.block.across)), np.bool_)
        for layer, (region, top, left) in zip(self.scene.layers, given.regions, strict=True):
            if region.measured is None:
                continue
            tops, lefts = self._starts(layer, given.block)
            height, width = self._size(layer)
            for row, own_top in enumerate(tops):
                for column, own_left in enumerate(lefts):
                    area = _area(own_top - top, own_left - left, height, width)
                    valid[row, column] &= bool(region.measured[:, *area].any((1, 2)).all())
        return valid

    def _measured(self, given: BlockInput) -> NDArray[np.bool_]:
        """Return for each pixel of a block whether it is measured in all bands, as booleans [height, width].

        The pixels are those in the cells (middle parts) of the block's windows. `given` has the block's pixel values.
        """
        rows, columns = self.plan.cells(given.block)
        found = np.ones((len(rows), len(columns)), np.bool_)
        for layer, (region, top, left) in zip(self.scene.layers, given.regions, strict=True):
            if region.measured is None:
                continue
            own: NDArray[np.bool_] = np.logical_and.reduce(region.measured)
            down = np.floor((np.arange(rows.start, rows.stop) + 0.5 - layer.row) / layer.rows).astype(np.int64) - top
            across = np.arange(columns.start, columns.stop) + 0.5 - layer.column
            right = np.floor(across / layer.columns).astype(np.int64) - left
            found &= own[np.ix_(np.clip(down, 0, own.shape[0] - 1), np.clip(right, 0, own.shape[1] - 1))]
        return found


def _area(row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
    return slice(row, row + height), slice(column, column + width)


def _fill(window: Floats, measured: NDArray[np.bool_]) -> None:
    """Set the pixels of a window that are not measured to the mean of their band, a neutral value for a network.

    Args:
        window: [bands, height, width] values; changed in place.
        measured: [bands, height, width] True where the value is measured. Only these count for the mean.
    """
    if measured.all():
        return
    counts = measured.sum((1, 2))
    sums: AnyArray = np.where(measured, window, 0).sum((1, 2), dtype=np.float64)
    means = np.rint(sums / np.maximum(counts, 1)).astype(np.float32)
    np.copyto(window, means[:, None, None], where=~measured)
