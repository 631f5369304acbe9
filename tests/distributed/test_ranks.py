"""Several processes do what one does: equal state on all, and the same losses and gradients as one on all rows."""

import pytest
import rank_work
import small
import torch

WORLDS = (2, 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {world: rank_work.spawn(world, folder) for world in WORLDS}


@pytest.fixture(scope="module")
def alone():
    """What one process does with all rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {case: rank_work.replay(*small.CASES[number], 0, 1) for number, case in enumerate(small.IDS)}
    for case, (name, space, options) in rank_work.MORE.items():
        results[case] = rank_work.replay(name, space, 0, 1, **(options | {"parts": 1}))
    torch.set_num_threads(before)
    return results


def differing(one, other):
    return [key for key, value in one.items() if not torch.equal(value, other[key])]


@pytest.mark.parametrize("case", [*small.IDS, *rank_work.MORE])
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_hold_equal_parameters_and_buffers(found, world, case):
    first, *others = (result[case]["state"] for result in found[world])
    assert all(differing(first, other) == [] for other in others)


@pytest.mark.parametrize(
    ("case", "buffer"), [("micro", "algorithm.marginal.value"), ("votes", "votes.last_probabilities")]
)
@pytest.mark.parametrize("world", WORLDS)
def test_control_without_the_gather_buffers_differ(found, world, case, buffer):
    first, *others = (result[f"{case}, no gather"]["state"] for result in found[world])
    assert all(buffer in differing(first, other) for other in others)


@pytest.mark.parametrize("case", [*small.IDS, *rank_work.MORE])
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_do_what_one_process_does(found, alone, world, case):
    for number in range(rank_work.STEPS):
        logs = [result[case]["losses"][number] for result in found[world]]
        mean = {key: sum(log[key] for log in logs) / world for key in logs[0]}
        torch.testing.assert_close(mean, alone[case]["losses"][number], atol=1e-5, rtol=1e-5)
        gradients = found[world][0][case]["gradients"][number]
        torch.testing.assert_close(gradients, alone[case]["gradients"][number], atol=1e-5, rtol=1e-4)


def test_control_a_mean_of_rank_losses_is_another_loss(alone):
    """One process on each third of the rows: what averaging would give without global denominators."""
    step = rank_work.make("fixmatch", small.MULTILABEL)
    batch, progress = rank_work.global_batch(small.MULTILABEL, 0), rank_work.Progress(0, rank_work.STEPS)
    thirds = [step(small.rows_of_batch(batch, rank, 3), progress).loss for rank in range(3)]
    assert abs(torch.stack(thirds).mean() - alone["fixmatch-multi"]["losses"][0]["loss"]) > 1e-4
