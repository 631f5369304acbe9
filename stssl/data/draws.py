"""Choose at random the few training patches that keep their label. The others count as unlabeled."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stssl.base.arrays import AnyArray, Ints
from stssl.base.config import Config, Seed
from stssl.base.errors import DataError
from stssl.base.logs import LOG
from stssl.base.paths import Location
from stssl.store.lists import rows_named


class LabelsConfig(Config):
    """Set which training patches keep their label. Give one of fraction, per_class, total and list, or none.

    With none of them, all training patches keep their label.

    Attributes:
        fraction: Share of the training patches with a label that keep it.
        per_class: Number of patches that keep their label, for each class.
        total: Number of patches of all classes together that keep their label.
        list: File with the names of the patches that keep their label.
        allow_missing_classes: True to train even if some class has no labeled patch.
        seed: Seed of the random choice of these patches. Other random choices of a run do not depend on it.
        seed_rule: How the seed chooses patches. `usb` repeats the choice of the public code of "Context Matters" and of
            USB, which the paper's EuroSAT runs used. It needs `total` or `per_class`, and patches with one class each.
    """

    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    per_class: Annotated[int, Field(ge=1)] | None = None
    total: Annotated[int, Field(ge=1)] | None = None
    list: Location | None = None
    allow_missing_classes: bool = False
    seed: Seed = 0
    seed_rule: Literal["stssl", "usb"] = "stssl"

    @model_validator(mode="after")
    def _one_rule(self) -> "LabelsConfig":
        given = [name for name in ("fraction", "per_class", "total", "list") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"give one of fraction, per_class, total, list (given: {', '.join(given)}; set others to null)"
            )
        if self.seed_rule == "usb" and self.total is None and self.per_class is None:
            raise ValueError("seed_rule usb draws equally many patches of each class: give total or per_class with it")
        return self


def draw_labeled(targets: AnyArray, rows: Ints, config: LabelsConfig, names: NDArray[np.str_] | None = None) -> Ints:
    """Choose the training patches that keep their label. A row is the number of a patch in the store.

    Every class that occurs keeps at least one row, except with `list`. If possible, `per_class` and `total` choose the
    same number of rows for each class. `fraction` first chooses a row for every class, and then further rows at random.
    `seed_rule: usb` repeats the choice of the public code of "Context Matters".

    Args:
        targets: [N, C] labels of N patches and C classes: True or 1 if the patch has the class.
        rows: Rows of the training patches.
        config: How many patches to choose, by which rule, and with which seed.
        names: [N] names of the patches, for `list` and `seed_rule: usb`.

    Returns:
        Rows of the chosen patches, sorted from low to high.

    Raises:
        DataError: No training row has a label, `total` is smaller than the number of classes that occur, the training
            part has no patch of `list`, or the rule `usb` does not fit the labels.
    """
    if config.list is not None:
        known = np.array([], str) if names is None else names
        found = rows_named(known, config.list, "the store")
        # Drop listed patches that are not in the training part: a list may name validation and test patches too, and
        # training must never use these.
        listed = np.intersect1d(found, rows)
        if len(listed) == 0:
            raise DataError(f"none of the patches that labels.list {config.list} names is in the training part")
        if len(listed) < len(found):
            LOG.warning(
                "labels.list %s: %d of its %d patches are not in the training part and stay without label",
                config.list,
                len(found) - len(listed),
                len(found),
            )
        return listed
    rows = rows[targets[rows].astype(bool).any(1)]
    if len(rows) == 0:
        raise DataError("no training patch has a label: check data.labels and data.split")
    if config.seed_rule == "usb":
        return _usb(targets[rows].astype(bool), rows, config, np.array([], str) if names is None else names)
    # Use the seed of the config, not that of the run: runs with different seeds can share one choice of labels.
    order = np.random.default_rng(config.seed).permutation(rows)
    hits = targets[order].astype(bool)
    if config.per_class is not None:
        chosen = _cover(hits, config.per_class)
    elif config.total is not None:
        chosen = _fill(hits, config.total)
    elif config.fraction is not None:
        chosen = _at_random(hits, max(1, round(config.fraction * len(rows))))
    else:
        chosen = np.arange(len(order))
    return np.sort(order[chosen])


class _Classes:
    """Choose from n patches until each class has enough of them. An object knows which patches have each class.

    Attributes:
        hits: [classes, n] True if the patch has the class.
        patches: For each class, the numbers 0..n-1 of its patches from low to high.
        order: Numbers of the classes, the rarest class first.
        most: Number of patches of the most frequent class.
    """

    def __init__(self, hits: NDArray[np.bool_]) -> None:
        """Find the patches of each class in the table `hits` [n, classes], which is True if a patch has a class."""
        self.hits = np.ascontiguousarray(hits.T)
        self.patches = [np.flatnonzero(column) for column in self.hits]
        counts = np.array([len(patches) for patches in self.patches])
        self.order = np.argsort(counts, kind="stable").tolist()
        self.most = int(counts.max())
        self._marks = np.zeros(len(hits), bool)

    def cover(self, times: int) -> Ints:
        """Choose patches until each class has `times` patches, or all its patches. Rare classes choose first.

        The running time depends on the number of chosen patches, not on that of all patches: `_fill` calls this many
        times.

        Args:
            times: Wanted number of patches for each class.

        Returns:
            Numbers 0..n-1 of the chosen patches, in the sequence of the choices.
        """
        chosen = np.empty(0, np.int64)
        # A patch with a rare class often has a frequent class too, so later classes need fewer further patches.
        for label in self.order:
            missing = times - int(np.count_nonzero(self.hits[label].take(chosen)))
            if missing > 0:
                # Look only at the first `times` patches of the class: `times - missing` patches of the class are
                # chosen already, so at least `missing` of these are not (unless the class has too few).
                first = self.patches[label][:times]
                new = first[~self._marks.take(first)][:missing]
                self._marks[new] = True
                chosen = np.concatenate([chosen, new])
        self._marks[chosen] = False
        return chosen


def _cover(hits: NDArray[np.bool_], times: int) -> Ints:
    """Choose patches until each class has `times` patches, or all its patches. Return their sorted numbers 0..n-1.

    Args:
        hits: [n, classes] True if the patch has the class.
        times: Wanted number of patches for each class.
    """
    return np.sort(_Classes(hits).cover(times))


def _fill(hits: NDArray[np.bool_], total: int) -> Ints:
    """Choose `total` patches, so that the numbers of patches of the classes are as equal as possible.

    In each round, every class gets one more patch. The last round stops at `total`.

    Args:
        hits: [n, classes] True if the patch has the class.
        total: Number of patches to choose.

    Returns:
        Numbers 0..n-1 of the chosen patches.
    """
    present = int(hits.any(0).sum())
    if total < present:
        raise DataError(f"labels.total is {total}, but {present} classes occur and each keeps at least one label")
    classes, taken = _Classes(hits), np.zeros(len(hits), bool)
    taken[classes.cover(1)] = True
    left, times = min(total, len(hits)) - int(taken.sum()), 1
    while left > 0:
        times += 1
        covered = classes.cover(times)
        more = np.sort(covered[~taken[covered]])[:left]
        # Stop if all patches that have a class are chosen: if they are fewer than `total`, the loop would never end.
        if len(more) == 0 and times > classes.most:
            break
        taken[more] = True
        left -= len(more)
    return np.flatnonzero(taken)


def _at_random(hits: NDArray[np.bool_], total: int) -> Ints:
    """Choose `total` patches from a shuffled list: first one for every class, then others from the start of the list.

    If one patch for every class makes more than `total` patches, choose only these.

    Args:
        hits: [n, classes] True if the patch has the class, for the n patches of the list.
        total: Number of patches to choose.

    Returns:
        Numbers 0..n-1 of the chosen patches.
    """
    chosen = _cover(hits, 1)
    rest = np.setdiff1d(np.arange(len(hits)), chosen)
    return np.concatenate([chosen, rest[: max(0, total - len(chosen))]])


def _usb(hits: NDArray[np.bool_], rows: Ints, config: LabelsConfig, names: NDArray[np.str_]) -> Ints:
    """Choose rows as the public code of "Context Matters" does: equally many of each class.

    That code lists the training patches class by class, those of a class sorted by name, and shuffles the list. Then,
    for each class, it shuffles the list positions of its patches, and chooses the first ones. One legacy generator of
    NumPy makes all shuffles.

    Args:
        hits: [n, C] True for the class of each of n training patches.
        rows: [n] store rows of these patches.
        config: Number of patches to choose, and seed.
        names: [N] names of all patches of the store.

    Returns:
        Store rows of the chosen patches, sorted from low to high.

    Raises:
        DataError: Patches have several classes, `total` is no multiple of the number of classes, or a class has too few
            patches.
    """
    if (hits.sum(1) != 1).any():
        raise DataError("labels.seed_rule usb needs patches with one class each. Set labels.seed_rule=stssl.")
    present = np.flatnonzero(hits.any(0))
    count, rest = divmod(config.total, len(present)) if config.total is not None else (config.per_class or 0, 0)
    if rest or not count:
        raise DataError(
            f"labels.total is {config.total}, and labels.seed_rule usb draws equally many patches of each of "
            f"{len(present)} classes. Give a multiple of {len(present)}."
        )
    classes = hits.argmax(1)
    if (scarce := hits.sum(0)[present].min()) < count:
        raise DataError(
            f"labels.seed_rule usb draws {count} patches of each class, and one class has only {scarce}. Lower "
            f"labels.{'total' if config.total is not None else 'per_class'}."
        )
    generator = np.random.RandomState(config.seed)
    order = np.lexsort((names[rows], classes))
    generator.shuffle(order)
    chosen = []
    for label in present:
        places = np.flatnonzero(classes[order] == label)
        generator.shuffle(places)
        chosen.append(order[places[:count]])
    return np.sort(rows[np.concatenate(chosen)])
