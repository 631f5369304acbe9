"""Draw which classes a network confuses (single-label), or predicts together too often or too seldom (multi-label)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stssl.analysis.drawing import AnyFloats
from stssl.analysis.page import joined, note
from stssl.base.arrays import Ints
from stssl.base.batch import IGNORED
from stssl.base.labels import LabelSpace

MATRIX_CLASSES = 25
"""Largest number of classes in a matrix. The names of more would be too small to read."""
SQUARE = 22
_SVG = Markup(
    "<div class='wide'><svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img'"
    " style='max-width: none' font-size='11'>{parts}</svg></div>"
)
_RECT = Markup(
    "<rect x='{x}' y='{y}' width='21' height='21' fill='var(--series-{color})' fill-opacity='{strength:.2f}'>"
    "<title>{words}</title></rect>"
)
_ROW = Markup("<text x='{x}' y='{y}' text-anchor='end'>{name}<title>{whole}</title></text>")
_COLUMN = Markup("<text transform='translate({x} {y}) rotate(-60)'>{name}<title>{whole}</title></text>")
_NUMBER = Markup("<text x='{x}' y='{y}' text-anchor='middle' font-size='9' pointer-events='none'>{words}</text>")
_AXIS = Markup("<text x='{x}' y='{y}' fill-opacity='.75'>{words}</text>")


def confusion(predicted: Ints, targets: NDArray[np.signedinteger[Any]], space: LabelSpace) -> Markup:
    """Draw which classes a network predicts (columns) for patches of each class (rows), as a matrix of colored cells.

    Args:
        predicted: [patches, 1] predicted class ids (single-label) or [patches, classes] zeros and ones (multi-label).
        targets: Labels with the shape of `predicted`; `IGNORED` if unknown.
        space: Classes of the task, and whether it is single-label or multi-label.

    Returns:
        HTML with the matrix and a sentence that explains it; empty without known labels. In a multi-label task, cells
        show how much more often a class is predicted than labeled.
    """
    if not space.multilabel:
        known = targets[:, 0] != IGNORED
        counts = np.zeros((len(space.classes),) * 2)
        np.add.at(counts, (targets[known, 0], predicted[known, 0]), 1)
        own = _most_frequent(counts.sum(1))
        if not len(own):
            return Markup()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        words = (
            "Each row has the patches of one class, in percent. The diagonal is what the student got right; "
            "all else are mistakes."
        )
        texts = [
            [
                f"{space.classes[i]} predicted as {space.classes[j]}: {counts[i, j]:,.0f} of {counts[i].sum():,.0f} "
                f"patches ({shares[i, j]:.1%})"
                for j in own
            ]
            for i in own
        ]
    else:
        known = targets != IGNORED
        truth, found = ((ids == 1) & known for ids in (targets, predicted))
        own = _most_frequent(truth.sum(0))
        if not len(own):
            return Markup()
        # Matrix products count the patches for all pairs of classes at once: loops over the pairs would be slow.
        base, there, made = (truth.T.astype(np.float32) @ one.astype(np.float32) for one in (known, truth, found))
        labeled, called = there / np.maximum(base, 1), made / np.maximum(base, 1)
        shares = called - labeled
        words = (
            "Each row has the patches with one class. A cell says how much more often (orange, +) or less often "
            "(blue, −) the student predicts the column's class there than it is labeled, in percent of the patches. "
            "Empty is best. The diagonal shows what it misses."
        )
        texts = [
            [
                f"Patches with {space.classes[i]}: {space.classes[j]} is labeled in {labeled[i, j]:.1%} of "
                f"{base[i, j]:,.0f}, and predicted in {called[i, j]:.1%}"
                for j in own
            ]
            for i in own
        ]
    if len(own) < len(space.classes):
        words += f" Shown: the {len(own)} most frequent of {len(space.classes)} classes."
    names = [space.classes[i] for i in own]
    return _matrix(shares[np.ix_(own, own)], names, texts, space.multilabel) + note(words)


def _most_frequent(counts: AnyFloats | Ints) -> Ints:
    order = np.argsort(-counts, kind="stable")[:MATRIX_CLASSES]
    return np.sort(order[counts[order] > 0])


def _matrix(shares: AnyFloats, names: Sequence[str], texts: Sequence[Sequence[str]], signed: bool) -> Markup:
    """Return SVG text with the colored cells of a matrix of n classes, and the names of the classes at its edges.

    Args:
        shares: [n, n] value of each cell, -1 to 1.
        names: Names of the classes.
        texts: [n, n] text that the page shows when the pointer rests on the cell.
        signed: True if values may be negative: cells then show the sign, in two colors.
    """
    parts, high = list[Markup](), max(0.05, float(np.abs(shares).max())) if signed else 1.0
    letters = min(28, max(map(len, names)))
    # Leave room above the matrix: names of columns rise at 60 degrees and must not touch two lines of explanation.
    left, top = 16 + 6 * letters, 44 + 5 * letters
    parts.append(_AXIS.format(x=4, y=16, words="rows: class with the label" if signed else "rows: labeled class"))
    parts.append(_AXIS.format(x=4, y=32, words="columns: predicted class"))
    for i, name in enumerate(names):
        short = name if len(name) <= 28 else f"{name[:27]}…"
        at = top + SQUARE * i
        parts.append(_ROW.format(x=left - 6, y=at + 15, name=short, whole=name))
        parts.append(_COLUMN.format(x=left + SQUARE * i + 14, y=top - 6, name=short, whole=name))
        for j, share in enumerate(shares[i]):
            if abs(share) < 0.005:
                continue
            x, strength = left + SQUARE * j, 0.75 * min(1.0, abs(share) / high)
            parts.append(_RECT.format(x=x, y=at, color=int(signed and share > 0), strength=strength, words=texts[i][j]))
            label = f"{100 * share:+.0f}".replace("-", "−") if signed else f"{100 * share:.0f}"
            parts.append(_NUMBER.format(x=x + 10.5, y=at + 14, words=label))
    # Leave room at the right: the name of the last column leans over the edge of the matrix.
    width, height = left + SQUARE * len(names) + 20 + 3 * letters, top + SQUARE * len(names) + 4
    return _SVG.format(width=max(width, 180), height=height, parts=joined("", parts))
