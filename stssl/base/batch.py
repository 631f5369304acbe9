"""Define the data of a training step: streams (labeled, unlabeled), augmented views, metadata and the batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from torch import Tensor

from stssl.base.randomness import RandomStream


class MetadataColumn(IntEnum):
    """Name the columns of a metadata table [N, 4] of N patches. NaN stands for a missing value.

    Attributes:
        LAT: Latitude in degrees north (WGS 84).
        LON: Longitude in degrees east.
        DAY: Day of the year, 1..366.
        HOUR: Hour of the day in UTC, with its fraction, 0..24.
    """

    LAT = 0
    LON = 1
    DAY = 2
    HOUR = 3


PLACE = (MetadataColumn.LAT, MetadataColumn.LON)
DATE = (MetadataColumn.DAY, MetadataColumn.HOUR)

IGNORED = -1
"""Choice id of an unknown label. Losses and metrics leave it out."""


class Stream(Enum):
    """Name the two sources of training patches, labeled and unlabeled. A run reads each source again and again."""

    LABELED = "labeled"
    UNLABELED = "unlabeled"

    @property
    def randomness(self) -> RandomStream:
        """Return the member of `RandomStream` for the random numbers that shuffle the patches of this source."""
        return RandomStream[self.name]


class View(Enum):
    """Name the augmented versions (views) of a patch, such as the weak view of an unlabeled patch."""

    LABELED_WEAK = "labeled_weak"
    LABELED_STRONG = "labeled_strong"
    UNLABELED_WEAK = "unlabeled_weak"
    UNLABELED_STRONG = "unlabeled_strong"

    @property
    def stream(self) -> Stream:
        """Return the source (labeled or unlabeled) of the patches that this view augments."""
        return Stream.LABELED if self in (View.LABELED_WEAK, View.LABELED_STRONG) else Stream.UNLABELED

    @property
    def randomness(self) -> RandomStream:
        """Return the random stream (a `RandomStream`) from which the augmentation of this view draws its numbers."""
        return RandomStream[self.name]


@dataclass(frozen=True)
class Progress:
    """Say how far a training has come: the number of the current step, counted from 0, and the number of all steps."""

    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Return the share of all steps that are done before the current step, 0..1."""
        return self.step / max(self.total, 1)


@dataclass(frozen=True)
class Batch:
    """Hold the patches that this training process (rank) gets from one global batch, on the device of the networks.

    n is the number of labeled patches, m the number of unlabeled patches. G is the number of decisions for each patch:
    1 if a patch has one class, else the number of classes.

    Attributes:
        images: By view, normalized images [n, bands, height, width] for labeled views, [m, ...] for unlabeled views.
        metadata: By stream (labeled, unlabeled), a table [n, 4] or [m, 4] with the columns of `MetadataColumn`; NaN if
            missing.
        labels: [n, G] choice ids (the right choice in each decision) of the labeled patches; `IGNORED` if unknown.
        index: [m] positions of the unlabeled patches in the run's list of unlabeled patches, counted from 0.
        truth: [m, G] choice ids of the unlabeled patches, `IGNORED` if the store does not know them. They only measure
            the quality of pseudo-labels. Training does not use them. None if the step has no unlabeled patches.
    """

    images: dict[View, Tensor]
    metadata: dict[Stream, Tensor]
    labels: Tensor
    index: Tensor
    truth: Tensor | None = None

    def split(self, parts: int) -> Iterator["Batch"]:
        """Yield `parts` micro-batches (smaller batches) that together make up this batch.

        The micro-batches differ by at most one labeled patch, and by at most one unlabeled patch.
        """
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
    """Cut a tensor into `parts` pieces of contiguous rows, and return one piece. The pieces differ by at most one row.

    Args:
        rows: [n, ...] tensor.
        part: Number of the piece to return, counted from 0.
        parts: Number of pieces.
    """
    return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]
