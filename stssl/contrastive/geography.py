"""Define the geographic pretext task: predict from an image the cluster of its place, or the place itself.

See Ayush et al., ICCV 2021 (arXiv:2011.09980), section 3.2. Clusters are computed from points on the unit sphere, since
longitudes jump at the date line.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stssl.base.config import Config, Domain
from stssl.base.errors import DataError
from stssl.base.sphere import on_sphere

KMEANS_PLACES = 100_000
"""Largest number of places that k-means uses. If there are more, it uses a random sample of them."""


class NoGeoConfig(Config):
    """Turn the geographic pretext task off."""

    name: Literal["none"] = "none"


class ClustersConfig(Config):
    """Classify the image's place among `k` clusters of the training places.

    Attributes:
        k: Number of clusters.
        weight: Weight of this loss.
    """

    name: Literal["clusters"] = "clusters"
    k: Annotated[int, Field(ge=2), Domain(10, 500, log=True)] = 100
    weight: Annotated[float, Field(ge=0), Domain(0.01, 10.0, log=True)] = 1.0


class RegressionConfig(Config):
    """Predict the image's place as a point on the unit sphere. The loss is 1 - cosine.

    Attributes:
        weight: Weight of this loss.
    """

    name: Literal["regression"] = "regression"
    weight: Annotated[float, Field(ge=0), Domain(0.01, 10.0, log=True)] = 1.0


GeoConfig = NoGeoConfig | ClustersConfig | RegressionConfig


def known_places(metadata: Tensor, least: int) -> Tensor:
    """Return the different known places of patches, as points [places, 3] on the unit sphere.

    Args:
        metadata: [n, 4] places and dates of the patches; NaN where a value is missing.
        least: Smallest number of different places that is needed.

    Raises:
        DataError: The metadata has fewer than `least` different places.
    """
    points = on_sphere(metadata)
    different: Tensor = torch.unique(points[~points.isnan().any(1)], dim=0)
    if len(different) < least:
        raise DataError(
            f"pretext.geo: {least} different places are needed, and the training part has {len(different)}. "
            "Lower pretext.geo.k, or set pretext.geo={name: none} where a store has no places."
        )
    return different


def cluster_places(metadata: Tensor, k: int, seed: int) -> Tensor:
    """Find clusters of the training patches' places on the unit sphere by k-means, and return their centers.

    Args:
        metadata: [n, 4] places and dates of the training patches; NaN if missing. Patches without a place are left out.
        k: Number of clusters.
        seed: Seed of the first centers. If there are more than `KMEANS_PLACES` places, also the seed of their sample.

    Returns:
        [k, 3] centers of the k clusters, as unit vectors.

    Raises:
        DataError: The metadata has fewer different places than `k`.
    """
    from sklearn.cluster import KMeans

    points = known_places(metadata, k).double().numpy()
    if len(points) > KMEANS_PLACES:
        points = points[
            np.random.Generator(np.random.Philox(key=seed)).choice(len(points), KMEANS_PLACES, replace=False)
        ]
    centers: NDArray[np.float64] = KMeans(k, n_init=1, random_state=seed).fit(points).cluster_centers_
    return torch.from_numpy(centers / np.linalg.norm(centers, axis=1, keepdims=True)).float()


def nearest_cluster(metadata: Tensor, centers: Tensor) -> Tensor:
    """Return [n] positions of the cluster centers that are nearest to n patches; -1 for a patch without a place.

    Args:
        metadata: [n, 4] places and dates of the patches, on any device.
        centers: [k, 3] centers of the k clusters, as unit vectors. The result is on the device of `centers`.
    """
    points = on_sphere(metadata).to(centers.device)
    found = (points.nan_to_num() @ centers.T).argmax(1)
    return torch.where(points.isnan().any(1), -1, found)
