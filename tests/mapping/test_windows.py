"""Windows cover a scene, and blending equals a slow restatement in float64."""

import numpy as np
import pytest
import rasterio
from scenes import write_tif

import stssl
from stssl.mapping import blocks
from stssl.mapping.layers import reflected
from stssl.mapping.windows import WindowAxis


@pytest.mark.parametrize(("size", "window", "stride"), [(150, 64, 20), (64, 64, 64), (5, 64, 32), (200, 60, 1)])
def test_each_pixel_has_a_window_and_touching_names_all_of_them(size, window, stride):
    axis = WindowAxis(size, window, stride, (window - stride) // 2)
    every = axis.weights(np.arange(size), range(axis.count))
    assert (every.sum(1) > 0).all()
    for first, last in ((0, 1), (size - 1, size), (0, size), (size // 2, size // 2 + 3)):
        touched = np.flatnonzero((every[first:last] > 0).any(0))
        numbers = axis.touching(first, min(last, size))
        assert numbers.start <= touched.min() and numbers.stop > touched.max()
        assert len(numbers) <= len(touched) + 1


def test_reflection_repeats_the_edge_pixel_and_goes_on_beyond_the_scene():
    assert reflected(-3, 6, 4).tolist() == [2, 1, 0, 0, 1, 2, 3, 3, 2]
    wanted = np.pad(np.arange(3), 9, mode="symmetric")
    assert np.array_equal(reflected(-9, 12, 3), wanted)


def restated(student, values, stride, window):
    """Return probabilities [C, H, W]: for each window on its own, in float64, without blocks."""
    height, width = values.shape[1:]
    margin = (window - stride) // 2
    padded = np.pad(values, ((0, 0), (200, 200), (200, 200)), mode="symmetric")
    bell = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    total, weight = np.zeros((len(student.classes), *padded.shape[1:])), np.zeros(padded.shape[1:])
    for top in range(200 - margin, 200 - margin + height, stride):
        for left in range(200 - margin, 200 - margin + width, stride):
            area = slice(top, top + window), slice(left, left + window)
            found = student.predict(padded[None, :, *area])[0].astype(np.float64)
            total[:, *area] += found[:, None, None] * bell[:, None] * bell
            weight[area] += bell[:, None] * bell
    return (total / np.maximum(weight, 1e-300))[:, 200 : 200 + height, 200 : 200 + width]


@pytest.mark.parametrize("stride", [None, 20, 64])
def test_blending_equals_a_slow_restatement(plain, tmp_path, monkeypatch, stride):
    monkeypatch.setattr(blocks, "BLOCK_SIDE", 60)
    values = np.random.default_rng(0).integers(0, 255, (3, 150, 131), np.uint8)
    values[:, 40:, 60:] //= 3
    scene = write_tif(tmp_path / "s.tif", values, ("B04", "B03", "B02"))
    stssl.predict(plain.run, scene, tmp_path / "m.tif", stride=stride, probabilities="float32", progress=False)
    with rasterio.open(tmp_path / "m.tif") as file:
        found = file.read()[:10]
    wanted = restated(stssl.load_student(plain.run), values, stride or 32, 64)
    assert np.abs(found - wanted).max() < 1e-6
    assert np.abs(found - wanted[:, ::-1]).max() > 1e-3  # the control
