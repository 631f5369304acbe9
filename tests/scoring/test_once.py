"""On several ranks, scores are computed once; batches for BatchNorm and the search for neighbors are divided."""

import json
import math
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from torch import nn

from stssl.base.distributed import made_once
from stssl.base.errors import DataError, StoppedError
from stssl.base.labels import LabelSpace
from stssl.models.ema import reestimate_batchnorm
from stssl.scoring import metrics
from stssl.steps.votes import nearest_places
from stssl.training.checkpoints import UnusableError

BATCHES = [torch.randn(6, 3, generator=torch.Generator().manual_seed(number)) for number in range(5)]
PLACES = torch.rand(37, 4, generator=torch.Generator().manual_seed(0)) * 40
PLACES[5] = torch.nan


def estimated(batches):
    layer = nn.BatchNorm1d(3)
    reestimate_batchnorm(layer, lambda: (layer(batch) for batch in batches))
    return torch.cat([layer.running_mean, layer.running_var])


def scored(calls):
    """Score the same logits on each rank. Count in `calls` how often scores are really computed."""
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    space = LabelSpace(tuple("abcd"), multilabel=False)
    real = metrics.score
    metrics.score = lambda *given: (calls.append(1), real(*given))[1]
    try:
        return metrics.score_once(logits, torch.arange(40)[:, None] % 4, space, torch.device("cpu"))
    finally:
        metrics.score = real


def work(rank, folder):
    torch.set_num_threads(1)
    calls: list[int] = []
    found = {"scores": list(scored(calls)), "calls": len(calls)}
    found["values"] = made_once(lambda: [rank, math.nan, math.inf, 0.1, None, "é"], torch.device("cpu"))
    found["statistics"] = estimated(BATCHES[rank :: dist.get_world_size()]).tolist()
    found["fewer batches than ranks"] = estimated(BATCHES[rank:1]).tolist()
    found["near"] = [part.tolist() for part in nearest_places(PLACES, 3)]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_ranks_share_scores_and_batches(tmp_path):
    on_ranks(2, work, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("calls"), second.pop("calls")) == (1, 0)
    assert json.dumps(first) == json.dumps(second)
    assert (
        first["values"][0] == 0 and math.isnan(first["values"][1]) and first["values"][2:] == [math.inf, 0.1, None, "é"]
    )
    assert first["near"] == [part.tolist() for part in nearest_places(PLACES, 3)]  # the ranks divide the search
    alone: list[int] = []
    assert first["scores"] == json.loads(json.dumps(list(scored(alone)))) and alone == [1]
    torch.testing.assert_close(torch.tensor(first["statistics"]), estimated(BATCHES))
    torch.testing.assert_close(torch.tensor(first["fewer batches than ranks"]), estimated(BATCHES[:1]))
    halves = (estimated(BATCHES[0::2]) + estimated(BATCHES[1::2])) / 2  # control: ranks have 3 and 2 batches
    assert not torch.allclose(torch.tensor(first["statistics"]), halves)


def fail(error):
    raise error


def failing(rank, folder):
    """Let rank 0 raise different errors in `made_once`, and note what this rank raises. Then leave rank 1 alone."""
    found = []
    for error in (DataError("no labels é"), UnusableError("no file"), StoppedError("asked", 130), KeyError("x")):
        try:
            made_once(lambda error=error: fail(error), torch.device("cpu"))
        except Exception as raised:
            found.append((type(raised).__name__, str(raised), getattr(raised, "exit_code", None)))
    try:
        made_once(lambda: {1, 2}, torch.device("cpu"))  # not a plain value
    except (TypeError, RuntimeError) as raised:
        found.append((type(raised).__name__, str(raised), None))
    found.append(made_once(lambda: "after", torch.device("cpu")))  # the ranks still meet
    if rank:
        # Control: without a message from rank 0, this rank would wait until the time-out.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), dist.group.WORLD)
        with pytest.raises(RuntimeError, match=r"(?i)time"):
            made_once(lambda: "never", torch.device("cpu"))
        (folder / "waited").touch()
    else:
        end = time.monotonic() + 30
        while not (folder / "waited").exists():
            assert time.monotonic() < end, "rank 1 did not wait"
            time.sleep(0.05)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_an_error_of_rank_0_is_raised_on_all_ranks(tmp_path):
    on_ranks(2, failing, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    own = [["DataError", "no labels é", 2], ["UnusableError", "no file", 2], ["StoppedError", "asked", 130]]
    assert first[:3] == second[:3] == own and first[-1] == second[-1] == "after"
    assert first[3] == ["KeyError", "'x'", None] and second[3] == ["RuntimeError", "rank 0 failed: KeyError: 'x'", None]
    assert first[4][0] == "TypeError" and second[4][:2] == ["RuntimeError", f"rank 0 failed: TypeError: {first[4][1]}"]
