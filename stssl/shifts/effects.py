"""Collect the scores of a study's networks, and compare networks: differences of scores with intervals and p-values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.errors import RunError
from stssl.base.labels import LabelSpace
from stssl.scoring.changed_metadata import MetadataChange
from stssl.scoring.groups import LEAST_BLOCKS
from stssl.scoring.metrics import LOWER_IS_BETTER, headline
from stssl.scoring.paired_scores import PredictionPair, compare_predictions, holm_corrected, place_blocks
from stssl.shifts.evaluated import TRUE, UNLABELED, ScoredPart, read_scored, sees_metadata
from stssl.shifts.settings import ShiftOptions, ShiftSetting, ShiftSplit
from stssl.shifts.trainings import Training

NETWORKS: Mapping[str, tuple[str, str]] = {
    "student": ("teacher", "student"),
    "teacher": ("teacher", "teacher"),
    "direct": ("direct", "student"),
    "control": ("control", "student"),
    "control teacher": ("control", "teacher"),
}
"""Networks of a study: the training that gives each, and its name in that run."""
SEEING = ("teacher", "direct")
"""Networks that see metadata at test."""
NOT_SEEN = "none"
"""Metadata of networks that see images alone."""
MOST_KEPT = 60
"""Number of evaluations that stay in memory. Large stores have 20 MB of logits in each."""
CLAIMS = ("pseudo-labels", "metadata at test", "student")


@dataclass(frozen=True)
class ShiftScore:
    """Hold one score (such as accuracy) of one network of a study.

    Attributes:
        split: Name of the split on which the network was trained and scored.
        model: `student`, `teacher`, `direct`, `control` (the student of the training without metadata) or `control
            teacher`.
        metadata: Metadata that the network got, such as `true` or `moved:500km`; `none` for networks that see images
            alone.
        seed: Seed of the run.
        part: Scored patches: `test`, or `unlabeled` for training patches whose labels the training did not use.
        score: Name of the score.
        value: The score; None if it is not defined.
        patches: Number of scored patches.
        run: Folder of the run.
    """

    split: str
    model: str
    metadata: str
    seed: int
    part: str
    score: str
    value: float | None
    patches: int
    run: str


@dataclass(frozen=True)
class ShiftEffect:
    """Hold the comparison of two networks of a study by their scores on the same patches of one split.

    Attributes:
        claim: Claim that the comparison tests: `pseudo-labels`, `metadata at test` or `student`; empty if none.
        split: Name of the split.
        inside: True if test places lie among training places.
        part: Compared patches: `test`, or `unlabeled` for training patches whose labels the training did not use.
        one: First network, with the metadata that it got if it sees any, such as `teacher (true)`.
        other: Second network, named likewise.
        score: Name of the score that is compared.
        seeds: Number of seeds, each with a run of both networks.
        patches: Number of labeled patches in the comparison, as a mean over the seeds.
        blocks: Number of blocks (squares of latitude and longitude) in which these patches lie.
        value: Mean score of the first network over the seeds.
        against: Mean score of the second network over the seeds.
        low: Lower end of the 95 % interval of `difference`; None with one seed or too few blocks.
        high: Upper end of this interval.
        p: Probability that chance alone gives a difference at least as large; None without an interval.
        holm: `p` after Holm's correction for the number of comparisons that test claims; None for others.
    """

    claim: str
    split: str
    inside: bool
    part: str
    one: str
    other: str
    score: str
    seeds: int
    patches: int
    blocks: int
    value: float
    against: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm: float | None = None

    @property
    def difference(self) -> float:
        """Return by how much the first network is better: its mean score minus that of the second network.

        Of some scores, such as `loss`, less is better. Then it is the second network's score minus the first one's.
        """
        return _sign(self.score) * (self.value - self.against)

    @property
    def shown(self) -> bool:
        """Return True if the networks differ beyond chance: the interval excludes zero, and `holm` is below 0.05."""
        if self.low is None or self.high is None or self.holm is None:
            return False
        return self.holm < 0.05 and not self.low <= 0 <= self.high


def _sign(score: str) -> int:
    """Return 1 if more of a score is better, -1 if less is."""
    return -1 if score in LOWER_IS_BETTER else 1


@dataclass(frozen=True)
class FinishedStudy:
    """Find and read the scores of a study's finished runs.

    Attributes:
        setting: Splits of the study, and changes of the metadata at test.
        options: How to compute intervals.
        folders: Folder of each run, by name of the split, kind of training (such as `teacher`) and seed.
        seeds: Seeds of the runs.
        space: Classes of the task, and whether it is single-label or multi-label.
    """

    setting: ShiftSetting
    options: ShiftOptions
    folders: Mapping[tuple[str, str, int], Path]
    seeds: tuple[int, ...]
    space: LabelSpace

    @cached_property
    def _read(self) -> Callable[[Path, str, MetadataChange], ScoredPart]:
        return lru_cache(MOST_KEPT)(read_scored)

    @property
    def score(self) -> str:
        """Return the name of the score by which networks are compared: the one asked for, else `accuracy` or `mAP`."""
        return self.options.score or headline(self.space)

    def part(self, split: str, kind: str, seed: int, part: str, change: MetadataChange) -> ScoredPart:
        """Read the scores and predictions of one run's networks on some patches.

        Args:
            split: Name of the split.
            kind: Kind of the training: `teacher`, `direct` or `control`.
            seed: Seed of the run.
            part: Scored patches: `test` or `unlabeled`.
            change: Change of the metadata that the networks got.

        Raises:
            RunError: The scores are missing or damaged.
        """
        return self._read(self.folders[split, kind, seed], part, change)

    def test(self, split: ShiftSplit, seed: int, model: str = "student") -> ScoredPart:
        """Read the scores and predictions on test patches, with true metadata, of the run that trained a network.

        Args:
            split: Split of the study.
            seed: Seed of the run.
            model: Name of the network, a key of `NETWORKS`.

        Returns:
            Scores and predictions of all networks of this run.

        Raises:
            RunError: The scores are missing or damaged.
        """
        return self.part(split.name, NETWORKS[model][0], seed, "test", TRUE)


def study_of(
    trainings: Sequence[Training],
    folders: Sequence[Path],
    setting: ShiftSetting,
    options: ShiftOptions,
    space: LabelSpace,
) -> FinishedStudy:
    """Return a `FinishedStudy`, which finds and reads the scores of a study's finished runs.

    Args:
        trainings: All trainings of the study.
        folders: Folder of each training's run, in the same order.
        setting: Splits of the study, and changes of the metadata at test.
        options: How to compute intervals.
        space: Classes of the task, and whether it is single-label or multi-label.
    """
    places = {(one.split.name, one.kind, one.seed): folder for one, folder in zip(trainings, folders, strict=True)}
    seeds = tuple(dict.fromkeys(one.seed for one in trainings))
    return FinishedStudy(setting, options, places, seeds, space)


def all_scores(study: FinishedStudy, trainings: Sequence[Training]) -> list[ShiftScore]:
    """List all scores of a study: one entry for each score, network, split, seed, part and change of metadata.

    Args:
        study: The study, with finished runs.
        trainings: All trainings of the study.
    """
    found = []
    for training in trainings:
        split, kind, seed = training.split.name, training.kind, training.seed
        parts = [(UNLABELED, TRUE), ("test", TRUE)]
        if sees_metadata(training.recipe):
            parts += [("test", change) for change in study.setting.changes[1:]]
        for part, change in parts:
            file = study.part(split, kind, seed, part, change).file
            for model, (own, network) in NETWORKS.items():
                if own != kind or (change != TRUE and model not in SEEING):
                    continue
                metadata = str(change) if model in SEEING else NOT_SEEN
                about = (split, model, metadata, seed, part)
                run = str(study.folders[split, kind, seed])
                found += [
                    ShiftScore(*about, name, value, file.patches, run)
                    for name, value in file.networks[network].scores.items()
                ]
    return found


@dataclass(frozen=True)
class Contrast:
    """Name two networks of a study to compare, the metadata that each gets, and the patches.

    Attributes:
        one: Name of the first network.
        other: Name of the second network.
        change: Change of the metadata that the first network gets.
        other_change: Change of the metadata that the second network gets.
        part: Patches to compare on: `test` or `unlabeled`.
        claim: Claim that the comparison tests, such as `student`; empty if none.
    """

    one: str
    other: str
    change: MetadataChange = TRUE
    other_change: MetadataChange = TRUE
    part: str = "test"
    claim: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of both networks, each with the metadata that it got if it sees any: `teacher (true)`."""
        both = ((self.one, self.change), (self.other, self.other_change))
        first, second = (f"{model} ({change})" if model in SEEING else model for model, change in both)
        return first, second


def contrast_effect(
    study: FinishedStudy, split: ShiftSplit, contrast: Contrast, chosen: Ints | None = None, test: bool = True
) -> ShiftEffect | None:
    """Compare the scores of two networks of a study on one split, over the runs of all seeds.

    Args:
        study: The study, with finished runs.
        split: Split of the study.
        contrast: Both networks, the metadata that each gets, and the patches.
        chosen: Numbers of the patches to compare on, among those that were scored; None takes all.
        test: False computes no p-value.

    Returns:
        The comparison; None if no patch has a class as label, or no seed has finite predictions.

    Raises:
        RunError: Runs were scored on different patches.
    """
    pairs, places = list[PredictionPair](), list[NDArray[np.float64]]()
    for seed in study.seeds:
        first, second = (
            study.part(split.name, NETWORKS[model][0], seed, contrast.part, change)
            for model, change in ((contrast.one, contrast.change), (contrast.other, contrast.other_change))
        )
        if not np.array_equal(first.arrays["rows"], second.arrays["rows"]):
            raise RunError(
                f"split {split.name}, seed {seed}: runs were scored on different patches. Remove `evaluation`."
            )
        targets = first.arrays["targets"]
        own = np.arange(len(targets)) if chosen is None else chosen
        own = own[(targets[own] != IGNORED).any(1)]
        one = torch.from_numpy(first.arrays[f"logits_{NETWORKS[contrast.one][1]}"][own])
        other = torch.from_numpy(second.arrays[f"logits_{NETWORKS[contrast.other][1]}"][own])
        known = torch.from_numpy(targets[own])
        finite = bool(torch.isfinite(one).all() and torch.isfinite(other).all())
        if finite and study.space.positives(known).any():  # without any class, mAP is not defined
            pairs.append(PredictionPair(one, other, known, own))
            places.append(first.arrays["metadata"][own, :2].astype(float))
    if not pairs:
        return None
    # Number the blocks of all seeds together: the unlabeled patches differ between seeds, and a number must mean the
    # same place for all of them.
    numbers = place_blocks(np.concatenate(places), study.options.degrees)
    ends = np.cumsum([len(one) for one in places])[:-1]
    pairs = [replace(pair, blocks=own) for pair, own in zip(pairs, np.split(numbers, ends), strict=True)]
    return _compared(study, split, contrast, pairs, test)


def _compared(
    study: FinishedStudy, split: ShiftSplit, contrast: Contrast, pairs: Sequence[PredictionPair], test: bool
) -> ShiftEffect:
    """Compute the difference between two networks' scores on a split, with its interval and p-value.

    With one seed or too few blocks, there is neither an interval nor a p-value: seeds and blocks are drawn for both.

    Args:
        study: The study.
        split: Split of the study.
        contrast: Names of both networks, and the metadata that each got.
        pairs: Predictions of both networks, one pair for each seed.
        test: False computes no p-value.
    """
    blocks = len(np.unique(np.concatenate([pair.blocks for pair in pairs])))
    sure = len(pairs) > 1 and blocks >= LEAST_BLOCKS
    draws = study.options.draws if sure else 1
    found = compare_predictions(pairs, study.space, study.score, draws=draws, swap=test and sure)
    about = (contrast.claim, split.name, split.inside, contrast.part, *contrast.names, study.score)
    counts = (len(pairs), round(float(np.mean([len(pair.targets) for pair in pairs]))), blocks)
    low, high = sorted(_sign(study.score) * end for end in (found.low, found.high)) if sure else (None, None)
    return ShiftEffect(*about, *counts, found.value, found.other, low, high, found.p if test and sure else None)


def all_effects(study: FinishedStudy) -> list[ShiftEffect]:
    """Compare networks of a study with each other on each split, and return all comparisons.

    The first comparisons test the three claims, and their p-values are corrected for their number (Holm). The others
    compare the teachers on test patches, and each network that sees metadata with itself under changed metadata.
    """
    contrasts = [
        Contrast("teacher", "control teacher", part=UNLABELED, claim=CLAIMS[0]),
        Contrast("direct", "control teacher", claim=CLAIMS[1]),
        Contrast("student", "control", claim=CLAIMS[2]),
        Contrast("teacher", "control teacher"),
        *(
            Contrast(model, model, other_change=change)
            for model in SEEING
            for change in study.setting.changes
            if change != TRUE
        ),
    ]
    every = (contrast_effect(study, split, contrast) for contrast in contrasts for split in study.setting.splits)
    found = [one for one in every if one is not None]
    tested = [number for number, one in enumerate(found) if one.claim and one.p is not None]
    corrected = holm_corrected([found[number].p or 0.0 for number in tested])
    for number, p in zip(tested, corrected, strict=True):
        found[number] = replace(found[number], holm=p)
    return found
