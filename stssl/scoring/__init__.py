"""Score networks: their predictions on a part of the data (such as `test`) and on groups of it, and their features.

Register new metrics in `stssl/scoring/metrics.py`. The names below are imported at their first use, because their
modules import torch, which takes seconds.
"""

from typing import TYPE_CHECKING

from stssl.base.lazy import lazy_names

if TYPE_CHECKING:
    from stssl.scoring.evaluation import Evaluation, array_digest, batches, save_evaluations, score_part, without_nan
    from stssl.scoring.groups import GroupOptions, GroupRow, GroupScores, WorstGroup, score_groups
    from stssl.scoring.knn import features_of_rows, knn_scores, vote
    from stssl.scoring.metrics import HEADLINES, LOWER_IS_BETTER, diverged, headline, score

__all__ = [
    "HEADLINES",
    "LOWER_IS_BETTER",
    "Evaluation",
    "GroupOptions",
    "GroupRow",
    "GroupScores",
    "WorstGroup",
    "array_digest",
    "batches",
    "diverged",
    "features_of_rows",
    "headline",
    "knn_scores",
    "save_evaluations",
    "score",
    "score_groups",
    "score_part",
    "vote",
    "without_nan",
]

_MODULES = {
    "evaluation": ("Evaluation", "array_digest", "batches", "save_evaluations", "score_part", "without_nan"),
    "groups": ("GroupOptions", "GroupRow", "GroupScores", "WorstGroup", "score_groups"),
    "knn": ("features_of_rows", "knn_scores", "vote"),
    "metrics": ("HEADLINES", "LOWER_IS_BETTER", "diverged", "headline", "score"),
}

__getattr__ = lazy_names(__name__, _MODULES)
