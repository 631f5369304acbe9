"""Build networks: timm backbones, encoders of metadata, and the sites where the metadata enters.

A network is one `Network`, made by `build_network`. New encoders are registered in `stssl/models/encoders.py`, new
sites in `stssl/models/sites.py`.
"""

from stssl.models.encoders import ENCODERS, EncoderConfig
from stssl.models.network import Network, NetworkRole, Prediction, build_network, check_fit
from stssl.models.sites import INJECTIONS, InjectionConfig

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
