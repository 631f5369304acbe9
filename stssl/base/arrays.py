"""Define short names for types of NumPy arrays, for the type annotations of the whole package."""

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[np.generic]
"""An array of any element type. Arrays of a known type fit too."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
