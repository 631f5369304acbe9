"""The parts of pretraining: positives, clusters of places, views, queue and losses."""

import numpy as np
import pytest
import torch

from stssl.base.batch import MetadataColumn
from stssl.base.errors import DataError
from stssl.base.randomness import RandomStream, uniforms
from stssl.base.sphere import on_sphere
from stssl.contrastive.geography import cluster_places, nearest_cluster
from stssl.contrastive.moco import PretextConfig, Queue, info_nce, multilabel_cpc, similarities
from stssl.contrastive.positives import Positives
from stssl.contrastive.views import (
    PretrainViewsConfig,
    apply_pretrain_view,
    draw_pretrain_view,
    pretrain_numbers_needed,
)

PLACES = np.array([7, 7, 7, 3, 3, -1, -1, 9, 7, 3])
ROWS = np.array([0, 1, 2, 3, 4, 5, 6, 7])


def partners(seed=0, epochs=400):
    positives = Positives(ROWS, PLACES)
    drawn = [positives.draw(ROWS, np.full(len(ROWS), epoch), seed) for epoch in range(epochs)]
    return np.stack(drawn)


def test_partners_are_other_acquisitions_of_the_place_drawn_uniformly():
    drawn = partners()
    for column, row in enumerate(ROWS):
        others = [other for other in ROWS if other != row and PLACES[other] == PLACES[row] and PLACES[row] >= 0]
        found, counts = np.unique(drawn[:, column], return_counts=True)
        assert list(found) == (others or [row])
        assert counts.min() > 0.7 * len(drawn) / max(1, len(others))


def test_rows_outside_the_set_are_never_partners():
    assert not {8, 9} & set(partners().ravel())


def test_partners_follow_from_seed_and_epoch():
    assert np.array_equal(partners(3), partners(3)) and not np.array_equal(partners(3), partners(4))


def test_the_share_of_true_pairs():
    assert Positives(ROWS, PLACES).share(ROWS) == 5 / 8


def metadata(lat, lon):
    table = torch.full((len(lat), 4), torch.nan)
    table[:, MetadataColumn.LAT], table[:, MetadataColumn.LON] = torch.tensor(lat), torch.tensor(lon)
    return table


def test_the_date_line_is_no_seam():
    table = metadata([0.0, 0.0, 0.0, 0.0, 50.0, 50.2], [179.9, -179.9, 179.8, -179.8, 10.0, 10.2])
    centers = cluster_places(table, 2, seed=0)
    found = nearest_cluster(table, centers)
    assert len(set(found[:4].tolist())) == 1 and found[4] == found[5] != found[0]
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(2))
    flat = table[:, MetadataColumn.LON][:4]
    assert (flat.max() - flat.min()) > 300  # the control: as plain numbers these places are far apart


def test_places_keep_their_clusters_in_bf16():
    table = metadata(np.random.default_rng(0).uniform(36, 66, 400), np.random.default_rng(1).uniform(-9, 30, 400))
    centers = cluster_places(table, 40, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = (on_sphere(table) @ centers.T).argmax(1)
        with torch.autocast("cpu", enabled=False):
            exact = nearest_cluster(table, centers)
    assert torch.equal(exact, nearest_cluster(table, centers))
    assert (rounded != exact).float().mean() > 0.1  # the control: why the step looks places up in fp32


def test_missing_places_have_no_cluster_and_clusters_follow_from_the_seed():
    table = metadata([*np.linspace(40, 60, 50), np.nan], [*np.linspace(0, 20, 50), 3.0])
    centers = cluster_places(table, 5, seed=1)
    assert nearest_cluster(table, centers)[-1] == -1 and set(nearest_cluster(table, centers)[:-1].tolist()) == set(
        range(5)
    )
    assert torch.equal(centers, cluster_places(table, 5, seed=1))
    assert on_sphere(table)[-1].isnan().any()
    with pytest.raises(DataError, match=r"60 different places are needed, .* has 50"):
        cluster_places(table, 60, seed=1)


def test_the_queue_is_a_ring_of_the_newest_keys():
    queue, reference = Queue(7, 2), []
    for step in range(5):
        keys = torch.full((3, 2), float(step)) + torch.arange(3)[:, None] / 10
        queue.push(keys)
        reference += list(keys)
    held = {tuple(key.tolist()) for key in queue.keys}
    assert held == {tuple(key.tolist()) for key in reference[-7:]} and int(queue.pointer) == 15 % 7
    before = queue.keys.clone()
    queue.push(torch.full((3, 2), torch.nan), torch.tensor(True))
    assert torch.equal(queue.keys, before) and int(queue.pointer) == 18 % 7
    queue.pointer.fill_(15 % 7)
    queue.push(torch.arange(20.0)[:, None].expand(20, 2), torch.tensor(False))
    assert sorted(queue.keys[:, 0].tolist()) == list(range(13, 20)) and int(queue.pointer) == 35 % 7


def unit(count, width=6, seed=0):
    numbers = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(numbers, dim=1)


def test_info_nce_is_cross_entropy_with_the_key_first():
    logits = similarities(unit(4), unit(4, seed=1), unit(9, seed=2), 0.1)
    ours = info_nce(logits, torch.tensor(4.0))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))


def test_alpha_must_leave_weight_for_negatives():
    with pytest.raises(ValueError, match="below queue"):
        PretextConfig(queue=8, alpha_end=9.0)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_multilabel_cpc_against_a_slow_formula(alpha):
    logits = similarities(unit(4), unit(4, seed=1), unit(9, seed=2), 0.5).requires_grad_()
    ours = multilabel_cpc(logits, torch.tensor(4.0), alpha)
    (gradient,) = torch.autograd.grad(ours, logits)
    slow = logits.detach().double().requires_grad_()
    beta = (9 + 1 - alpha) / 9
    weights = torch.tensor([alpha] + [beta] * 9, dtype=torch.float64)
    probability = (slow.exp() * weights) / (slow.exp() * weights).sum()
    value = sum(0.25 * (torch.log(torch.tensor(0.25)) - probability[i, 0].log()) for i in range(4)) / alpha
    torch.testing.assert_close(ours.double(), value)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(value, slow)[0], atol=1e-6, rtol=1e-5)


def test_alpha_moves_linearly_or_geometrically():
    line, curve = (PretextConfig(alpha=8.0, alpha_end=2.0, alpha_schedule=kind) for kind in ("linear", "geometric"))
    assert (line.alpha_at(0), line.alpha_at(0.5), line.alpha_at(1)) == (8, 5, 2)
    assert (curve.alpha_at(0), curve.alpha_at(0.5), curve.alpha_at(1)) == (8, pytest.approx(4), 2)


def view(config, bands=3, epoch=0, size=16, image=None):
    rows = np.arange(6)
    draw = draw_pretrain_view(
        uniforms((0, RandomStream.QUERY_VIEW, np.full(6, epoch), rows), pretrain_numbers_needed(bands)), config, bands
    )
    image = torch.rand(6, bands, 24, 24, generator=torch.Generator().manual_seed(0)) if image is None else image
    return apply_pretrain_view(image, draw, size)


STILL = {"smallest_crop": 1.0, "aspect": 1.0, "jitter": 0.0, "gray": 0.0, "blur": 0.0}


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_views_have_the_size_and_range_and_follow_from_the_key(bands):
    config = PretrainViewsConfig()
    first = view(config, bands)
    assert first.shape == (6, bands, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, view(config, bands)) and not torch.equal(first, view(config, bands, epoch=1))


def test_a_still_view_is_the_image_or_its_mirror():
    image = torch.rand(6, 3, 24, 24)
    made = view(PretrainViewsConfig(**STILL), size=24, image=image)
    for own, before in zip(made, image, strict=True):
        same = [torch.allclose(own, other, atol=1e-5) for other in (before, before.flip(-1))]
        assert sum(same) == 1
    mirrored = [not torch.allclose(own, before, atol=1e-5) for own, before in zip(made, image, strict=True)]
    assert 0 < sum(mirrored) < 6


def test_grayscale_keeps_luminance_and_other_bands_are_never_mixed():
    gray = view(PretrainViewsConfig(**STILL | {"gray": 1.0}))
    torch.testing.assert_close(gray[:, 0], gray[:, 1], atol=1e-3, rtol=0)
    image = torch.rand(6, 4, 24, 24) * 0.4
    image[:, 1] = 0.3  # a constant band stays constant whatever happens to the others
    gain = view(PretrainViewsConfig(**STILL | {"jitter": 1.0}), bands=4, image=image)
    assert gain[:, 1].flatten(1).std(1).max() < 1e-5
    ratios = gain.mean((2, 3)) / image.mean((2, 3))
    assert ratios.std(1).min() > 1e-3  # each band has a gain of its own


def test_blur_smooths_and_a_crop_enlarges():
    image = torch.rand(6, 3, 24, 24)
    rough = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean()  # noqa: E731
    assert rough(view(PretrainViewsConfig(**STILL | {"blur": 1.0}), image=image, size=24)) < 0.9 * rough(image)
    assert rough(view(PretrainViewsConfig(**STILL | {"smallest_crop": 0.05}), image=image, size=24)) < rough(image)
