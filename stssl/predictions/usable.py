"""Mark patches for which a model's results are not finite, and refuse outputs without any result."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stssl.base.errors import DataError
from stssl.predictions.patches import PatchBatch, PatchSource

NOT_FINITE = "not_finite: the model gives numbers that are not finite; most likely it is damaged"
"""Error of a patch with results that are not finite."""


def with_broken(batch: PatchBatch, finite: NDArray[np.bool_]) -> PatchBatch:
    """Return a batch in which usable patches with results that are not finite are marked as unusable and get an error.

    If there is no such patch, this is the given batch, otherwise a copy.

    Args:
        batch: Batch of n patches.
        finite: [n] False for patches with results of the model that are not finite.
    """
    broken = batch.usable & ~finite
    if not broken.any():
        return batch
    errors = [
        "; ".join(filter(None, (own, NOT_FINITE))) if bad else own
        for own, bad in zip(batch.errors, broken, strict=True)
    ]
    return replace(batch, errors=errors, usable=batch.usable & finite)


def broken_notes(errors: Sequence[str]) -> Iterator[str]:
    """Yield one remark for the user: how many patches have results that are not finite. Yield nothing if none has.

    Args:
        errors: Error of each patch as text, as `with_broken` sets it; empty for patches without errors.
    """
    count = sum(NOT_FINITE in error for error in errors)
    if count:
        yield (
            f"{count:,} of {len(errors):,} patches have no result: the model gives numbers that are not finite. Most "
            "likely it is damaged"
        )


def require_usable(source: PatchSource, usable: NDArray[np.bool_], errors: Sequence[str]) -> None:
    """Check that at least one patch has a result, before a table or Zarr group of results is written.

    Args:
        source: Source of the patches, for the message.
        usable: [n] False for patches without a result.
        errors: Error of each patch as text. The message has the first one.

    Raises:
        DataError: There is at least one patch, and none has a result.
    """
    if len(usable) and not usable.any():
        first = next(filter(None, errors), "unknown")
        raise DataError(
            f"{source.place}: none of the {len(usable):,} patches has a result, so nothing is written. First: {first}"
        )
