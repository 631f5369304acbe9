"""How often strong views draw each operation, and how far views lie from their image, as in the public code.

`vectors/view_statistics.json` holds mean and histogram of 2,000 views of one image by the public code: d is the mean
of |view - resized image|. A fixed seed makes each test the same each time.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from stssl.base.randomness import RandomStream, uniforms
from stssl.data import strong_fixmatch, strong_kornia
from stssl.data.augment import RandAugmentConfig, apply_view, draw_view, numbers_needed
from stssl.data.views import PixelScaler

VECTORS = Path(__file__).with_name("vectors")
FACTS = json.loads((VECTORS / "view_statistics.json").read_text())
ROWS = 2000
CUTOUT = {"fixmatch": 0.5}


def drawn(style, size=32, rows=ROWS, m=5, seed=0):
    strong, cutout = RandAugmentConfig(style=style, n=3, m=m), CUTOUT.get(style, 0)
    numbers = uniforms((seed, RandomStream.PROBE, np.arange(rows)), numbers_needed(strong, cutout))
    return draw_view(numbers, size, 0.125, strong, cutout)


def names_of(style, rows=20_000):
    """Name of the operation of each image and round; the empty text if nothing happens."""
    found = np.full((rows, 3), "", dtype="<U16")
    for i, operations in enumerate(drawn(style, rows=rows).rounds):
        for name, (chosen, _) in operations.items():
            found[chosen.numpy(), i] = name
    return found


def expected_shares(style):
    """Share of each name in one round. Geometric operations have one name, and kornia 0.7 leaves half of them out."""
    if style == "fixmatch":
        groups = {"Identity": ""} | dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"), "move")
        names = [groups.get(name, name) for name in strong_fixmatch.FIXMATCH_NAMES]
    else:
        names = ["warp" if name in strong_kornia.SIGNED else name for name in strong_kornia.KORNIA_NAMES]
    shares = {name: names.count(name) / len(names) for name in names}
    return shares if style != "kornia-0.7" else shares | {"warp": 5 / 30, "": 5 / 30}


def fit(found, shares):
    """Chi-square p-value of the operations of one round."""
    if set(np.unique(found)) - set(shares):
        return 0.0
    counts = np.array([(found == name).sum() for name in shares])
    return stats.chisquare(counts, len(found) * np.array(list(shares.values()))).pvalue


@pytest.mark.parametrize("style", ["kornia-0.7", "kornia", "fixmatch"])
def test_operations_are_drawn_as_often_as_in_the_public_code(style):
    found = names_of(style)
    for i in range(3):
        assert fit(found[:, i], expected_shares(style)) > 0.01
        for other in {"kornia-0.7", "kornia", "fixmatch"} - {style}:
            assert fit(found[:, i], expected_shares(other)) < 1e-6, "control"
    single = [name for name in expected_shares(style) if name not in ("warp", "move", "")]
    repeated = ((found[:, :1] == found[:, 1:2]) & np.isin(found[:, :1], single)).sum()
    assert repeated == 0 if style != "fixmatch" else abs(repeated / len(found) - len(single) / 14**2) < 0.005
    shares = [(found == name).any(1).mean() for name in single]
    assert np.allclose(shares, 1 - (13 / 14) ** 3 if style == "fixmatch" else 0.2, atol=0.015)


def test_signs_and_thresholds_are_drawn_as_in_the_public_code():
    for style, signs in (("kornia", (-1, 1)), ("kornia-0.7", (1,))):
        rounds = drawn(style, rows=20_000).rounds
        turns = np.concatenate([operations["warp"][1].numpy() for operations in rounds])
        found = turns[turns[:, 0] < 0.999]  # only a rotation changes this entry
        assert set(np.sign(found[:, 3])) == set(signs)
        assert abs((found[:, 3] > 0).mean() - 1 / len(signs)) < 0.03
        levels = np.concatenate([operations["solarize_add"][1].numpy()[:, 1] for operations in rounds])
        assert stats.kstest(levels, "uniform").pvalue > 0.01
    amounts = np.concatenate([o["Brightness"][1].numpy()[:, 0] for o in drawn("fixmatch", rows=20_000).rounds])
    assert stats.kstest(amounts, stats.uniform(0.05, 0.9).cdf).pvalue > 0.01


def images_of(name):
    """Return the resized image of the public code, [1, 3, size, size]."""
    if name.startswith("fixmatch"):
        pixels = np.load(VECTORS / "randaugment_fixmatch.npz")["images64"][{"R": 0, "A": 2}[name.split()[1][0]]]
        mean, std, scale, size = np.zeros(3), np.zeros(3), "bytes", 32
        pixels = pixels.transpose(2, 0, 1)
    else:
        pixels = np.load(VECTORS / "bigearthnet_patch.npz")["pixels"].astype(np.float32)
        mean, std = (
            np.array([590.23569706, 614.21682446, 429.9430203]),
            np.array([675.88746967, 582.87945694, 572.41639287]),
        )
        scale, size = "sigmas", 128
    how = "pillow" if scale == "bytes" else "corners"
    scaler = PixelScaler({"rgb": ("R", "G", "B")}, ("R", "G", "B"), size, mean=mean, std=std, scale=scale, resize=how)
    return scaler.unit({"rgb": torch.from_numpy(pixels.copy())[None]})


def changes(image, style, seed):
    """Return d of each view, and whether it has one color."""
    strong, cutout = (None, 0) if style == "weak" else (RandAugmentConfig(style=style, n=3, m=5), CUTOUT.get(style, 0))
    found, plain = [], []
    for first in range(0, ROWS, 100):
        key = (seed, RandomStream.PROBE, np.arange(first, first + 100))
        draw = draw_view(uniforms(key, numbers_needed(strong, cutout)), image.shape[-1], 0.125, strong, cutout)
        views = apply_view(image.expand(100, -1, -1, -1), draw)
        found.append((views - image).abs().mean((1, 2, 3)))
        plain.append((views.amax((1, 2, 3)) - views.amin((1, 2, 3))) == 0)
    return torch.cat(found).numpy(), torch.cat(plain).float().mean().item()


def agreement(d, facts):
    """Return the difference of the means in standard errors, and the p-value of a chi-square over both histograms."""
    errors = abs(d.mean() - facts["mean"]) / (facts["std"] / np.sqrt(ROWS))
    edges = FACTS["edges"]
    ours = [((d >= low) & (d < high)).sum() for low, high in pairwise(edges)]
    pooled, rest = [], np.zeros(2)
    for pair in zip(ours, facts["counts"], strict=True):
        rest = rest + pair
        if rest.sum() >= 20:  # chi-square needs some counts in each cell
            pooled.append(rest)
            rest = np.zeros(2)
    pooled[-1] = pooled[-1] + rest
    return errors, stats.chi2_contingency(np.array(pooled).T, correction=False).pvalue


@pytest.mark.parametrize("name", ["kornia-0.7", "kornia", "fixmatch Residential_10", "fixmatch AnnualCrop_5"])
def test_views_change_images_as_much_as_in_the_public_code(name):
    image, facts = images_of(name), FACTS[name]
    for view, style in (("weak", "weak"), ("strong", name.split()[0])):
        d, plain = changes(image, style, seed=1)
        errors, p = agreement(d, facts[view])
        assert errors < 4 and p > 0.01, (view, errors, p)
        assert abs(plain - facts[view]["one_color"]) < 0.04
    if name != "kornia":  # the control costs seconds at 128 px, and kornia-0.7 has the same image
        errors, p = agreement(changes(image, "stssl", seed=1)[0], facts["strong"])
        assert errors > 4 and p < 0.01, "control: another style"
