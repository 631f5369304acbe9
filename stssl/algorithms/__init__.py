"""Algorithms by name."""

from typing import Annotated

from pydantic import Field

from stssl.algorithms.adamatch import AdaMatch, AdaMatchConfig
from stssl.algorithms.base import Algorithm, DataFacts, LabelerOutputs, Logits, LossRole, LossTerm
from stssl.algorithms.cap import Cap, CapConfig
from stssl.algorithms.cdmad import Cdmad, CdmadConfig
from stssl.algorithms.defixmatch import DeFixMatch, DeFixMatchConfig
from stssl.algorithms.fixmatch import FixMatch, FixMatchConfig
from stssl.algorithms.flexmatch import FlexMatch, FlexMatchConfig
from stssl.algorithms.freematch import FreeMatch, FreeMatchConfig
from stssl.algorithms.mean_teacher import MeanTeacher, MeanTeacherConfig
from stssl.algorithms.softmatch import SoftMatch, SoftMatchConfig
from stssl.algorithms.supervised import Supervised, SupervisedConfig
from stssl.algorithms.udal import Udal, UdalConfig

ALGORITHMS: dict[str, type[Algorithm]] = {
    "supervised": Supervised,
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "defixmatch": DeFixMatch,
    "udal": Udal,
    "cap": Cap,
    "cdmad": Cdmad,
    "mean_teacher": MeanTeacher,
    "adamatch": AdaMatch,
}

AlgorithmConfig = Annotated[
    SupervisedConfig
    | FixMatchConfig
    | FlexMatchConfig
    | FreeMatchConfig
    | SoftMatchConfig
    | DeFixMatchConfig
    | UdalConfig
    | CapConfig
    | CdmadConfig
    | MeanTeacherConfig
    | AdaMatchConfig,
    Field(discriminator="name"),
]

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmConfig",
    "DataFacts",
    "LabelerOutputs",
    "Logits",
    "LossRole",
    "LossTerm",
]
