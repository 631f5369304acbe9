"""Build networks: timm backbones, encoders of place and date, and the sites where an encoder's vector enters.

`build_network` makes one `Network`. Register new encoders in `stssl/models/encoders.py`, and new sites in
`stssl/models/sites.py`.
"""

from stssl.models.encoders import ENCODERS, EncoderConfig
from stssl.models.network import Head, Network, NetworkRole, Prediction, build_network, check_fit
from stssl.models.sites import INJECTIONS, InjectionConfig

__all__ = [
    "ENCODERS",
    "INJECTIONS",
    "EncoderConfig",
    "Head",
    "InjectionConfig",
    "Network",
    "NetworkRole",
    "Prediction",
    "build_network",
    "check_fit",
]
