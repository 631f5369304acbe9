"""Compute a network's scores on many bootstrap samples of test patches at once, from which intervals are made.

A sample ("draw") takes blocks with replacement. A block is a group of nearby patches, which resemble each other. A draw
is a row of counts that says how often it takes each block.

Scores that are made of sums (accuracy, F1) need one matrix product for all draws. Average precision needs the
predictions sorted by logit: they are sorted once, and each draw only gives them other weights.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stssl.base.arrays import AnyArray, Ints
from stssl.base.batch import IGNORED
from stssl.base.errors import ConfigError
from stssl.base.labels import LabelSpace
from stssl.scoring.metrics import CONFIDENCE_BINS, Metric, Predictions, metrics_of

Float64s = NDArray[np.float64]
Counts = NDArray[np.int32]
WEIGHTS_AT_ONCE = 1 << 18
"""Approximate number of weights that a thread handles at once. So many fit into the processor's cache."""


@dataclass(frozen=True)
class RankedRows:
    """Hold m predictions sorted by falling logit, to compute their average precision fast for many bootstrap draws.

    A row is the prediction of one class for one patch. It is positive if the patch has the class; p rows are positive.
    Rows with a smaller logit than all positive rows are left out: they change no average precision.

    Attributes:
        blocks: [m] number of the block of each row's patch.
        ends: [p] for each positive row, the number of the last row with the same logit.
        positives: [p] number of the block of each positive row's patch.
        last: [p] for each positive row, the last positive row with the same logit, as a number among positive rows.
    """

    blocks: NDArray[np.int32]
    ends: Ints
    positives: NDArray[np.int32]
    last: Ints

    @classmethod
    def of(cls, logits: Float64s, truth: NDArray[np.bool_], blocks: NDArray[np.int32]) -> "RankedRows":
        """Sort n predictions by falling logit, and return them as `RankedRows`.

        Args:
            logits: [n] logits: those of one class, or of all classes for a micro average.
            truth: [n] True if the patch has the class.
            blocks: [n] number of the block in which each patch lies.
        """
        order = np.argsort(-logits, kind="stable")
        sorted_logits, truth = logits[order], truth[order]
        places = np.flatnonzero(truth)
        starts = np.flatnonzero(np.append(sorted_logits[1:] != sorted_logits[:-1], True))
        ends = starts[np.searchsorted(starts, places)]
        last = np.searchsorted(places, ends, side="right") - 1
        own = blocks[order]
        return cls(own[: ends[-1] + 1 if len(ends) else 0], ends, own[places], last)

    def average_precision(self, draws: Counts) -> Float64s:
        """Return the average precision [draws] of the predictions in each bootstrap draw.

        Args:
            draws: [draws, blocks] how often each draw takes each block. A draw without a patch of the class gives NaN.
        """
        if not len(self.ends):
            return np.full(len(draws), np.nan)
        every = np.cumsum(draws.take(self.blocks, axis=1), axis=1, dtype=np.int32).take(self.ends, axis=1)
        weights = draws.take(self.positives, axis=1)
        found = np.cumsum(weights, axis=1, dtype=np.int32)
        total = found[:, -1]
        precision = found.take(self.last, axis=1) / np.maximum(every, 1)
        with np.errstate(invalid="ignore"):
            return np.where(total > 0, np.einsum("dp,dp->d", weights, precision) / total, np.nan)


class BlockScores:
    """Compute all scores of one network for many bootstrap draws of blocks of patches.

    A draw that takes each block exactly once gives the scores of all patches.
    """

    def __init__(self, logits: Tensor, targets: Tensor, space: LabelSpace, blocks: Ints) -> None:
        """Sum what the scores need over each block's patches, and sort the predictions by logit.

        With this preparation, `scores` needs little time for each draw.

        Args:
            logits: [n, classes] finite logits of n patches.
            targets: [n, 1] class ids (single-label) or [n, classes] zeros and ones (multi-label); `IGNORED` if unknown.
            space: Classes of the task, and whether it is single-label or multi-label.
            blocks: [n] number of the block in which each patch lies, from 0.
        """
        known = (targets != IGNORED).any(1)
        logits, targets = logits[known].double(), targets[known]
        self.own, inverse = np.unique(blocks[known.numpy()], return_inverse=True)
        local: NDArray[np.int32] = inverse.reshape(-1).astype(np.int32)
        self.multilabel, self.classes = space.multilabel, len(space.classes)
        self._all = Predictions(logits, targets, space)
        self._local = local
        prepare = _multi_label_sums if space.multilabel else _single_label_sums
        self._sums = _by_block(prepare(logits, targets, space), local, len(self.own))
        self._ranked: list[RankedRows] = []
        self._micro: RankedRows | None = None
        if space.multilabel:
            found, truth, there = logits.numpy(), targets.numpy() == 1, targets.numpy() != IGNORED
            for number in range(self.classes):
                rows = there[:, number]
                self._ranked.append(RankedRows.of(found[rows, number], truth[rows, number], local[rows]))
            wide = np.repeat(local, self.classes).reshape(found.shape)
            self._micro = RankedRows.of(found[there], truth[there], wide[there])

    def scores(self, draws: AnyArray, only: str | None = None) -> dict[str, Float64s]:
        """Return by name the values [draws] of each score, one for each bootstrap draw; NaN if a score is not defined.

        Args:
            draws: [draws, blocks] how often each draw takes each block. Column b is that of the block with number b.
            only: Name of the one score that the caller needs. Then scores that take long may be missing, except this
                one.
        """
        own: Counts = np.ascontiguousarray(draws[:, self.own], np.int32)
        parts = _multi_label_scores if self.multilabel else _single_label_scores
        found = parts(np.concatenate([part @ self._sums for part in _pieces(own, 64)]), self.classes)
        if self.multilabel and self._micro is not None:
            each = np.stack([_threaded(ranked, own) for ranked in self._ranked], 1)
            found["mAP"], found["mAP_micro"] = _mean(each), _threaded(self._micro, own)
        for name, metric in metrics_of(self._all.space).items():
            if name not in found and only in (None, name):
                found[name] = self._repeated(metric, own)
        return found

    def _repeated(self, metric: Metric, draws: Counts) -> Float64s:
        """Return the values [draws] of a metric without a fast way: compute it anew for each bootstrap draw.

        Args:
            metric: Function that computes the metric.
            draws: [draws, blocks] how often each draw takes each block.
        """
        values = []
        for draw in draws:
            rows = np.repeat(np.arange(len(self._local)), draw[self._local])
            taken = Predictions(self._all.logits[rows], self._all.targets[rows], self._all.space)
            values.append(float(metric(taken)) if len(rows) else np.nan)
        return np.array(values)


def _pieces(draws: Counts, most: int) -> Iterator[Float64s]:
    for start in range(0, len(draws), most):
        yield draws[start : start + most].astype(np.float64)


def _threaded(ranked: RankedRows, draws: Counts) -> Float64s:
    """Return the average precision [draws] of the predictions `ranked` in each bootstrap draw.

    `draws` [draws, blocks] says how often each draw takes each block. For large inputs, threads on all CPUs of this
    process share the draws.
    """
    size = max(1, WEIGHTS_AT_ONCE // max(1, len(ranked.blocks)))
    chunks = [draws[start : start + size] for start in range(0, len(draws), size)]
    if len(draws) * len(ranked.blocks) < 8 * WEIGHTS_AT_ONCE:
        return np.concatenate([ranked.average_precision(chunk) for chunk in chunks])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.concatenate(list(pool.map(ranked.average_precision, chunks)))


def _by_block(columns: Float64s, blocks: NDArray[np.int32], count: int) -> Float64s:
    """Sum values over the patches of each block.

    Args:
        columns: [n, values] values of n patches.
        blocks: [n] number of the block in which each patch lies.
        count: Number of blocks. Each has at least one patch.

    Returns:
        [blocks, values] sums.
    """
    order = np.argsort(blocks, kind="stable")
    starts = np.searchsorted(blocks[order], np.arange(count))
    found: Float64s = np.add.reduceat(columns[order], starts, axis=0)
    return found


def _binned(confidence: Tensor, right: Tensor, rows: Ints, count: int) -> Float64s:
    """Sort each patch's predictions into bins of confidence (probability), and return the sums of each bin.

    The expected calibration error is computed from these sums.

    Args:
        confidence: [m] predicted probabilities.
        right: [m] 1 if the prediction is right, or the class present; else 0.
        rows: [m] number of the patch that each prediction is about, from 0.
        count: Number n of patches.

    Returns:
        [n, 3 * bins] of each patch: the number of its predictions in each bin, then the sums of their confidences in
        each bin, then the numbers of right ones in each bin.
    """
    # Use one bin more than there are intervals, as torchmetrics does: the probability 1 is the last edge, and
    # no interval holds it.
    bins = CONFIDENCE_BINS + 1
    edges = torch.linspace(0, 1, bins, dtype=torch.float32)
    place = rows * bins + (torch.bucketize(confidence.float(), edges, right=True) - 1).numpy()
    weights = (None, confidence.numpy(), right.double().numpy())
    return np.concatenate([np.bincount(place, one, count * bins).reshape(count, bins) for one in weights], 1)


def _calibration(binned: Float64s) -> Float64s:
    """Return the expected calibration error [draws] of each bootstrap draw; NaN for a draw without predictions.

    Args:
        binned: [draws, 3 * bins] of each draw: the number of predictions in each bin of confidence, then the sums of
            their confidences, then the numbers of right ones.
    """
    count, confidence, right = np.split(binned, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Float64s = np.abs(confidence - right).sum(1) / count.sum(1)
    return found


def _single_label_sums(logits: Tensor, targets: Tensor, space: LabelSpace) -> Float64s:
    choice, truth, count = logits.argmax(1), targets[:, 0], len(logits)
    loss = functional.cross_entropy(logits, truth, reduction="none")[:, None]
    predicted, true = (functional.one_hot(ids, len(space.classes)).double() for ids in (choice, truth))
    sums = torch.cat([torch.ones(count, 1).double(), loss, predicted * true, predicted, true], 1).numpy()
    confidence = space.probabilities(logits).amax(1)
    return np.concatenate([sums, _binned(confidence, choice == truth, np.arange(count), count)], 1)


def _single_label_scores(sums: Float64s, classes: int) -> dict[str, Float64s]:
    count, loss = sums[:, 0], sums[:, 1]
    hit, predicted, true = (sums[:, 2 + classes * part : 2 + classes * (part + 1)] for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = _mean(np.where(true > 0, hit / true, np.nan))
        precision = np.where(true > 0, hit / np.maximum(predicted, 1), np.nan)
        f1 = np.where(true > 0, 2 * hit / (predicted + true), np.nan)
        return {
            "loss": loss / count,
            "accuracy": hit.sum(1) / count,
            "balanced_accuracy": recall,
            "precision": _mean(precision),
            "recall": recall,
            "F1": _mean(f1),
            "calibration_error": _calibration(sums[:, 2 + 3 * classes :]),
        }


def _multi_label_sums(logits: Tensor, targets: Tensor, space: LabelSpace) -> Float64s:
    known, true = targets != IGNORED, targets == 1
    predicted = (logits > 0) & known
    loss = functional.binary_cross_entropy_with_logits(logits, true.double(), reduction="none") * known
    heads = torch.stack([known.sum(1).double(), loss.sum(1)], 1)
    sums = torch.cat([heads, (predicted & true).double(), predicted.double(), true.double()], 1).numpy()
    rows = np.broadcast_to(np.arange(len(logits))[:, None], known.shape)[known.numpy()]
    return np.concatenate([sums, _binned(space.probabilities(logits)[known], true[known], rows, len(logits))], 1)


def _multi_label_scores(sums: Float64s, classes: int) -> dict[str, Float64s]:
    count, loss = sums[:, 0], sums[:, 1]
    hit, predicted, true = (sums[:, 2 + classes * part : 2 + classes * (part + 1)] for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true > 0, 2 * hit / (predicted + true), np.nan)
        everything = predicted.sum(1) + true.sum(1)
        return {
            "loss": loss / count,
            "F1": _mean(f1),
            "F1_micro": 2 * hit.sum(1) / np.maximum(everything, 1),
            "calibration_error": _calibration(sums[:, 2 + 3 * classes :]),
        }


def _mean(each: Float64s) -> Float64s:
    """Return the mean over classes [draws] of the scores `each` [draws, classes]. Leave out NaN; NaN if all are NaN."""
    there = ~np.isnan(each)
    with np.errstate(invalid="ignore"):
        found: Float64s = np.where(there, each, 0.0).sum(1) / there.sum(1)
    return found


def require_side(degrees: float) -> None:
    """Raise an error if `degrees` cannot be the side of a block (a square of latitude and longitude).

    Raises:
        ConfigError: The number is not finite, or not above 0.
    """
    if not 0 < degrees < float("inf"):
        raise ConfigError(f"--degrees: give the side of a block in degrees, a number above 0, not {degrees:g}")


def draw_blocks(blocks: int, draws: int, seed: int) -> NDArray[np.uint16]:
    """Draw bootstrap samples of blocks: each sample takes as many blocks as there are, with replacement.

    Args:
        blocks: Number of blocks.
        draws: Number of samples.
        seed: Seed of the random numbers.

    Returns:
        [draws, blocks] how often each sample takes each block.
    """
    rng = np.random.default_rng((seed, blocks))
    found = np.empty((draws, blocks), np.uint16)
    for row in found:
        row[:] = np.bincount(rng.integers(0, blocks, blocks), minlength=blocks)
    return found


def percentiles(values: Float64s, level: float = 0.95) -> tuple[float, float]:
    """Return the lower and the upper end of the interval that holds the middle share `level` of bootstrap values.

    Leave out values that are NaN. If all are NaN, both ends are NaN.
    """
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
