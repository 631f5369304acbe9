"""Gather the predictions that pseudo-labels come from, from all ranks (training processes) onto each rank."""

from torch import Tensor

from stssl.algorithms import LabelerOutputs
from stssl.base.batch import Stream
from stssl.base.distributed import gather_rows, row_counts, world_size


class Gathering:
    """Collect the labeler's logits of all ranks (training processes) on each rank."""

    def __init__(self) -> None:
        """Create the empty table of the number of rows on each rank."""
        # Store the row counts, to exchange them only once: they never change, and each exchange waits for the device.
        self._counts: dict[tuple[Stream, int], list[int]] = {}

    def __call__(self, outputs: LabelerOutputs) -> LabelerOutputs:
        """Return the outputs of labeler and student for the rows of all ranks, in the order of the ranks."""
        # Replace NaN and infinities: a running average would keep one such value forever.
        labeler = {view: self._rows(rows.nan_to_num(), view.stream) for view, rows in outputs.labeler.items()}
        student = {view: self._rows(rows.nan_to_num(), view.stream) for view, rows in outputs.student.items()}
        blank = None if outputs.blank is None else gather_rows(outputs.blank.nan_to_num(), [1] * world_size())
        return LabelerOutputs(labeler, student, self._rows(outputs.index, Stream.UNLABELED), blank)

    def _rows(self, rows: Tensor, stream: Stream) -> Tensor:
        key = (stream, len(rows))
        if key not in self._counts:
            self._counts[key] = row_counts(rows)
        return gather_rows(rows, self._counts[key])
