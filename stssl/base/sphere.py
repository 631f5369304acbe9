"""Turn latitude and longitude into points on the unit sphere. On the sphere, the date line is no border."""

import torch
from torch import Tensor

from stssl.base.batch import PLACE


def on_sphere(metadata: Tensor) -> Tensor:
    """Return the places of n patches as unit vectors [n, 3]. A missing place gives NaN.

    Args:
        metadata: [n, 4] table with the columns of `MetadataColumn`: latitude and longitude in degrees, day, hour.
    """
    lat, lon = (torch.deg2rad(metadata[:, column].double()) for column in PLACE)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1).float()
