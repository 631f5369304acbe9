"""Compute where networks with metadata beat the student, which sees images alone: by distance and on the map.

The distance is that from a test patch to the nearest training patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.analysis.outcomes import compare_with_labels
from stssl.base.sphere import on_sphere
from stssl.shifts.effects import SEEING, Contrast, FinishedStudy, ShiftEffect, contrast_effect
from stssl.shifts.settings import ShiftSplit
from stssl.steps.votes import EARTH_KM

KM_EDGES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 20100.0)
"""Edges of the ranges of distance in km. The last one is half the way around the Earth."""
LEAST_PATCHES = 20
"""A range of distance with fewer test patches is left out."""


@dataclass(frozen=True)
class DistanceGain:
    """Say how much better a network is than the student on the test patches in one range of distances.

    The distance is that from a test patch to the nearest training patch.

    Attributes:
        model: Network that is compared with the student: `teacher` or `direct`.
        low_km: Smallest distance of the range in km.
        high_km: End of the range in km; larger than each of its distances.
        middle_km: Median distance of the test patches in the range, in km.
        effect: Comparison of this network with the student on these patches: difference of scores and its interval.
    """

    model: str
    low_km: float
    high_km: float
    middle_km: float
    effect: ShiftEffect


def nearest_km(places: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from each of n places to the nearest of m other places.

    Args:
        places: [n, 2] latitudes and longitudes in degrees; NaN if unknown.
        others: [m, 2] latitudes and longitudes in degrees; NaN if unknown.

    Returns:
        [n] distances in km; NaN for an unknown place, or if all other places are unknown.
    """
    from scipy.spatial import KDTree

    here, there = (on_sphere(torch.from_numpy(each)).double().numpy() for each in (places, others))
    found = np.full(len(here), np.nan)
    known, near = np.isfinite(here).all(1), there[np.isfinite(there).all(1)]
    if known.any() and len(near):
        chords, _ = KDTree(near).query(here[known])
        found[known] = 2 * EARTH_KM * np.arcsin(np.clip(chords / 2, 0, 1))
    return found


def gains_by_distance(study: FinishedStudy, places: NDArray[np.float64]) -> list[DistanceGain]:
    """Return how much better than the student `teacher` and `direct` are, in ranges of distance.

    These two networks see metadata at test; the student does not. The distance is that from a test patch to the nearest
    training patch.

    Args:
        study: The study, with finished runs.
        places: [rows, 2] latitude and longitude of all rows of the store, in degrees; NaN if unknown.

    Returns:
        One entry for each split, range and network. Ranges with fewer than `LEAST_PATCHES` test patches are left out.
    """
    found = []
    for split in study.setting.splits:
        distance = distances_of(study, split, places)
        for low, high in pairwise(KM_EDGES):
            chosen = np.flatnonzero((distance >= low) & (distance < high))
            if len(chosen) < LEAST_PATCHES:
                continue
            middle = float(np.median(distance[chosen]))
            for model in SEEING:
                effect = contrast_effect(study, split, Contrast(model, "student"), chosen, test=False)
                if effect is not None and np.isfinite(effect.difference):
                    found.append(DistanceGain(model, low, high, middle, effect))
    return found


def distances_of(study: FinishedStudy, split: ShiftSplit, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from each scored test patch of a split to the nearest training patch of this split.

    Args:
        study: The study, with finished runs.
        split: Split of the study.
        places: [rows, 2] latitude and longitude of all rows of the store, in degrees; NaN if unknown.

    Returns:
        [n] distances in km; NaN for a test patch without a place.
    """
    rows = study.test(split, study.seeds[0]).arrays["rows"]
    return nearest_km(places[rows], places[split.parts.train])


def gain_by_place(study: FinishedStudy, split: ShiftSplit) -> Mapping[str, NDArray[np.float64]]:
    """Return for each of the n test patches of a split how much metadata at test helps.

    The gain of a patch is the share of its labels that the student predicts wrong, minus the share that `direct`
    predicts wrong. `direct` sees metadata at test; the student does not.

    Args:
        study: The study, with finished runs.
        split: Split of the study.

    Returns:
        `lat` and `lon` [n] in degrees (NaN if unknown), and `gain` [n], averaged over seeds with finite predictions.
        The gain is NaN for a patch without a label, or if no seed has finite predictions.
    """
    gains = []
    for seed in study.seeds:
        both = [study.test(split, seed, model).arrays for model in ("student", "direct")]
        if all(np.isfinite(one["logits_student"]).all() for one in both):
            student, direct = (
                compare_with_labels(one["logits_student"], one["targets"], study.space).wrong for one in both
            )
            gains.append(student - direct)
    lat, lon = study.test(split, study.seeds[0]).arrays["metadata"][:, :2].astype(float).T
    return {"lat": lat, "lon": lon, "gain": np.mean(gains, 0) if gains else np.full(len(lat), np.nan)}
