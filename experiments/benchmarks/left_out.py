"""Measure what places alone tell about a country of a synthetic archive without any patches of that country.

    python experiments/benchmarks/left_out.py --country Finland --seeds 12 --json left_out.json

Two predictions of the country's classes are scored: those of the nearest patches in other countries, and the class
frequencies of these countries. There is no network and there are no images. One row for each seed of the archive has
the first minus the second, in points; the last two rows have mean and standard deviation. With a plus, the nearest
patches are better, also by `loss`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from stssl.archives.nomenclature import LABELS_43
from stssl.archives.world import generate
from stssl.base.labels import LabelSpace
from stssl.scoring.metrics import LOWER_IS_BETTER, score

SCORES = ("mAP", "mAP_micro", "loss")
NEAREST, PRIOR = 400, 20
"""Number of nearest patches, and how many patches the class frequencies count as beside them."""


def scores_of(probabilities: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the scores [3] of predicted probabilities [n, classes]."""
    logits, targets = torch.from_numpy(probabilities).logit(), torch.from_numpy(labels).long()
    found = score(logits, targets, LabelSpace(LABELS_43, True)).scores
    return np.array([found[name] for name in SCORES])


def gain(patches: int, seed: int, country: str) -> NDArray[np.float64]:
    """Return the scores [3] of the nearest patches minus those of frequencies, in points, for one archive."""
    world = generate(patches, seed)
    lat, lon = world.degrees()
    plane = np.stack([lat * 111, lon * 72], 1)
    own = world.country == country
    frequency = np.clip(world.labels[~own].mean(0), 1e-3, 1)
    near = KDTree(plane[~own]).query(plane[own], k=NEAREST)[1]
    nearest = (world.labels[~own][near].sum(1) + PRIOR * frequency) / (NEAREST + PRIOR)
    even = np.tile(frequency, (own.sum(), 1))
    sign = np.array([-1 if name in LOWER_IS_BETTER else 1 for name in SCORES])
    return 100 * sign * (scores_of(nearest, world.labels[own]) - scores_of(even, world.labels[own]))


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=6000)
    parser.add_argument("--country", default="Finland")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = np.stack([gain(options.patches, seed, options.country) for seed in range(options.seeds)])
    print(f"{'seed':8}" + "".join(f"{name:>12}" for name in SCORES))
    named = [*((str(seed), row) for seed, row in enumerate(rows)), ("mean", rows.mean(0)), ("sd", rows.std(0, ddof=1))]
    for name, row in named:
        print(f"{name:8}" + "".join(f"{value:12.2f}" for value in row))
    if options.json:
        options.json.write_text(json.dumps({name: dict(zip(SCORES, row.tolist(), strict=True)) for name, row in named}))


if __name__ == "__main__":
    main()
