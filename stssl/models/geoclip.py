"""Encode places with the location encoder of GeoCLIP, which was trained on photos from all over the world.

GeoCLIP (Vivanco Cepeda et al., NeurIPS 2023, arXiv:2309.16020) learned to match photos and the places where they were
taken. The package `geoclip` carries the weights of its location encoder (MIT license). This module builds the same
network and reads the weights. It does not import the package, which would import transformers and take seconds.
"""

import math
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stssl.base.config import Switch
from stssl.base.errors import ConfigError, first_line
from stssl.models.metadata import EncoderBase, MetadataEncoder
from stssl.models.sealed import UNREADABLE

FEATURES = 512
"""Number of features of a place."""
WEIGHTS_FILE = "model/weights/location_encoder_weights.pth"
"""Path of the weights in the package."""
SCALES = (1.0, 16.0, 256.0)
"""Standard deviations of the random frequencies of the three branches: continents, regions and neighborhoods."""
EQUAL_EARTH = (1.340264, -0.081106, 0.000893, 0.003796)
"""Coefficients of the Equal Earth projection (Savric, Patterson and Jenny 2018, doi:10.1080/13658816.2018.1504949)."""
DEGREES = 66.50336
"""Factor with which GeoCLIP scales the projection before it divides by 180."""


class GeoclipConfig(EncoderBase):
    """Configure GeoCLIP's location encoder. It needs `pip install 'stssl[geoclip]'`.

    Attributes:
        weights: `geoclip` takes the weights of the package. `none` draws random weights, for comparison.
        tune: True to train the location encoder too, at the backbone's learning rate. False never changes it.
    """

    name: Literal["geoclip"] = "geoclip"
    weights: Literal["geoclip", "none"] = "geoclip"
    tune: Switch = False


def without_file(config: EncoderBase) -> EncoderBase:
    """Return a copy of an encoder's configuration that loads no weights of the package `geoclip`.

    The configuration of any other encoder than GeoCLIP is returned unchanged. Use this if a checkpoint sets the
    encoder's weights afterwards: then the package need not be installed.

    Args:
        config: Configuration of any encoder of place and date.
    """
    return config.model_copy(update={"weights": "none"}) if isinstance(config, GeoclipConfig) else config


class LocationNetwork(nn.Module):
    """Compute GeoCLIP's features of places, as the sum of three branches with low, medium and high spatial frequencies.

    Each branch has random Fourier features and four linear layers.
    """

    def __init__(self) -> None:
        """Create the network with random frequencies and random weights."""
        super().__init__()
        for number, scale in enumerate(SCALES):
            self.register_buffer(f"frequencies{number}", torch.randn(256, 2) * scale)
        self.branches = nn.ModuleList(_branch() for _ in SCALES)

    def forward(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return features [N, 512] of N places, from latitudes [N] and longitudes [N] in degrees."""
        place = equal_earth(lat, lon)
        total = place.new_zeros(len(place), FEATURES)
        for number, branch in enumerate(self.branches):
            angle = 2 * math.pi * place @ self.get_buffer(f"frequencies{number}").T
            total = total + branch(torch.cat([angle.cos(), angle.sin()], 1))
        return total


def _branch() -> nn.Sequential:
    sizes = (512, 1024, 1024, 1024)
    hidden = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(1024, FEATURES))


class Geoclip(MetadataEncoder):
    """Encode places by GeoCLIP's features, scaled to length 1 as in GeoCLIP, and dates by a point on a circle."""

    config_type: ClassVar[type[EncoderBase]] = GeoclipConfig

    def __init__(self, config: GeoclipConfig, width: int, places: Tensor | None = None) -> None:
        """Create the encoder. It makes 512 features for a place, and two for a date.

        Args:
            config: Settings of the encoder.
            width: Size of the context vector.
            places: Not used.

        Raises:
            ConfigError: The package `geoclip` is not installed, or its weights are others than expected.
        """
        super().__init__(config, width, places, (FEATURES, 2))
        self.location = LocationNetwork()
        self.tuned, self.from_package = config.tune, config.weights == "geoclip"
        if self.from_package:
            load_package_weights(self.location)
        self.location.requires_grad_(self.tuned)

    def place(self, lat: Tensor, lon: Tensor) -> Tensor:
        """Return features [N, 512] of N places, from latitudes [N] and longitudes [N] in degrees.

        Each row has length 1.
        """
        return functional.normalize(self.location(lat, lon), dim=1)

    def pretrained(self) -> Iterable[nn.Parameter]:
        """Return the location encoder's parameters if they started from the package's weights and are trained further.

        Otherwise return an empty tuple. The optimizer gives these parameters the learning rate of the backbone.
        """
        return self.location.parameters() if self.tuned and self.from_package else ()


def equal_earth(lat: Tensor, lon: Tensor) -> Tensor:
    """Return points (x, y) [N, 2] of the Equal Earth map projection for latitudes [N] and longitudes [N] in degrees.

    The map has GeoCLIP's scale: it is about 2 wide and 1 high.
    """
    a1, a2, a3, a4 = EQUAL_EARTH
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(lat.deg2rad()))
    slope = 9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1
    x = 2 * math.sqrt(3) * lon.deg2rad() * torch.cos(theta) / (3 * slope)
    y = a4 * theta**9 + a3 * theta**7 + a2 * theta**3 + a1 * theta
    return torch.stack([x, y], 1) * DEGREES / 180


def load_package_weights(network: LocationNetwork) -> None:
    """Load the weights of the location encoder, which the package `geoclip` carries, into `network` in place.

    Raises:
        ConfigError: The package is not installed, or its weights are others than expected.
    """
    path = package_file()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({_own_name(name): value for name, value in state.items()})
    except (OSError, *UNREADABLE, AttributeError) as error:
        raise ConfigError(
            f"model.encoder: {path} does not hold the weights of GeoCLIP's location encoder ({first_line(error)}). "
            "Install a release that does: pip install 'geoclip==1.3.0'."
        ) from None


def package_file() -> Path:
    """Return the path of the weights file in the installed package `geoclip`, without the slow import of the package.

    Raises:
        ConfigError: The package is not installed, or has no such file.
    """
    spec = find_spec("geoclip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = next((path for folder in folders if (path := Path(folder) / WEIGHTS_FILE).is_file()), None)
    if found is None:
        what = "the package geoclip has no weights" if folders else "the package geoclip is not installed"
        raise ConfigError(
            f"model.encoder: {what}. Run pip install 'stssl[geoclip]', or give model.encoder.weights=none for an "
            "untrained encoder, or another encoder."
        )
    return found


def _own_name(name: str) -> str:
    """Return the name in `LocationNetwork` of a tensor of the package `geoclip`.

    Args:
        name: Name of the tensor in the package, such as `LocEnc0.capsule.1.weight`.
    """
    parts = name.split(".")
    number = parts[0].removeprefix("LocEnc")
    if parts[-1] == "b":
        return f"frequencies{number}"
    # The package counts the Fourier features as layer 0, so its numbers are one too high, and it names the last layer.
    layer = 6 if parts[1] == "head" else int(parts[2]) - 1
    return f"branches.{number}.{layer}.{parts[-1]}"
