"""Measure strong views of each style against kornia and against FixMatch's pipeline of Pillow, on one CPU thread.

    python experiments/benchmarks/views.py --json views.json

Needs `pip install kornia==0.9.0`. Each repeat times all subjects one after another, so that a busy machine slows all of
them. Ratios are medians over repeats. A subject makes one batch:

- each style: random numbers, crop, flips, operations (with the gray square for `fixmatch`), and normalization;
- `kornia each`: kornia's RandAugment alone, called for one image after another, as the public code does;
- `kornia batch`: the same, called once for the batch, so that all images share their operations;
- `pillow`: crop, flips, FixMatch's operations and gray square in Pillow, conversion and normalization, image by image.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, get_args

import kornia
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision import transforms

from stssl.base.randomness import RandomStream, uniforms
from stssl.data.augment import RandAugmentConfig, Style, apply_view, draw_view, numbers_needed
from stssl.data.strong_fixmatch import RANGES

CUTOUT = 0.5
AFFINE = Image.Transform.AFFINE

OPERATIONS: dict[str, Callable[[Any, float], Any]] = {
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Identity": lambda image, v: image,
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "Rotate": lambda image, v: image.rotate(v),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "ShearX": lambda image, v: image.transform(image.size, AFFINE, (1, v, 0, 0, 1, 0)),
    "ShearY": lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, v, 1, 0)),
    "Solarize": lambda image, v: ImageOps.solarize(image, math.ceil(v)),
    "TranslateX": lambda image, v: image.transform(image.size, AFFINE, (1, 0, v * image.size[0], 0, 1, 0)),
    "TranslateY": lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, v * image.size[1])),
}


def styled(style: Style, image: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a function that makes one batch of views of this package, with new random numbers each time."""
    strong, cutout = RandAugmentConfig(style=style), CUTOUT if style == "fixmatch" else 0
    size, steps = image.shape[-1], count()

    def make() -> torch.Tensor:
        key = (0, RandomStream.PROBE, next(steps), np.arange(len(image)))
        draw = draw_view(uniforms(key, numbers_needed(strong, cutout)), size, 0.125, strong, cutout)
        return (apply_view(image, draw) - 0.5).div_(0.5)

    return make


def by_pillow(pixels: np.ndarray[Any, Any]) -> Callable[[], torch.Tensor]:
    """Return a function that makes one batch of FixMatch's views with Pillow."""
    images, size = [Image.fromarray(one) for one in pixels], pixels.shape[1]
    padding = int(size * 0.125)
    weak = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=padding, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
        ]
    )
    ready = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def one(image: Any) -> torch.Tensor:
        image = weak(image)
        for name in random.choices(list(OPERATIONS), k=3):
            low, high = RANGES[name]
            image = OPERATIONS[name](image, low + (high - low) * random.random())
        side, x, y = CUTOUT * random.random() * size, size * random.random(), size * random.random()
        left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
        image = image.copy()
        box = (left, top, min(size, left + side), min(size, top + side))
        ImageDraw.Draw(image).rectangle(box, (125, 123, 114))
        found: torch.Tensor = ready(image)
        return found

    return lambda: torch.stack([one(image) for image in images])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=120, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Smooth fields: on pure noise, an image of the sensor would be a rare case for histograms.
    coarse = torch.rand(options.batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (options.size, options.size), mode="bicubic").clamp_(0, 1)
    pixels = (image * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
    kornias = kornia.augmentation.auto.RandAugment(3, 5)
    subjects: dict[str, Callable[[], object]] = {style: styled(style, image) for style in get_args(Style)}
    rivals: dict[str, Callable[[], object]] = {
        "kornia each": lambda: [kornias(one[None]) for one in image],
        "kornia batch": lambda: kornias(image),
        "pillow": by_pillow(pixels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*subjects, *rivals]}
    for repeat in range(options.repeats + 1):
        for name, make in (subjects | rivals).items():
            start = time.perf_counter()
            make()
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    found: dict[str, dict[str, float]] = {}
    print(f"{'':<14}{'ms':>8}" + "".join(f"{'x ' + name:>16}" for name in rivals))
    for name, own in seconds.items():
        ratios = {
            rival: statistics.median(theirs / ours for theirs, ours in zip(seconds[rival], own, strict=True))
            for rival in rivals
        }
        found[name] = {"ms": 1e3 * statistics.median(own)} | ratios
        print(f"{name:<14}{found[name]['ms']:>8.1f}" + "".join(f"{ratio:>16.2f}" for ratio in ratios.values()))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        settings |= {"kornia": kornia.__version__, "torch": torch.__version__}
        options.json.write_text(json.dumps({"settings": settings, "views": found}, indent=1))


if __name__ == "__main__":
    main()
