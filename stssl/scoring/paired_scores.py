"""Compare two methods by their predictions for the same patches: difference of a score, its interval and p-value.

Predictions are paired: over runs (such as two runs with the same seed), and over blocks (squares of latitude and
longitude). The interval comes from a bootstrap, which draws blocks and runs with replacement. Few runs say little about
other runs, so the spread of runs is widened as by Student's t. For the p-value, the two methods' predictions are
swapped in random blocks: p tells how often chance alone gives such a large difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stssl.base.arrays import Ints
from stssl.base.errors import ConfigError, RunError
from stssl.base.labels import LabelSpace
from stssl.scoring.block_scores import BlockScores, Float64s, draw_blocks, percentiles
from stssl.scoring.metrics import score


@dataclass(frozen=True)
class PredictionPair:
    """Hold the logits of two networks for the same n patches, to compare the scores of the networks.

    Attributes:
        one: [n, classes] logits of one network.
        other: [n, classes] logits of the other network.
        targets: [n, 1] class ids (single-label) or [n, classes] zeros and ones (multi-label); `IGNORED` if unknown.
        blocks: [n] number of the block of places in which each patch lies, from 0. A number means the same block in all
            pairs that are compared together.
        names: Names of the two networks or their runs, for messages.
    """

    one: Tensor
    other: Tensor
    targets: Tensor
    blocks: Ints
    names: tuple[str, str] = ("one run", "another run")


@dataclass(frozen=True)
class PairedScores:
    """Hold the mean scores of two methods, and the interval and p-value of their difference.

    Attributes:
        value: Mean score of the networks `one` of all pairs.
        other: Mean score of the networks `other` of all pairs.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of this interval.
        p: Probability that chance alone gives a difference at least as large, two-sided; NaN if it was not computed.
    """

    value: float
    other: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Return the mean score `value` minus the mean score `other`."""
        return self.value - self.other


def compare_predictions(
    pairs: Sequence[PredictionPair],
    space: LabelSpace,
    name: str,
    *,
    draws: int = 1000,
    seed: int = 0,
    swap: bool = True,
) -> PairedScores:
    """Return the mean scores of two methods, and the interval and p-value of their difference.

    Args:
        pairs: Predictions of both methods: in each pair, those of a run of one method and of a run of the other, such
            as two runs with the same seed.
        space: Classes of the task, and whether it is single-label or multi-label.
        name: Name of the score to compare.
        draws: Number of bootstrap draws for the interval, and of random swaps for the p-value.
        seed: Seed of the draws and swaps.
        swap: False computes no p-value.

    Raises:
        ConfigError: The score is unknown.
        RunError: Predictions are not finite.
    """
    count = 1 + max(int(pair.blocks.max()) for pair in pairs)
    taken = draw_blocks(count, draws, seed)
    swaps = np.random.default_rng((seed, 1)).integers(0, 2, (draws, count)).astype(np.uint16)
    values, drawn, swapped = [], [], []
    for pair in pairs:
        logits, targets, blocks = [pair.one, pair.other], pair.targets.long(), pair.blocks
        measured = [score(each, targets, space).scores for each in logits]
        if name not in measured[0]:
            raise ConfigError(f"--score: unknown score '{name}'. There are: {', '.join(measured[0])}.")
        if not all(np.isfinite(each[name]) for each in measured):
            raise RunError(f"{' or '.join(pair.names)} has no {name}: its predictions are not finite")
        values.append([each[name] for each in measured])
        # Give the second network's blocks other numbers: a draw can then take each block from either network.
        both = BlockScores(torch.cat(logits), torch.cat([targets] * 2), space, np.append(blocks, blocks + count))
        none = np.zeros_like(taken)
        ends = [both.scores(np.concatenate(sides, 1), name)[name] for sides in ((taken, none), (none, taken))]
        drawn.append(ends[0] - ends[1])
        if swap:
            mixed = [
                both.scores(np.concatenate(sides, 1), name)[name] for sides in ((1 - swaps, swaps), (swaps, 1 - swaps))
            ]
            swapped.append(mixed[0] - mixed[1])
    mean = np.mean(values, 0)
    low, high = percentiles(_over_runs(np.stack(drawn), seed))
    p = float("nan")
    if swap:
        # Count the found difference as one more swap: else p could be 0, but chance can give any difference.
        as_large = np.abs(np.mean(swapped, 0)) >= abs(mean[0] - mean[1]) - 1e-12
        p = float((1 + as_large.sum()) / (1 + draws))
    return PairedScores(float(mean[0]), float(mean[1]), low, high, p)


def _over_runs(drawn: Float64s, seed: int) -> Float64s:
    """Return for each bootstrap draw the mean difference [draws] over runs. Each draw takes runs with replacement.

    A bootstrap of n runs gives a too narrow interval: its variance lacks the factor n / (n - 1), and it takes the
    spread of few runs for the true one. Therefore each run's distance from the mean of all runs is widened first.

    Args:
        drawn: [runs, draws] difference between the scores of each pair of runs in each draw of blocks; NaN if not
            defined.
        seed: Seed with which runs are drawn.
    """
    from scipy.stats import norm, t

    runs, draws = drawn.shape
    if runs > 1:
        own = np.nanmean(drawn, 1, keepdims=True)
        factor = (runs / (runs - 1)) ** 0.5 * t.ppf(0.975, runs - 1) / norm.ppf(0.975)
        drawn = drawn + (factor - 1) * (own - own.mean())
    chosen = np.random.default_rng((seed, 2)).integers(0, runs, (runs, draws))
    return np.asarray(np.take_along_axis(drawn, chosen, 0).mean(0))


def place_blocks(places: Float64s, degrees: float) -> Ints:
    """Divide patches into blocks (squares of latitude and longitude), and return the number of each patch's block.

    A patch without a place is a block of its own.

    Args:
        places: [n, 2] latitudes and longitudes of n patches in degrees; NaN if unknown.
        degrees: Side of a square in degrees.

    Returns:
        [n] numbers of blocks, from 0.
    """
    lat, lon = places.astype(float).T
    known = np.isfinite(lat) & np.isfinite(lon)
    cells = np.stack([np.floor(np.where(known, values, 0) / degrees) for values in (lat, lon)], 1)
    own = np.where(known, 0, 1 + np.arange(len(lat)))[:, None]
    found: Ints = np.unique(np.concatenate([cells, own], 1), axis=0, return_inverse=True)[1].reshape(-1)
    return found


def holm_corrected(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several comparisons, corrected for their number, in the order of `p_values`.

    The method is that of Holm, Scand. J. Statist. 6, 1979.
    """
    least, corrected = 0.0, list(p_values)
    for rank, number in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, p_values[int(number)] * (len(p_values) - rank)))
        corrected[int(number)] = least
    return corrected
