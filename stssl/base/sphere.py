"""Turn latitude and longitude into points of the unit sphere, where the date line is no seam."""

import torch
from torch import Tensor

from stssl.base.batch import PLACE


def on_sphere(metadata: Tensor) -> Tensor:
    """Turn the places in metadata [n, 4] into unit vectors [n, 3], NaN where a place is missing."""
    lat, lon = (torch.deg2rad(metadata[:, column].double()) for column in PLACE)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1).float()
