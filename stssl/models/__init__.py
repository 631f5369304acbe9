"""Networks: timm backbones, encoders of metadata, and the sites where it enters."""

from stssl.models.injection import INJECTIONS, InjectionConfig
from stssl.models.metadata import ENCODERS, EncoderConfig
from stssl.models.network import Network, NetworkRole, Prediction, build_network, check_fit

__all__ = [
    "ENCODERS",
    "INJECTIONS",
    "EncoderConfig",
    "InjectionConfig",
    "Network",
    "NetworkRole",
    "Prediction",
    "build_network",
    "check_fit",
]
