"""Compute what a study found: scores of each network, differences with intervals, and gains by distance."""

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
from stssl.scoring.metrics import headline
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
    """Hold one score of one network.

    Attributes:
        split: Name of the split.
        model: `student`, `teacher`, `direct`, `control` (the student of the training without metadata) or `control
            teacher`.
        metadata: Metadata at test, such as `true` or `moved:500km`; `none` for networks that see images alone.
        seed: Seed of the run.
        part: `test`, or `unlabeled` for training patches without a label.
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
    """Compare two networks of a study on the same patches of one split.

    Attributes:
        claim: `pseudo-labels`, `metadata at test` or `student` if a claim rests on the comparison; else empty.
        split: Name of the split.
        inside: True if test places lie among training places.
        part: `test`, or `unlabeled` for training patches without a label.
        one: The network, and its metadata at test.
        other: The network that it is compared with.
        score: Name of the score.
        seeds: Number of pairs of runs.
        patches: Number of patches.
        blocks: Number of blocks with patches.
        value: Mean score of the network.
        against: Mean score of the other one.
        low: Lower end of the 95 % interval of the difference; None with one seed or too few blocks.
        high: Upper end of it.
        p: Probability of a difference as large by chance; None without an interval.
        holm: The same after Holm's correction for all comparisons that claims rest on; None for others.
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
        """Return the score minus that of the other network."""
        return self.value - self.against

    @property
    def shown(self) -> bool:
        """Return True if the interval excludes zero and the corrected p-value is below 0.05."""
        if self.low is None or self.high is None or self.holm is None:
            return False
        return self.holm < 0.05 and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class FinishedStudy:
    """Hold the finished runs of a study.

    Attributes:
        setting: Splits and metadata.
        options: How to compute intervals.
        folders: Folder of each training, by split, kind and seed.
        seeds: The seeds.
        space: Classes and kind of task.
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
        """Return the name of the score that claims are about: `accuracy` or `mAP`."""
        return headline(self.space)

    def part(self, split: str, kind: str, seed: int, part: str, change: MetadataChange) -> ScoredPart:
        """Read the scores of one run.

        Args:
            split: Name of the split.
            kind: `teacher`, `direct` or `control`.
            seed: Seed of the run.
            part: `test` or `unlabeled`.
            change: Metadata at test.

        Raises:
            RunError: They are missing or damaged.
        """
        return self._read(self.folders[split, kind, seed], part, change)

    def test(self, split: ShiftSplit, seed: int, model: str = "student") -> ScoredPart:
        """Read the scores of a network's run on the test patches, with true metadata.

        Args:
            split: The split.
            seed: Seed of the run.
            model: A network of `NETWORKS`.
        """
        return self.part(split.name, NETWORKS[model][0], seed, "test", TRUE)


def study_of(
    trainings: Sequence[Training],
    folders: Sequence[Path],
    setting: ShiftSetting,
    options: ShiftOptions,
    space: LabelSpace,
) -> FinishedStudy:
    """Collect the finished runs of a study.

    Args:
        trainings: The runs.
        folders: Folder of each run.
        setting: Splits and metadata.
        options: How to compute intervals.
        space: Classes and kind of task.
    """
    places = {(one.split.name, one.kind, one.seed): folder for one, folder in zip(trainings, folders, strict=True)}
    seeds = tuple(dict.fromkeys(one.seed for one in trainings))
    return FinishedStudy(setting, options, places, seeds, space)


def all_scores(study: FinishedStudy, trainings: Sequence[Training]) -> list[ShiftScore]:
    """List every score of every network, split, change of metadata and seed.

    Args:
        study: The study.
        trainings: Its runs.
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
    """Name two networks of a study that are compared, and what they see.

    Attributes:
        one: The network.
        other: The network that it is compared with.
        change: Metadata at test of the network.
        other_change: Metadata at test of the other network.
        part: `test` or `unlabeled`.
        claim: Claim that rests on the comparison; empty if none does.
    """

    one: str
    other: str
    change: MetadataChange = TRUE
    other_change: MetadataChange = TRUE
    part: str = "test"
    claim: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """Return the names of both networks, with their metadata."""
        both = ((self.one, self.change), (self.other, self.other_change))
        first, second = (f"{model} ({change})" if model in SEEING else model for model, change in both)
        return first, second


def contrast_effect(
    study: FinishedStudy, split: ShiftSplit, contrast: Contrast, chosen: Ints | None = None, test: bool = True
) -> ShiftEffect | None:
    """Compare two networks over all seeds.

    Args:
        study: The study.
        split: The split.
        contrast: Both networks.
        chosen: Numbers of the patches of the part to compare on; None takes all.
        test: False computes no p-value.

    Returns:
        The comparison; None if no patch has a label, or no seed has finite predictions.

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
    # Number the blocks of all seeds together: seeds may have other unlabeled patches.
    numbers = place_blocks(np.concatenate(places), study.options.degrees)
    ends = np.cumsum([len(one) for one in places])[:-1]
    pairs = [replace(pair, blocks=own) for pair, own in zip(pairs, np.split(numbers, ends), strict=True)]
    return _compared(study, split, contrast, pairs, test)


def _compared(
    study: FinishedStudy, split: ShiftSplit, contrast: Contrast, pairs: Sequence[PredictionPair], test: bool
) -> ShiftEffect:
    """Compare two networks' predictions on a split: difference, interval and p over seeds and blocks of places.

    With one seed or too few blocks there is neither an interval nor a p. If `test` is false, there is no p.
    """
    blocks = len(np.unique(np.concatenate([pair.blocks for pair in pairs])))
    sure = len(pairs) > 1 and blocks >= LEAST_BLOCKS
    draws = study.options.draws if sure else 1
    found = compare_predictions(pairs, study.space, study.score, draws=draws, swap=test and sure)
    about = (contrast.claim, split.name, split.inside, contrast.part, *contrast.names, study.score)
    counts = (len(pairs), round(float(np.mean([len(pair.targets) for pair in pairs]))), blocks)
    low, high = (found.low, found.high) if sure else (None, None)
    return ShiftEffect(*about, *counts, found.value, found.other, low, high, found.p if test and sure else None)


def all_effects(study: FinishedStudy) -> list[ShiftEffect]:
    """Compare the networks that claims are about, and those that say more, in each split."""
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
