"""Strong views of the styles `kornia` and `fixmatch` against what kornia and Pillow give (files in `vectors/`).

`randaugment_kornia.npz` holds kornia's results for two images: a patch of BigEarthNet and a gradient.
`randaugment_fixmatch.npz` holds Pillow's for four images. `<operation>/magnitude` is what kornia or Pillow calls it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from stssl.data import strong_fixmatch, strong_kornia
from stssl.data.augment import RandAugmentConfig, apply_view, draw_view
from stssl.data.cutout import cutout_boxes, fill_boxes
from stssl.data.operations import apply_rounds
from stssl.data.resizing import resize_images

VECTORS = Path(__file__).with_name("vectors")
VERSIONS = {"kornia-0.7": "k073", "kornia": "k090"}
JUMPS = ("equalize", "posterize", "solarize", "solarize_add")


@pytest.fixture(scope="module")
def kornia():
    return dict(np.load(VECTORS / "randaugment_kornia.npz"))


@pytest.fixture(scope="module")
def fixmatch():
    return dict(np.load(VECTORS / "randaugment_fixmatch.npz"))


def by_kornia(images, choices, amounts, thresholds, version):
    amounts, thresholds = np.nan_to_num(amounts), np.nan_to_num(thresholds).astype(np.float32)
    rounds = strong_kornia.kornia_rounds(choices, amounts, thresholds, images.shape[-1])
    return apply_rounds(torch.from_numpy(images.copy()), rounds, strong_kornia.KORNIA[version]).numpy()


def difference(kornia, name, version):
    """Greatest difference of one operation, over all images and magnitudes of the file."""
    place, images = f"{VERSIONS[version]}/{name}", kornia["images"]
    magnitudes = kornia[f"{place}/magnitude"]
    thresholds = kornia.get(f"{place}/threshold", np.zeros_like(magnitudes))
    every = (np.repeat(magnitudes, len(images))[:, None], np.repeat(thresholds, len(images))[:, None])
    choices = np.full_like(every[0], strong_kornia.KORNIA_NAMES.index(name), np.int64)
    out = by_kornia(np.tile(images, (len(magnitudes), 1, 1, 1)), choices, *every, version)
    return np.abs(out - kornia[f"{place}/out"].reshape(out.shape)).max()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", strong_kornia.KORNIA_NAMES)
def test_each_operation_is_kornias(kornia, name, version):
    tolerance = 1e-4 if name in strong_kornia.SIGNED else 1e-5 if name in ("color", "sharpness") else 1e-6
    assert difference(kornia, name, version) <= tolerance


def test_the_versions_of_kornia_differ(kornia):
    """Control of the test above."""
    swapped = kornia | {key.replace("k073", "k090"): value for key, value in kornia.items() if "k073" in key}
    assert difference(kornia, "equalize", "kornia") == 0
    assert difference(swapped, "equalize", "kornia") > 3 / 255


@pytest.mark.parametrize("version", VERSIONS)
def test_magnitudes_are_kornias(kornia, version):
    place = VERSIONS[version]
    assert tuple(kornia[f"{place}/names"]) == strong_kornia.KORNIA_NAMES
    for name in strong_kornia.KORNIA_NAMES:
        for m, magnitude in zip(kornia[f"{place}/{name}/m"], kornia[f"{place}/{name}/magnitude"], strict=True):
            if m > 0:
                assert strong_kornia.amount_of(name, int(m), 32, version) == pytest.approx(abs(magnitude), rel=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_draws_are_kornias(kornia, version):
    part = f"{VERSIONS[version]}/sequence/"
    drawn = kornia[part + "magnitude_threshold"]
    images, choices = kornia["images"][kornia[part + "image"]], kornia[part + "op"]
    expected = kornia[part + "out"]

    def share(order):
        out = by_kornia(images, choices[:, order], drawn[:, order, 0], drawn[:, order, 1], version)
        return (np.abs(out - expected) > 1e-3).mean((1, 2, 3))

    assert len(images) >= 3
    # After an interpolation, a value may fall on the other side of a jump of equalize, posterize or solarize.
    assert share([0, 1, 2]).max() <= 0.03
    assert share([2, 1, 0]).max() > 0.1, "control: another order of the operations"


def test_strong_views_draw_from_the_operations_above(kornia):
    """Choices, sign and threshold of a view come from its random numbers. One view is made by hand."""
    image = kornia["images"][:1]
    # Crop 0, no flips; then kind, sign and threshold of each operation. The 15 operations are drawn without repeats.
    numbers = np.float32([[0.5, 0.5, 0.9, 0.9, 3.5 / 15, 0.4, 0, 6.5 / 14, 0, 0.25, 0.5 / 13, 0.7, 0]])
    draw = draw_view(numbers, 32, 0.125, RandAugmentConfig(style="kornia", n=3, m=5))
    # Fisher-Yates: 3 (rotate) moves to place 0. Of the places 1.., the number 6 is color. Of 2.., 0 is invert.
    names = [strong_kornia.KORNIA_NAMES.index(name) for name in ("rotate", "color", "invert")]
    share = 5 / 30
    expected = by_kornia(
        image, np.array([names]), np.array([[-30 * share, 0.1 + 1.8 * share, 0]]), numbers[:, 4:7], "kornia"
    )
    torch.testing.assert_close(apply_view(torch.from_numpy(image), draw).numpy(), expected, atol=1e-6, rtol=0)


def by_pillow(images, choices, magnitudes):
    image = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    rounds = strong_fixmatch.fixmatch_rounds(choices, np.nan_to_num(magnitudes), images.shape[1])
    return apply_rounds(image, rounds, strong_fixmatch.FIXMATCH)


@pytest.mark.parametrize("name", strong_fixmatch.FIXMATCH_NAMES)
def test_each_operation_is_pillows_to_the_bit(fixmatch, name):
    magnitudes, images = fixmatch[f"{name}/magnitude"], fixmatch["images32"]
    every = np.repeat(magnitudes, len(images))[:, None]
    choices = np.full_like(every, strong_fixmatch.FIXMATCH_NAMES.index(name), np.int64)
    out = by_pillow(np.tile(images, (len(magnitudes), 1, 1, 1)), choices, every).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(out, fixmatch[f"{name}/out"].reshape(out.shape))
    assert strong_fixmatch.RANGES[name] == (fixmatch["low"][choices[0, 0]], fixmatch["high"][choices[0, 0]])


def test_whole_draws_with_cutout_are_pillows_to_the_bit(fixmatch):
    images = fixmatch["images32"]
    for number, box in enumerate(fixmatch["Cutout/share_x_y"]):
        found = fill_boxes(
            torch.from_numpy(images).permute(0, 3, 1, 2).float(), cutout_boxes(np.tile(box, (4, 1)), 32), 255
        )
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), fixmatch["Cutout/out"][number])
    part = {name: fixmatch[f"sequence/{name}"] for name in ("op", "magnitude", "cutout_share_x_y", "image", "out")}
    views = by_pillow(images[part["image"]], part["op"], part["magnitude"])
    views = fill_boxes(views.float(), cutout_boxes(part["cutout_share_x_y"], 32), 255).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(views, part["out"])
    other = by_pillow(images[part["image"]], part["op"][:, ::-1], part["magnitude"][:, ::-1])
    assert (other.permute(0, 2, 3, 1).numpy() != part["out"]).mean() > 0.1, "control: another order, no squares"


def test_operations_of_other_sizes_and_magnitudes_are_pillows():
    from PIL import Image, ImageEnhance, ImageOps

    random = np.random.default_rng(0)
    for size in (17, 120):
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8) // 3 + 40
        image = Image.fromarray(pixels)
        for v in (0.11, 0.5, 0.93):
            turn, slide = 60 * v - 30, 0.6 * v - 0.3
            affine = Image.Transform.AFFINE
            expected = {
                "AutoContrast": ImageOps.autocontrast(image),
                "Brightness": ImageEnhance.Brightness(image).enhance(v),
                "Color": ImageEnhance.Color(image).enhance(v),
                "Contrast": ImageEnhance.Contrast(image).enhance(v),
                "Equalize": ImageOps.equalize(image),
                "Posterize": ImageOps.posterize(image, 4 + int(4 * v)),
                "Rotate": image.rotate(turn),
                "Sharpness": ImageEnhance.Sharpness(image).enhance(v),
                "ShearX": image.transform(image.size, affine, (1, slide, 0, 0, 1, 0)),
                "ShearY": image.transform(image.size, affine, (1, 0, 0, slide, 1, 0)),
                "Solarize": ImageOps.solarize(image, 256 * v),
                "TranslateX": image.transform(image.size, affine, (1, 0, slide * size, 0, 1, 0)),
                "TranslateY": image.transform(image.size, affine, (1, 0, 0, 0, 1, slide * size)),
            }
            for name, theirs in expected.items():
                low, high = strong_fixmatch.RANGES[name]
                choice = np.array([[strong_fixmatch.FIXMATCH_NAMES.index(name)]])
                ours = by_pillow(pixels[None], choice, np.array([[low + (high - low) * v]]))
                if name in ("Brightness", "Color", "Contrast", "Sharpness"):
                    ours = by_pillow(pixels[None], choice, np.array([[v]]))
                assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(theirs)), (name, size, v)


@pytest.mark.parametrize("style", ["kornia-0.7", "kornia", "fixmatch", "stssl"])
@pytest.mark.parametrize(("bands", "size"), [(1, 2), (12, 15), (4, 64)])
def test_all_styles_take_any_bands_and_size(style, bands, size):
    numbers = np.random.default_rng(1).random((50, 4 + 3 * 15 + 3), np.float32)
    image = torch.rand(50, bands, size, size)
    for n, m in ((0, 5), (15, 10), (4, 0)):
        view = apply_view(image, draw_view(numbers, size, 0.125, RandAugmentConfig(style=style, n=n, m=m), 0.5))
        assert view.shape == image.shape and torch.isfinite(view).all() and view.min() >= 0 and view.max() <= 1
        again = draw_view(numbers[7:9], size, 0.125, RandAugmentConfig(style=style, n=n, m=m), 0.5)
        torch.testing.assert_close(apply_view(image[7:9], again), view[7:9], atol=1e-6, rtol=0)


def test_resizing_as_the_papers_runs():
    from PIL import Image

    pixels = np.load(VECTORS / "randaugment_fixmatch.npz")
    images = torch.from_numpy(pixels["images64"]).permute(0, 3, 1, 2)
    assert np.array_equal(resize_images(images, 32, "pillow").permute(0, 2, 3, 1).numpy(), pixels["images32"])
    assert (resize_images(images, 32, "centers") - resize_images(images, 32, "pillow")).abs().max() > 0.4
    noise = np.random.default_rng(0).integers(0, 256, (33, 33), dtype=np.uint8)
    for size in (1, 7, 32, 100):
        theirs = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR))
        assert np.array_equal(resize_images(torch.from_numpy(noise)[None, None], size, "pillow")[0, 0].numpy(), theirs)
    line = torch.arange(120.0).expand(1, 1, 120, 120)
    torch.testing.assert_close(resize_images(line, 128, "corners")[0, 0, 5], torch.arange(128) * (119 / 127))
