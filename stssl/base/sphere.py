"""Places as points of the unit sphere, where the date line is no seam."""

import torch
from torch import Tensor

from stssl.base.batch import PLACE


def on_sphere(metadata: Tensor) -> Tensor:
    """[n, 3] unit vectors of the places in [n, 4] metadata, NaN where a place is missing."""
    lat, lon = (torch.deg2rad(metadata[:, column].double()) for column in PLACE)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1).float()
