"""SoftMatch (Chen et al., ICLR 2023, arXiv:2301.10921).

Every pseudo-label counts, the less the further its confidence lies below the running mean:

    aligned = normalized(p * target marginal / running marginal)
    weight  = exp(-min(max(aligned) - mu, 0)^2 / (2 variance / n^2))

with running mean and variance of the aligned confidence. Labels come from the unaligned logits. State: marginal [G, K]
(starts as the first batch's), mean and variance [G] (or [G, 2] apart for "absent" and "present"), updated before use;
with `target: predicted` also a running mean of labeled weak predictions.

Departure from the public implementation: runs on several ranks.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from stssl.algorithms.base import Algorithm, AlgorithmConfig, DataFacts, Running, Seen, Term, choose, hard_or_soft
from stssl.algorithms.marginal import Marginal, TargetName, TargetMarginal
from stssl.batch import Progress, View
from stssl.config import Domain
from stssl.labels import LabelSpace


class SoftMatchConfig(AlgorithmConfig):
    """Decay of running values, width of the weight, and what the marginal is aligned with."""

    name: Literal["softmatch"] = "softmatch"
    ema_decay: Annotated[float, Field(ge=0, lt=1), Domain(0.9, 0.9999)] = 0.999
    sigmas: Annotated[float, Field(gt=0), Domain(0.5, 4.0)] = 2.0
    align: bool = True
    target: TargetName = "labeled"
    by_side: bool = False
    soft: bool = False
    temperature: Annotated[float, Field(gt=0), Domain(0.3, 1.0)] = 0.5
