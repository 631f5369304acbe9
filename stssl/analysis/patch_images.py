"""Show patches of a run as images: some right and some wrong predictions of the student, and its surest mistakes."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from stssl.analysis.outcomes import Comparison
from stssl.analysis.page import joined, note
from stssl.analysis.run_views import RunView
from stssl.base.arrays import Ints
from stssl.base.errors import StsslError, first_line
from stssl.base.labels import LabelSpace
from stssl.store import Store

EACH = 6
"""Number of patches of each kind."""
LARGEST = 128
"""Largest width and height of an image in pixels."""
SHOWN_BANDS = ("B04", "B03", "B02")
"""Bands of Sentinel-2 that show red, green and blue."""


def show_patches(view: RunView, part: str, outcome: Comparison, space: LabelSpace) -> list[Markup]:
    """Return HTML with images of patches that a run's student predicts right or wrong, and of its surest mistakes.

    Args:
        view: Contents of the run's files.
        part: Part of the data that was predicted, such as `test`.
        outcome: Comparison of the student's predictions on this part with the labels.
        space: Classes of the task, and whether it is single-label or multi-label.

    Returns:
        Parts of the page with the images; none if the evaluation did not save the store rows of its patches, or no
        patch can be shown. If the store cannot be read or is not the run's, the only part is a sentence about it.
    """
    arrays = view.arrays[part]
    picked = pick_patches(outcome)
    if not picked or "rows" not in arrays:
        return []
    numbers = np.concatenate(list(picked.values()))
    try:
        pixels = _pixels(view, arrays["rows"][numbers].astype(np.int64))
    except StsslError as error:
        return [note(f"Images of patches are left out: {first_line(error)}")]
    except (ValueError, TypeError, IndexError, OverflowError):
        return [note("Images of patches are left out: the rows of this evaluation are not rows of the store.")]
    images = iter(pixels)
    ids = [str(name) for name in arrays["patch_ids"]] if "patch_ids" in arrays else None
    found = []
    for kind, chosen in picked.items():
        cards = []
        for number in chosen:
            name = ids[number] if ids and number < len(ids) else f"row {arrays['rows'][number]}"
            cards.append(_card(next(images), name, _words(int(number), outcome, arrays["targets"], space)))
        found.append(
            Markup("<h4>{}</h4><div class='panels patches'>{}</div>").format(kind, joined("", cards)),
        )
    return found


def pick_patches(outcome: Comparison) -> dict[str, Ints]:
    """Choose the patches that a page shows. Return their positions among the evaluated patches, by kind.

    The kinds are `Right`, `Wrong` and `Surest mistakes`; a kind without patches is left out. `Surest mistakes` are the
    patches with the most probable wrong predictions. The others are spread evenly over the evaluated patches. `outcome`
    compares the predictions with the labels. A patch with several labels is right if all its known labels are predicted
    right.
    """
    mistakes = np.flatnonzero(np.isfinite(outcome.surest))
    surest = mistakes[np.argsort(-outcome.surest[mistakes], kind="stable")][:EACH]
    kinds = {
        "Right": np.flatnonzero(outcome.wrong == 0),
        "Wrong": np.setdiff1d(mistakes, surest),
    }
    spread = {
        kind: rows[np.unique(np.linspace(0, len(rows) - 1, EACH).round().astype(np.int64))] if len(rows) else rows
        for kind, rows in kinds.items()
    }
    return {kind: rows for kind, rows in (spread | {"Surest mistakes": surest}).items() if len(rows)}


def _pixels(view: RunView, rows: Ints) -> NDArray[np.uint8]:
    """Read patches from the store of the run `view`, and return color images [n, height, width, 3] of bytes.

    `rows` has the numbers of the n patches in the store. If the store lacks the bands for red, green and blue, the
    images show other bands.

    Raises:
        StsslError: The store cannot be read, or lacks a row, or is not the one that the run was trained on.
    """
    store = Store.open(view.recipe.data.store)
    if view.record is None or store.fingerprint != view.record.store.fingerprint:
        raise StsslError(f"{store.path} is not the store that this run was trained on.")
    groups = [group.bands for group in store.groups.values()]
    bands: Sequence[str] = next((SHOWN_BANDS for own in groups if set(SHOWN_BANDS) <= set(own)), ())
    if not bands:
        own = max(groups, key=len)
        bands = own[:3] if len(own) >= 3 else own[:1]
    pixels = store.read(rows, bands=bands)
    if pixels.dtype != np.uint8:
        wide = pixels.astype(np.float32)
        low, high = np.nanquantile(wide, (0.01, 0.99), axis=(0, 2, 3), keepdims=True)
        pixels = np.nan_to_num((wide - low) / np.maximum(high - low, 1e-6)).clip(0, 1) * 255
    return np.broadcast_to(pixels, (len(rows), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1).astype(np.uint8)


def _words(number: int, outcome: Comparison, targets: NDArray[np.signedinteger[Any]], space: LabelSpace) -> str:
    """Return the text below the image of a patch: its labels, and what the network predicts instead, if wrong.

    Args:
        number: Position of the patch among the evaluated patches.
        outcome: Comparison of the network's predictions with the labels.
        targets: Labels of all evaluated patches: [patches, 1] class ids (single-label) or [patches, classes] zeros and
            ones (multi-label); `IGNORED` if unknown.
        space: Classes of the task, and whether it is single-label or multi-label.
    """
    label, found = targets[number], outcome.predicted[number]
    sure = outcome.surest[number]
    suffix = f" ({sure:.0%} sure)" if np.isfinite(sure) else ""
    if not space.multilabel:
        truth = space.classes[label[0]]
        return f"{truth}" if label[0] == found[0] else f"{truth}, predicted {space.classes[found[0]]}{suffix}"
    names: Mapping[str, list[str]] = {
        "": [space.classes[i] for i in np.flatnonzero((label == 1) & (found == 1))],
        "missed ": [space.classes[i] for i in np.flatnonzero((label == 1) & (found == 0))],
        "wrongly ": [space.classes[i] for i in np.flatnonzero((label == 0) & (found == 1))],
    }
    return "; ".join(f"{kind}{', '.join(some)}" for kind, some in names.items() if some) + suffix


def _card(pixels: NDArray[np.uint8], name: str, words: str) -> Markup:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LARGEST, LARGEST))
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup("<figure><img src='data:image/jpeg;base64,{}' alt='{}' title='{}'>{}</figure>").format(
        data, f"Patch {name}", name, words
    )
