import numpy as np
import pytest
import torch

from stssl.base.batch import Stream, View
from stssl.base.randomness import RandomStream, uniforms
from stssl.data.augment import (
    AugmentConfig,
    Draw,
    RandAugmentConfig,
    apply_view,
    draw_view,
    numbers_needed,
)
from stssl.data.strong_stssl import PHOTOMETRIC
from stssl.data.views import PixelScaler, ViewDrawer

STRONG = RandAugmentConfig(n=3, m=5)


def numbers(rows, count=None, seed=0):
    return uniforms((seed, RandomStream.PROBE, np.asarray(rows)), count or numbers_needed(STRONG))


def test_weak_view_is_a_reflected_crop_with_flips():
    image = torch.rand(6, 3, 16, 16)
    draw = draw_view(numbers(range(6), 4), 16, 0.25, None)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    for i, out in enumerate(apply_view(image, draw)):
        top, left = (draw.shift[i] + 4).tolist()
        expected = padded[i, :, top : top + 16, left : left + 16]
        # flips are of the crop's own frame: source line = flip(line) + shift
        expected = expected[:, ::-1] if draw.flip[i, 0] else expected
        expected = expected[:, :, ::-1] if draw.flip[i, 1] else expected
        assert np.array_equal(out.numpy(), expected)


def test_resampling_without_operations_equals_the_gather():
    image = torch.rand(5, 2, 12, 12)
    weak = draw_view(numbers(range(5), 4), 12, 0.25, None)
    still = Draw(weak.shift, weak.flip, torch.eye(2).expand(5, 2, 2), torch.zeros(5, 2))
    torch.testing.assert_close(apply_view(image, still), apply_view(image, weak), atol=2e-5, rtol=0)


@pytest.mark.parametrize("bands", [1, 3, 12])
def test_a_view_does_not_depend_on_its_batch(bands):
    image = torch.rand(8, bands, 20, 20)
    whole = apply_view(image, draw_view(numbers(range(8)), 20, 0.125, STRONG))
    for rows in ([3], [6, 1, 4]):
        part = apply_view(image[rows], draw_view(numbers(rows), 20, 0.125, STRONG))
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)
    other = apply_view(image, draw_view(numbers(range(8), seed=1), 20, 0.125, STRONG))
    assert (other - whole).abs().amax((1, 2, 3)).min() > 0.01


def test_strong_views_stay_in_range_and_keep_shape():
    image = torch.rand(64, 3, 16, 16)
    out = apply_view(image, draw_view(numbers(range(64)), 16, 0.125, RandAugmentConfig(n=5, m=10)))
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1 and torch.isfinite(out).all()


def test_strength_grows_with_magnitude():
    image = torch.rand(200, 3, 16, 16)
    changed = [
        (apply_view(image, draw_view(numbers(range(200)), 16, 0.0, RandAugmentConfig(n=2, m=m))) - image).abs().mean()
        for m in (1, 9)
    ]
    assert changed[0] < changed[1]


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_photometric_operations_match_pillow(name):
    from PIL import Image, ImageEnhance, ImageOps

    pixels = np.random.default_rng(0).integers(20, 230, (192, 192, 3), dtype=np.uint8)
    image, magnitude = Image.fromarray(pixels), 0.5
    factor = 1 + 0.9 * magnitude
    gray = np.asarray(image, float).mean()
    expected = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: pixels.mean(2, keepdims=True) + factor * (pixels - pixels.mean(2, keepdims=True)),
        "contrast": lambda: gray + factor * (pixels - gray),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 6),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "solarize": lambda: ImageOps.solarize(image, 128),
    }[name]()
    ours = PHOTOMETRIC[name](
        torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None], torch.full((1, 1), magnitude)
    )
    ours = ours.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    theirs = np.clip(np.asarray(expected, float), 0, 255)
    inner = (slice(1, -1), slice(1, -1)) if name == "sharpness" else (slice(None), slice(None))
    assert np.abs(ours - theirs)[inner].max() <= 3.0


def test_drawer_gives_views_and_weak_differs_from_strong():
    views = {View.LABELED_WEAK, View.UNLABELED_WEAK, View.UNLABELED_STRONG}
    drawer = ViewDrawer(AugmentConfig(), seed=0, size=32)
    rows, epochs = np.arange(50), np.zeros(50, np.int64)
    unlabeled = drawer(views, epochs, rows)
    assert set(unlabeled) == views
    assert not torch.equal(unlabeled[View.UNLABELED_WEAK].shift, unlabeled[View.UNLABELED_STRONG].shift)
    assert not torch.equal(unlabeled[View.UNLABELED_WEAK].shift, unlabeled[View.LABELED_WEAK].shift)


def test_metadata_dropout_blanks_place_and_date_apart():
    metadata = torch.rand(400, 4)
    rows, epochs = np.arange(400), np.zeros(400, np.int64)
    dropped = ViewDrawer(AugmentConfig(metadata_dropout=0.3), 0, 32).drop_metadata(
        metadata, Stream.LABELED, epochs, rows
    )
    blank = dropped.isnan()
    assert torch.equal(blank[:, 0], blank[:, 1]) and torch.equal(blank[:, 2], blank[:, 3])
    assert 0.2 < blank[:, 0].float().mean() < 0.4 and not torch.equal(blank[:, 0], blank[:, 2])
    kept = ViewDrawer(AugmentConfig(), 0, 32).drop_metadata(metadata, Stream.LABELED, epochs, rows)
    assert torch.equal(kept, metadata)


def test_pixels_resize_order_and_scale():
    layout = {"b10": ("B04", "B03"), "b20": ("B05",)}
    pixels = PixelScaler(
        layout, ("B05", "B04", "B03"), 8, mean=np.float32([4, 2, 2]), std=np.ones(3, np.float32), scale="sigmas"
    )
    arrays = {"b10": torch.full((2, 2, 8, 8), 2), "b20": torch.full((2, 1, 4, 4), 5)}
    unit = pixels.unit(arrays)
    assert unit.shape == (2, 3, 8, 8)
    torch.testing.assert_close(unit[0, :, 0, 0], torch.tensor([0.75, 0.5, 0.5]))
    torch.testing.assert_close(pixels(arrays)[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    rgb = PixelScaler(
        {"rgb": ("R",)}, ("R",), 4, mean=np.zeros(1, np.float32), std=np.ones(1, np.float32), scale="bytes"
    )
    torch.testing.assert_close(rgb({"rgb": torch.full((1, 1, 8, 8), 255)}), torch.ones(1, 1, 4, 4))


def test_corners_scale_each_group_before_they_resize():
    layout, mean = {"b10": ("B04", "B03"), "b20": ("B05",)}, np.float32([4, 2, 3])
    arrays = {"b10": torch.rand(2, 2, 8, 8) * 6, "b20": torch.rand(2, 1, 4, 4) * 6}
    bands, std = ("B05", "B04", "B03"), np.float32([1, 0.5, 2])
    unit = PixelScaler(layout, bands, 8, mean=mean, std=std, scale="sigmas", resize="corners").unit(arrays)
    for number, (group, channel) in enumerate((("b20", 0), ("b10", 0), ("b10", 1))):
        scaled = ((arrays[group][:, [channel]] - mean[number] + 2 * std[number]) / (4 * std[number])).clamp(0, 1)
        whole = torch.nn.functional.interpolate(scaled, (8, 8), mode="bilinear", align_corners=True)
        torch.testing.assert_close(unit[:, [number]], whole)
