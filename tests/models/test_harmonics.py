"""Spherical harmonics against closed forms, and their orthogonality."""

import math

import numpy as np
import pytest
import torch

from stssl.models.harmonics import Harmonics, Sine


def closed_forms(lat, lon):
    """Degrees 0 to 2, times sqrt(4 pi)."""
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    third, fifth, half = math.sqrt(3), math.sqrt(15), math.sqrt(5) / 2
    return np.stack(
        [
            np.ones_like(x),
            third * y, third * z, third * x,
            fifth * x * y, fifth * y * z, half * (3 * z**2 - 1), fifth * x * z, fifth / 2 * (x**2 - y**2),
        ],
        1,
    )  # fmt: skip


def test_low_degrees_are_the_closed_forms():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-90, 90, 50), rng.uniform(-180, 180, 50)
    ours = Harmonics(3)(*(torch.tensor(values, dtype=torch.float32) for values in (lat, lon)))
    np.testing.assert_allclose(ours.numpy(), closed_forms(np.radians(lat), np.radians(lon)), atol=2e-6)


@pytest.mark.parametrize("degree", [5, 20])
def test_they_are_orthonormal_over_the_sphere(degree):
    """Gauss-Legendre nodes in sin(latitude), even steps in longitude: exact for these products."""
    nodes, weights = np.polynomial.legendre.leggauss(degree + 1)
    lon = np.arange(2 * degree + 1) * 360 / (2 * degree + 1)
    lat, lon = np.meshgrid(np.degrees(np.arcsin(nodes)), lon, indexing="ij")
    ours = Harmonics(degree)(*(torch.tensor(values.ravel(), dtype=torch.float32) for values in (lat, lon))).double()
    weight = torch.tensor(np.repeat(weights / 2 / (2 * degree + 1), 2 * degree + 1))
    products = ours.T @ (ours * weight[:, None])
    torch.testing.assert_close(products, torch.eye(degree**2, dtype=torch.float64), atol=1e-4, rtol=0)


def test_there_is_no_seam_at_the_date_line_and_one_value_at_a_pole():
    harmonics = Harmonics(12)
    east, west = (
        harmonics(torch.tensor([10.0]), torch.tensor([180.0])),
        harmonics(torch.tensor([10.0]), torch.tensor([-180.0])),
    )
    torch.testing.assert_close(east, west, atol=1e-4, rtol=0)
    poles = harmonics(torch.tensor([90.0, 90.0]), torch.tensor([0.0, 77.0]))
    torch.testing.assert_close(poles[0], poles[1], atol=1e-4, rtol=0)


def test_sines_keep_their_variance():
    """SIREN's initialisation: activations of deep layers stay spread out."""
    torch.manual_seed(0)
    x = torch.rand(2000, 64) * 2 - 1
    for layer in (Sine(64, 256, 30.0, first=True), Sine(256, 256), Sine(256, 256)):
        x = layer(x)
    assert 0.3 < float(x.detach().std()) < 0.9
