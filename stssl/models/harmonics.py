"""Define a module that computes real spherical harmonics, and linear layers with sine activation (SIREN)."""

import math

import torch
from torch import Tensor, nn


class Harmonics(nn.Module):
    """Compute all real spherical harmonics Y_lm with l < degree. Each has a mean square of 1 over the sphere.

    l is the degree of a harmonic, m its order, and theta the angle from the north pole. The associated Legendre
    functions P_lm come from the fully normalized recursion in l, which is stable for high degrees:

        P_mm = sqrt((2m + 1) / 2m) sin(theta) P_(m-1)(m-1)
        P_lm = a_lm (cos(theta) P_(l-1)m - b_lm P_(l-2)m)
        a_lm = sqrt((4 l^2 - 1) / (l^2 - m^2)),  b_lm = sqrt(((l - 1)^2 - m^2) / (4 (l - 1)^2 - 1))
    """

    def __init__(self, degree: int) -> None:
        """Compute the factors of the recursion for all harmonics with a degree below `degree` (exclusive)."""
        super().__init__()
        self.degree = degree
        self.a: Tensor
        self.b: Tensor
        self.diagonal: Tensor
        a, b = torch.zeros(2, degree, degree, dtype=torch.float64)
        diagonal = torch.ones(degree, dtype=torch.float64)
        for m in range(1, degree):
            diagonal[m] = math.sqrt((2 * m + 1) / (2 * m))
        for l in range(1, degree):  # noqa: E741
            for m in range(l):
                a[l, m] = math.sqrt((4 * l * l - 1) / (l * l - m * m))
                b[l, m] = math.sqrt(max(0, (l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) if l > 1 else 0.0
        for name, table in (("a", a), ("b", b), ("diagonal", diagonal)):
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return the values [N, degree^2] of all spherical harmonics at N places.

        Args:
            lat: [N] degrees north.
            lon: [N] degrees east.
        """
        up, out = lat.deg2rad().sin()[:, None], lat.deg2rad().cos()[:, None]
        orders = torch.arange(self.degree, device=lat.device)
        sectoral = torch.cumprod(torch.where(orders > 0, out * self.diagonal, 1.0), 1)
        turn = orders * lon.deg2rad()[:, None]
        east, north = math.sqrt(2) * turn.sin(), torch.where(orders > 0, math.sqrt(2) * turn.cos(), 1.0)
        before, last = torch.zeros_like(sectoral), torch.zeros_like(sectoral)
        columns: list[Tensor] = []
        for l in range(self.degree):  # noqa: E741
            now = self.a[l] * (up * last - self.b[l] * before)
            now = torch.where(orders == l, sectoral, now)
            before, last = last, now
            columns += [(now * east)[:, 1 : l + 1].flip(1), (now * north)[:, : l + 1]]
        return torch.cat(columns, 1)


class Sine(nn.Module):
    """Compute sin(frequency * (W x + b)): a linear layer and a sine.

    It is initialized as in SIREN (Sitzmann et al., NeurIPS 2020, arXiv:2006.09661).
    """

    def __init__(self, inputs: int, outputs: int, frequency: float = 1.0, first: bool = False) -> None:
        """Create the layer, with random weights from the uniform distribution on [-b, b].

        b is 1 / inputs in the first layer, and sqrt(6 / inputs) / frequency in other layers.

        Args:
            inputs: Size of the input.
            outputs: Size of the output.
            frequency: Factor inside the sine.
            first: True for the first layer of a network.
        """
        super().__init__()
        self.frequency = frequency
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / frequency
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations [N, outputs] of N input vectors `x` [N, inputs]."""
        activation: Tensor = torch.sin(self.frequency * self.linear(x))
        return activation
