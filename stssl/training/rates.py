"""Choose the learning rates of layers: pretrained ones learn more slowly than new ones."""

from typing import NamedTuple

from torch import nn

from stssl.models.backbones import Backbone, layer_numbers
from stssl.models.network import Network
from stssl.recipes.fine_tuning import backbone_factor, encoder_factor
from stssl.recipes.recipe import RunRecipe


class LayerRate(NamedTuple):
    """Describe how fast some parameters learn, compared with new layers (those without pretrained weights).

    Attributes:
        factor: Learning rate, divided by that of new layers.
        waits: True if the parameters do not learn in the first `schedule.head_steps` steps.
    """

    factor: float
    waits: bool


NEW = LayerRate(1.0, False)
"""Learning rate of new layers."""


def layer_rates(networks: nn.ModuleDict, recipe: RunRecipe) -> dict[nn.Parameter, LayerRate]:
    """Return, by parameter, how fast it learns. Leave out parameters that learn like new layers.

    Parameters that are left out learn from the first step, at the learning rate of the recipe.

    Args:
        networks: Networks that the run trains. Classifiers and all layers outside of the backbones count as new,
            except pretrained parameters of metadata encoders.
        recipe: Recipe of the run.

    Raises:
        ConfigError: The recipe asks for layer decay, and the layers of the backbone are not known.
    """
    factor, decay = backbone_factor(recipe), recipe.optimizer.layer_decay
    rates: dict[nn.Parameter, LayerRate] = {}
    for network in networks.values():
        backbone: Backbone | None = getattr(network, "backbone", None)
        if backbone is None:
            continue
        head = set(backbone.get_classifier().parameters())
        numbers = layer_numbers(backbone) if decay < 1 else {}
        last = max(numbers.values(), default=0)
        for name, parameter in backbone.named_parameters():
            if parameter not in head:
                rates[parameter] = LayerRate(factor * decay ** (last - numbers.get(name, last)), True)
        if isinstance(network, Network) and network.encoder is not None:
            rates |= {value: LayerRate(encoder_factor(recipe), True) for value in network.encoder.pretrained()}
    waits = recipe.schedule.head_steps > 0
    return {parameter: rate for parameter, rate in rates.items() if waits or rate.factor != 1}
