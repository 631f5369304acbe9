"""Define what flows from the loader into a step: streams, views, metadata and the batch itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from torch import Tensor

from stssl.base.randomness import RandomStream


class MetadataColumn(IntEnum):
    """Name the columns of a metadata table [N, 4], in order; NaN stands for a missing value.

    Attributes:
        LAT: Latitude in degrees north (WGS 84).
        LON: Longitude in degrees east.
        DAY: Day of the year, 1..366.
        HOUR: UTC hour with its fraction, 0..24.
    """

    LAT = 0
    LON = 1
    DAY = 2
    HOUR = 3


PLACE = (MetadataColumn.LAT, MetadataColumn.LON)
DATE = (MetadataColumn.DAY, MetadataColumn.HOUR)

IGNORED = -1
"""Choice id of a label that is not known; it counts in no loss and no metric."""


class Stream(Enum):
    """Name the two sources of patches that a run draws from without end."""

    LABELED = "labeled"
    UNLABELED = "unlabeled"

    @property
    def randomness(self) -> RandomStream:
        """Return the random stream that belongs to this source of patches."""
        return RandomStream[self.name]


class View(Enum):
    """Name the augmented versions of the two streams' patches."""

    LABELED_WEAK = "labeled_weak"
    LABELED_STRONG = "labeled_strong"
    UNLABELED_WEAK = "unlabeled_weak"
    UNLABELED_STRONG = "unlabeled_strong"

    @property
    def stream(self) -> Stream:
        """Return the stream whose patches this view shows."""
        return Stream.LABELED if self in (View.LABELED_WEAK, View.LABELED_STRONG) else Stream.UNLABELED

    @property
    def randomness(self) -> RandomStream:
        """Return the random stream that this view's augmentation is drawn from."""
        return RandomStream[self.name]


@dataclass(frozen=True)
class Progress:
    """Locate a step in training: the step about to be taken, counted from 0, of `total`."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Return the share of the steps that are taken already, 0..1."""
        return self.step / max(self.total, 1)


@dataclass(frozen=True)
class Batch:
    """Hold this rank's rows of one global batch, on the device of the networks.

    Attributes:
        images: For each view [n, bands, height, width], normalized; n is that of the view's stream.
        metadata: For each stream [n, 4], columns as in `MetadataColumn`, NaN where missing.
        labels: [n, G] choice ids of the labeled rows, `IGNORED` where unknown.
        index: [m] positions of the unlabeled rows in the run's list of unlabeled patches (0..unlabeled_count-1).
        truth: [m, G] choice ids of the unlabeled rows where the store knows them. Only the quality of pseudo-labels is
            measured with them; nothing is learned from them.
    """

    images: dict[View, Tensor]
    metadata: dict[Stream, Tensor]
    labels: Tensor
    index: Tensor
    truth: Tensor | None = None

    def split(self, parts: int) -> Iterator["Batch"]:
        """Yield `parts` micro-batches: contiguous and nearly equal parts of each stream's rows."""
        for part in range(parts):
            yield replace(
                self,
                images={view: part_rows(image, part, parts) for view, image in self.images.items()},
                metadata={stream: part_rows(table, part, parts) for stream, table in self.metadata.items()},
                labels=part_rows(self.labels, part, parts),
                index=part_rows(self.index, part, parts),
                truth=None if self.truth is None else part_rows(self.truth, part, parts),
            )


def part_rows(rows: Tensor, part: int, parts: int) -> Tensor:
    """Return the `part`-th of `parts` contiguous parts of rows; sizes differ by at most one.

    Args:
        rows: [n, ...] tensor.
        part: Number of the part, from 0.
        parts: Number of parts.
    """
    return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]
