"""Split patches as other projects do: EuroSAT by longitude, and BigEarthNet v1.0 by the table of reBEN."""

from typing import Annotated, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import Field, model_validator

from stssl.base.arrays import Ints
from stssl.base.config import Config
from stssl.base.errors import DataError, first_line, shown
from stssl.base.logs import LOG
from stssl.base.paths import Location
from stssl.data.columns import OWN_SPLIT, Columns
from stssl.store.lists import as_text
from stssl.store.schema import NO_SPLIT, SPLIT_CODES, UNUSABLE


class LongitudeSplit(Config):
    """Sort patches by longitude: train in the west, validate next to it, test in the east.

    With the default shares, EuroSAT's 27,000 patches give 16,200, 5,400 and 5,400. This is the rule that torchgeo
    documents for its spatial split. The coordinates of the two projects may differ, so the lists may differ too.

    Attributes:
        validation: Share of the patches for validation.
        test: Share of the patches for test.
    """

    name: Literal["longitude"]
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _trains(self) -> "LongitudeSplit":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must add up to less than 1: nothing is left for training")
        return self


class RebenSplit(Config):
    """Use the geographic split of reBEN (BigEarthNet v2.0) for a store of BigEarthNet v1.0, patch by patch.

    The table of v2.0 names each patch of v1.0 in its column `s2v1_name`, and says in `split` if it is for training,
    validation or test. Patches of v1.0 that v2.0 left out are in none of them. Patches of a store of v2.0 are found by
    `patch_id`.

    Attributes:
        metadata: File `metadata.parquet` of BigEarthNet v2.0.
    """

    name: Literal["reben"]
    metadata: Location


def longitude_codes(store: Columns, config: LongitudeSplit) -> Ints:
    """Assign the N patches of a store to training, validation and test from west to east, and return their codes.

    Args:
        store: Store with the columns `lon` (longitude in degrees) and `error_code`.
        config: Shares of validation and test.

    Returns:
        [N] codes: 0 for training, 1 for validation, 2 for test. Patches without a longitude and unusable patches get
        the code `NO_SPLIT`.

    Raises:
        DataError: No patch has a longitude.
    """
    lon = np.asarray(store.column("lon"), float)
    known = np.isfinite(lon)
    if not known.any():
        raise DataError(f"data.split: {store.path} has no coordinates, so it cannot be split by longitude. {OWN_SPLIT}")
    if not known.all():
        LOG.warning(
            "%s: %d of %d patches have no longitude, so no part takes them", store.path, (~known).sum(), len(lon)
        )
    # Leave out unusable patches before the shares are counted: they are removed later, and the parts would then have
    # other shares than the recipe says.
    rows = np.flatnonzero(known & ~np.isin(store.column("error_code"), UNUSABLE))
    rows = rows[np.argsort(lon[rows], kind="stable")]
    test, validation = (round(len(rows) * share) for share in (config.test, config.validation))
    codes = np.full(store.size, NO_SPLIT, np.int64)
    codes[rows] = 0
    codes[rows[len(rows) - test - validation :]] = 1
    codes[rows[len(rows) - test :]] = 2
    return codes


def reben_codes(store: Columns, config: RebenSplit) -> Ints:
    """Assign the N patches of a store to training, validation or test as reBEN's table says, and return their codes.

    The table is searched for the patches' names of v1.0. If it has none of them, it is searched for names of v2.0.

    Args:
        store: Store with the column `patch_id`, the names of the patches.
        config: Path of the table.

    Returns:
        [N] codes: 0 for training, 1 for validation, 2 for test. Patches that the table lacks get the code `NO_SPLIT`.

    Raises:
        DataError: The table cannot be read, or has no patch of the store.
    """
    table = _read_reben(config.metadata)
    names = as_text(store.column("patch_id"))
    for column in ("s2v1_name", "patch_id"):
        part_of = dict(zip(table[column].to_pylist(), table["split"].to_pylist(), strict=True))
        found = [part_of.get(name) for name in names.tolist()]
        if any(found):
            break
    else:
        raise DataError(
            f"{config.metadata} has none of the patches of {store.path}: neither s2v1_name nor patch_id fits"
        )
    strange = {part for part in found if part is not None} - set(SPLIT_CODES)
    if strange:
        raise DataError(
            f"{config.metadata}: its column split has {shown(min(map(str, strange)))}, not train, validation"
        )
    left = sum(part is None for part in found)
    if left:
        LOG.warning("%s lists no part for %d of the %d patches of %s", config.metadata, left, len(names), store.path)
    return np.array([NO_SPLIT if part is None else SPLIT_CODES[part] for part in found], np.int64)


def _read_reben(path: str) -> pyarrow.Table:
    """Return the columns `patch_id`, `s2v1_name` and `split` of the table `metadata.parquet` of BigEarthNet v2.0.

    Raises:
        DataError: The file `path` cannot be read, or lacks one of the columns.
    """
    needed = ["patch_id", "s2v1_name", "split"]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [name for name in needed if name not in file.schema_arrow.names]
            if not missing:
                return file.read(needed)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"data.split.metadata: cannot read {path}: {first_line(error)}") from None
    raise DataError(
        f"data.split.metadata: {path} lacks {', '.join(missing)}. Give metadata.parquet of BigEarthNet v2.0."
    )
