"""Describe the data of a run: patches in the training, validation and test part, labels, bands. Warn of odd sizes."""

import numpy as np
import torch

from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.logs import LOG
from stssl.data.splits import PARTS, BlockSplit, LeaveOutSplit, shares_asked
from stssl.recipes.recipe import Recipe, RunRecipe
from stssl.recipes.run_data import PixelData, RunData

FAR = 2.0
"""Factor by which a part must be larger or smaller than its asked share to cause a warning."""
NAMED = 5
"""Largest number of classes that one warning names."""


def announce(recipe: RunRecipe, data: PixelData) -> list[str]:
    """Log warnings about the data of a run, and return lines of text for the user that describe the data.

    The warnings are about an empty test part, parts of unexpected sizes, and too few labels. The lines tell how many
    patches each part has, how many are labeled, and which bands are not used.

    Args:
        recipe: Recipe of the run.
        data: Open store of the run, with its split and labels.
    """
    for line in part_warnings(recipe, data):
        LOG.warning("%s", line)
    return part_lines(recipe, data)


def part_lines(recipe: RunRecipe, data: PixelData) -> list[str]:
    """Return lines of text for the user on the data of a run.

    They tell how many patches `train`, `validation` and `test` have, how many of these are labeled, and which bands of
    the store stay unused.

    Args:
        recipe: Recipe of the run.
        data: Open store of the run, with its split and labels.
    """
    parts = ", ".join(f"{len(data.split.part(part)):,} {part}{_labeled(data, part)}" for part in PARTS)
    lines = [f"patches: {parts}"]
    if unused := [band for band in data.store.bands if band not in recipe.data.bands]:
        lines.append(f"bands: {', '.join(recipe.data.bands)}; stored and not used: {', '.join(unused)}")
    return lines


def _labeled(data: PixelData, part: str) -> str:
    """Return words such as ` (20 labeled)` on how many patches of a part are labeled.

    In `train`, count only patches that keep their label. For data without labels, return an empty text.

    Args:
        data: Open store of the run, with its split and labels.
        part: Name of the part: `train`, `validation` or `test`.
    """
    if not isinstance(data, RunData):
        return ""
    rows = data.split.part(part)
    known = int((data.targets[torch.from_numpy(rows)] != IGNORED).any(1).sum())
    return f" ({len(data.labeled) if part == 'train' else known:,} labeled)"


def part_warnings(recipe: RunRecipe, data: PixelData) -> list[str]:
    """Return a line of text for each way in which the split or the labels of a run are not as the recipe asks.

    There is a warning if the test part of a training run is empty, if the share of a part (`train`, `validation` or
    `test`) is far from the asked one, or if the recipe asks for more labels than there are.

    Args:
        recipe: Recipe of the run.
        data: Open store of the run, with its split and labels.
    """
    found = _share_warnings(recipe, data)
    if isinstance(recipe, Recipe):
        if not len(data.split.test):
            found.append("data.split leaves no patch for test, so `stssl evaluate --split test` will have nothing")
        if isinstance(data, RunData):
            found += _label_warnings(recipe, data)
    return found


def _share_warnings(recipe: RunRecipe, data: PixelData) -> list[str]:
    """Return a line of text for each part whose share of the patches is far from what the recipe asks for.

    A share is far from the asked one if it is over `FAR` times as large or as small. Parts are `train`, `validation`
    and `test`; the recipe key `data.split` asks for their shares.
    """
    config, split = recipe.data.split, data.split
    asked = shares_asked(config)
    among = [split.train, split.validation, *([split.test] if "test" in asked else [])]
    total = sum(map(len, among))
    found = []
    for part, share in asked.items():
        count = len(split.part(part))
        if share / FAR <= count / total <= share * FAR:
            continue
        advice = ""
        if isinstance(config, BlockSplit | LeaveOutSplit):
            advice = f". Whole squares go to one part: lower data.split.degrees (now {config.degrees:g})"
        elif config == "blocks":
            advice = ". Whole squares go to one part: give smaller ones, 'data.split={name: blocks, degrees: 0.1}'"
        found.append(
            f"data.split: {count:,} of {total:,} patches are {part} ({count / total:.0%}, asked: {share:.0%}){advice}"
        )
    return found


def _label_warnings(recipe: Recipe, data: RunData) -> list[str]:
    """Return a line of text if the recipe asks for more labels than the training patches have; else an empty list.

    The recipe keys `labels.per_class` and `labels.total` ask for labels.
    """
    labels, hits = recipe.labels, _hits(data, data.labeled)
    if labels.total is not None and len(data.labeled) < labels.total:
        return [f"labels.total={labels.total}: only {len(data.labeled):,} training patches have a label; all are taken"]
    if labels.per_class is None:
        return []
    few = [(name, int(count)) for name, count in zip(data.space.classes, hits, strict=True) if count < labels.per_class]
    if not few:
        return []
    named = ", ".join(f"{name} {count:,}" for name, count in few[:NAMED])
    more = f", and {len(few) - NAMED} more" if len(few) > NAMED else ""
    return [
        f"labels.per_class={labels.per_class}: {len(few)} of {len(data.space.classes)} classes have fewer, so all "
        f"their labels are taken ({named}{more}); {len(data.labeled):,} patches are labeled"
    ]


def _hits(data: RunData, rows: Ints) -> Ints:
    """Return for each of the C classes how many of some patches have it, as whole numbers [C].

    Args:
        data: Open store of the run, with the labels.
        rows: Store rows of the patches.
    """
    return np.asarray(data.space.positives(data.targets[torch.from_numpy(rows)]).sum(0).long().numpy())
