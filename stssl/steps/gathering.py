"""Gather on each rank (training process) the predictions of all ranks from which pseudo-labels are made."""

from torch import Tensor

from stssl.algorithms import LabelerOutputs
from stssl.base.batch import Stream
from stssl.base.distributed import gather_rows, row_counts, world_size


class Gathering:
    """Collect on each rank (training process) the logits of all ranks from which pseudo-labels are made.

    These are the logits of the labeler (the network that makes the pseudo-labels) and, if needed, of the student.
    """

    def __init__(self) -> None:
        """Create an empty cache for the numbers of patches that each rank has in a batch."""
        # Cache these numbers, so that ranks exchange them only once: they never change, and each exchange waits for
        # the device.
        self._counts: dict[tuple[Stream, int], list[int]] = {}

    def __call__(self, outputs: LabelerOutputs) -> LabelerOutputs:
        """Return the logits of labeler and student for the patches of all ranks, rank 0 first.

        NaN becomes 0, and infinite logits become finite.

        Args:
            outputs: Logits of labeler and student for the patches of this rank.
        """
        # Replace NaN and infinities: if one entered a running average of an algorithm, it would stay there forever.
        labeler = {view: self._rows(rows.nan_to_num(), view.stream) for view, rows in outputs.labeler.items()}
        student = {view: self._rows(rows.nan_to_num(), view.stream) for view, rows in outputs.student.items()}
        blank = None if outputs.blank is None else gather_rows(outputs.blank.nan_to_num(), [1] * world_size())
        return LabelerOutputs(labeler, student, self._rows(outputs.index, Stream.UNLABELED), blank)

    def _rows(self, rows: Tensor, stream: Stream) -> Tensor:
        key = (stream, len(rows))
        if key not in self._counts:
            self._counts[key] = row_counts(rows)
        return gather_rows(rows, self._counts[key])
