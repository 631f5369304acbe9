"""Neighbors' votes on pseudo-labels."""

import math

import pytest
import small
import torch
from small import MULTILABEL, SINGLELABEL, make_algorithm, make_batch, make_step, train

from stssl.algorithms import ALGORITHMS, Algorithm, LabelerOutputs
from stssl.algorithms.base import BaseAlgorithmConfig
from stssl.base.batch import IGNORED, Progress, Stream, View
from stssl.steps.gathering import Gathering
from stssl.steps.votes import PSEUDO, Votes, VotesConfig, nearest_places
from stssl.sweeps.domains import IDLE

LABELED = {"softmatch": {"target": "labeled"}}
SOFT = {"soft": True, "threshold": 0.0, "absent_below": None}
UNKNOWN = torch.full((900, 1), IGNORED)
CONFIG = VotesConfig(count=5, reach_km=3.0, weight=0.7)
spaces = pytest.mark.parametrize("space", [SINGLELABEL, MULTILABEL], ids=["single", "multi"])


def places(*pairs):
    return torch.tensor([[lat, lon, math.nan, math.nan] for lat, lon in pairs])


def kilometers(one, other):
    """The haversine formula, in float64."""
    (a, b), (c, d) = ([math.radians(float(x)) for x in place[:2]] for place in (one, other))
    h = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(h))


def test_the_nearest_are_those_of_the_haversine_formula():
    table = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([170.0, 360.0, 1, 1])
    table -= torch.tensor([85.0, 180.0, 0, 0])
    near, distance = nearest_places(table, 4)
    for own in range(len(table)):
        true = sorted((kilometers(table[own], table[other]), other) for other in range(len(table)) if other != own)[:4]
        assert near[own].tolist() == [other for _, other in true]
        torch.testing.assert_close(distance[own], torch.tensor([km for km, _ in true]), atol=0.01, rtol=1e-4)


def test_the_date_line_is_no_seam_and_one_place_may_be_many_patches():
    near, distance = nearest_places(places((0, 179.99), (0, -179.99), (0, 179.99), (0, 10)), 2)
    assert set(near[0].tolist()) == {1, 2} and distance[0].sort().values[0] == 0
    assert all(own not in near[own] for own in range(4))


def test_many_patches_of_one_place_are_not_their_own_neighbors():
    near, distance = nearest_places(places(*[(50, 8)] * 30), 5)
    assert near.shape == (30, 5) and all(own not in near[own] for own in range(30)) and (distance == 0).all()


@pytest.mark.parametrize("known", [0, 1, 2])
def test_patches_without_a_place_have_no_neighbors(known):
    table = places(*[(50, 8 + i) for i in range(known)], (math.nan, math.nan), (50, math.nan))
    near, distance = nearest_places(table, 3)
    assert near.shape == (known + 2, max(known - 1, 0))
    assert torch.isinf(distance[known:]).all() and (near[:known] < known).all()


def looked(logits, index):
    return LabelerOutputs({View.UNLABELED_WEAK: logits}, {}, index)


def filled(space, spoken=64):
    """64 patches, `spoken` of which the labeler has spoken of."""
    found = small.make_votes(space, CONFIG)
    generator = torch.Generator().manual_seed(0)
    logits = space.grouped(2 * torch.randn(64, len(space.classes), generator=generator))
    found.observe(looked(logits[:spoken], torch.arange(spoken)))
    return found, logits


@spaces
@pytest.mark.parametrize("spoken", [64, 20])
def test_votes_are_those_of_the_formula(space, spoken):
    found, logits = filled(space, spoken)
    silent = ~found.fixed[spoken:]
    assert (found.last_probabilities[spoken:][silent] == 0).all()
    prior = found.last_probabilities.double().sum(0)
    prior = prior / prior.sum(-1, keepdim=True)
    index = torch.tensor([3, 0, 40, 63])
    with_votes = found.with_votes(looked(logits[index], index)).labeler[View.UNLABELED_WEAK].softmax(-1)
    for row, own in enumerate(index.tolist()):
        for group in range(space.groups):
            votes = PSEUDO * prior[group]
            for other, share in zip(found.near[own].tolist(), found.share[own].double(), strict=True):
                votes = votes + share * found.last_probabilities[other, group].double()
            expected = logits[own, group].double().softmax(-1) * (votes / votes.sum() / prior[group]) ** 0.7
            torch.testing.assert_close(with_votes[row, group].double(), expected / expected.sum(), atol=1e-5, rtol=1e-5)


@spaces
def test_nobody_votes_for_itself_and_places_that_are_missing_change_nothing(space):
    found, logits = filled(space)
    near = found.near[1].tolist()
    before = found.with_votes(looked(logits[1:2], torch.tensor([1]))).labeler[View.UNLABELED_WEAK]
    votes = torch.einsum("k,kgw->gw", found.share[1], found.last_probabilities[found.near[1]].float())
    found.last_probabilities[1] = found.last_probabilities[1].flip(-1)
    torch.testing.assert_close(
        torch.einsum("k,kgw->gw", found.share[1], found.last_probabilities[found.near[1]].float()), votes
    )
    found.last_probabilities[near] = found.last_probabilities[near].flip(-1)
    after = found.with_votes(looked(logits[1:2], torch.tensor([1]))).labeler[View.UNLABELED_WEAK]
    assert (before.softmax(-1) - after.softmax(-1)).abs().max() > 0.01
    nowhere = torch.arange(0, 64, 9)
    alone = found.with_votes(looked(logits[nowhere], nowhere)).labeler[View.UNLABELED_WEAK]
    torch.testing.assert_close(alone.softmax(-1), logits[nowhere].softmax(-1))


def test_a_way_that_nobody_believes_in_gains_nothing_without_neighbors():
    found = Votes(CONFIG, places(*[(50, 8 + i / 100) for i in range(63)], (math.nan, 8)), UNKNOWN[:64], 4)
    logits = torch.tensor([[[9.0, 4.0, 0.0, -30.0]]]).expand(64, -1, -1)
    found.observe(looked(logits, torch.arange(64)))
    alone = found.with_votes(looked(logits[:1], torch.tensor([63]))).labeler[View.UNLABELED_WEAK]
    torch.testing.assert_close(alone.log_softmax(-1), logits[:1].log_softmax(-1))


def test_a_step_gone_wrong_is_not_remembered():
    found = Votes(CONFIG, places(*[(50, 8 + i / 100) for i in range(8)]), UNKNOWN[:8], 4)
    logits = torch.randn(8, 1, 4)
    found.observe(looked(logits, torch.arange(8)))
    before = found.last_probabilities.clone()
    found.observe(Gathering()(looked(torch.full((8, 1, 4), torch.nan), torch.arange(8))))
    assert torch.equal(found.last_probabilities, before)
    found.observe(looked(-logits, torch.arange(8)))  # the control
    assert not torch.equal(found.last_probabilities, before)


def test_autocast_changes_no_vote():
    found, logits = filled(SINGLELABEL)
    outputs = looked(logits, torch.arange(64))
    with torch.autocast("cpu", torch.bfloat16):
        cast = found.with_votes(outputs).labeler[View.UNLABELED_WEAK]
    assert torch.equal(cast, found.with_votes(outputs).labeler[View.UNLABELED_WEAK])


@spaces
def test_labeled_patches_vote_with_their_label(space):
    found, _ = filled(space)
    start = small.make_votes(space, CONFIG).last_probabilities
    fixed = found.fixed
    assert fixed.any() and not fixed.all()
    assert (
        torch.equal(found.last_probabilities[fixed], start[fixed])
        and (found.last_probabilities[fixed].amax(-1) == 1).all()
    )
    assert (found.last_probabilities[~fixed].amax(-1) < 1).any()


def test_of_a_patch_that_stands_twice_in_a_batch_the_last_counts():
    found = Votes(CONFIG, places(*[(50, 8 + i / 100) for i in range(8)]), UNKNOWN[:8], 4)
    logits = torch.randn(4, 1, 4)
    found.observe(looked(logits, torch.tensor([5, 2, 5, 0])))
    expected = logits[[2, 1, 3]].softmax(-1)
    torch.testing.assert_close(found.last_probabilities[[5, 2, 0]].float(), expected, atol=5e-4, rtol=1e-3)
    assert found.last_probabilities[[1, 3, 4, 6, 7]].sum() == 0


def test_the_kept_sum_is_that_of_all_patches_and_older_checkpoints_get_it():
    found, generator = filled(MULTILABEL)[0], torch.Generator().manual_seed(1)
    for _ in range(20):
        index = torch.randint(64, (40,), generator=generator)  # some patches twice or more
        found.observe(
            looked(MULTILABEL.grouped(torch.randn(40, 5, generator=generator)[:, : MULTILABEL.groups]), index)
        )
        torch.testing.assert_close(found.total, found.last_probabilities.double().sum(0), atol=1e-9, rtol=1e-9)
    state, fresh = found.state_dict(), small.make_votes(MULTILABEL, CONFIG)
    old = {"last_probabilities": state["last_probabilities"].float()}
    assert not torch.allclose(fresh.total, found.total)  # control
    fresh.load_state_dict(old)
    torch.testing.assert_close(fresh.total, found.total, atol=1e-9, rtol=1e-9)
    assert state["last_probabilities"].dtype == torch.float16


@pytest.mark.parametrize("shuffled", [False, True], ids=["", "control: shuffled places"])
def test_neighbors_correct_mistakes_where_land_cover_is_patchy(shuffled):
    generator = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij")
    truth = ((row // 10) + (column // 10)).flatten() % 4
    table = torch.stack([50 + row.flatten() / 100, 8 + column.flatten() / 60, row.flatten() * torch.nan], 1)
    table = torch.cat([table, table[:, 2:]], 1)
    if shuffled:
        table = table[torch.randperm(900, generator=generator)]
    logits = 1.2 * torch.randn(900, 4, generator=generator) + 1.5 * torch.nn.functional.one_hot(truth, 4)
    found = Votes(VotesConfig(count=8), table, UNKNOWN, 4)
    outputs = looked(logits[:, None], torch.arange(900))
    found.observe(outputs)
    with_votes = found.with_votes(outputs).labeler[View.UNLABELED_WEAK]
    before, after = ((value.argmax(-1) == truth).float().mean() for value in (logits, with_votes[:, 0]))
    assert (after > before + 0.1) != shuffled, (before, after)


def batches(space, count, first=0):
    return [make_batch(space, seed=seed) for seed in range(first, first + count)]


@spaces
def test_a_reloaded_step_continues_the_same_and_without_its_memory_otherwise(space):
    first = make_step("fixmatch", space, votes=CONFIG, **SOFT)
    train(first, batches(space, 4))
    state, losses = first.state_dict(), []
    for forgets in (False, True):
        again = make_step("fixmatch", space, seed=1, votes=CONFIG, **SOFT)
        again.load_state_dict(
            {k: v for k, v in state.items() if not (forgets and "last_probabilities" in k)}, strict=False
        )
        losses.append(train(again, batches(space, 2, 7), start=4))
    expected = train(first, batches(space, 2, 7), start=4)
    assert losses[0] == expected and losses[1] != expected


class Recording(Algorithm):
    """Keeps what it is shown."""

    stateful = True

    def observe(self, outputs, progress):
        self.observed = outputs

    def terms(self, outputs, progress):
        self.asked = outputs
        return []


@pytest.mark.parametrize("votes", [CONFIG, None], ids=["", "control: without votes"])
def test_state_and_labels_both_come_from_informed_logits(votes):
    algorithm = Recording(BaseAlgorithmConfig(name="recording"), MULTILABEL, None)
    step = make_step("", MULTILABEL, algorithm=algorithm, votes=votes)
    batch = make_batch(MULTILABEL)
    step(batch, Progress(0, 10))
    observed, asked = algorithm.observed.labeler, algorithm.asked.labeler
    assert torch.equal(observed[View.UNLABELED_WEAK], asked[View.UNLABELED_WEAK])
    network = step.networks["teacher"].eval()
    last_probabilities = network(batch.images[View.UNLABELED_WEAK], batch.metadata[Stream.UNLABELED]).logits.detach()
    alone = looked(MULTILABEL.grouped(last_probabilities), batch.index)
    expected = step.votes.with_votes(alone) if votes else alone
    torch.testing.assert_close(asked[View.UNLABELED_WEAK], expected.labeler[View.UNLABELED_WEAK])
    assert votes is None or not torch.allclose(asked[View.UNLABELED_WEAK], alone.labeler[View.UNLABELED_WEAK])


@spaces
@pytest.mark.parametrize("name", ["fixmatch", "flexmatch", "freematch"])
def test_micro_batches_make_no_difference_and_votes_do(name, space):
    batch, progress = make_batch(space, labeled=6, unlabeled=12, seed=5), Progress(2, 10)
    losses = []
    for votes, parts in ((CONFIG, 1), (CONFIG, 3), (None, 1)):
        step = make_step(name, space, votes=votes)
        train(step, batches(space, 2))
        plans = step.plan(batch, progress, parts)
        blocks = zip(batch.split(parts), plans, strict=True)
        losses.append(float(sum(step(block, progress, plan).loss.detach() for block, plan in blocks)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)


def test_a_search_knows_which_algorithms_take_no_votes():
    plain = {name: make_algorithm(name, MULTILABEL, **LABELED.get(name, {})) for name in ALGORITHMS}
    ((key, names),) = IDLE["votes"]
    assert key == "algorithm.name" and set(names) == {name for name in plain if not plain[name].takes_votes}


@pytest.mark.parametrize(("key", "value"), [("count", 0), ("reach_km", 0.0), ("weight", -1.0)])
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        VotesConfig(**{key: value})


def test_before_anything_was_said_votes_are_finite():
    table = places(*[(50, 8 + i / 100) for i in range(8)])
    found = Votes(CONFIG, table, UNKNOWN[:8], 4)
    fresh = found.with_votes(looked(torch.randn(2, 1, 4), torch.tensor([0, 1])))
    assert torch.isfinite(fresh.labeler[View.UNLABELED_WEAK]).all()
