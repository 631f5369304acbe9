"""Define the interface through which the code that splits patches reads the columns of a store."""

from typing import Protocol

from stssl.store.schema import ColumnArray

OWN_SPLIT = (
    "For a split of your own give the manifest a column `split` (train, validation, test) and convert it, or give "
    "lists of patch names: data.split={name: lists, train: FILE, validation: FILE, test: FILE}."
)


class Columns(Protocol):
    """Define the methods that a store must have so that its patches can be split into training and other parts."""

    path: str

    @property
    def size(self) -> int:
        """Return N, the number of rows of the store."""
        ...

    @property
    def split_names(self) -> tuple[str, ...]:
        """Return the names of the splits (into train, validation and test) that are stored in the store."""
        ...

    def column(self, name: str) -> ColumnArray:
        """Read and return a metadata array of the N rows: [N], or [N, values] if a row has several values."""
        ...

    def has_column(self, name: str) -> bool:
        """Return True if the store has a metadata array with this name."""
        ...
