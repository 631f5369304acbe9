"""The patches of a step are read in one call, and its random choices go to a device in one buffer."""

import numpy as np
import pytest
import torch

from stssl.base.batch import Stream, View
from stssl.data.augment import AugmentConfig, RandAugmentConfig
from stssl.data.loader import Loader, StreamSource
from stssl.data.packing import packed, unpacked
from stssl.data.sampler import StreamSampler
from stssl.data.views import ViewDrawer
from stssl.store.cache import Streamed
from stssl.store.store import Store

VIEWS = frozenset({View.LABELED_WEAK, View.UNLABELED_WEAK, View.UNLABELED_STRONG})


def loader_of(store, readers, ranks=(0, 1)):
    """Return a loader, and a list of how many patches each call of its readers gets."""
    opened, calls = Store.open(store), []
    sources = {}
    for stream, size in ((Stream.LABELED, 4), (Stream.UNLABELED, 12)):
        reader = readers.setdefault(stream, Streamed(opened.reader(("B04", "B02"))))
        read = reader.read
        reader.read = lambda rows, read=read: (calls.append(len(rows)), read(rows))[1]
        sampler = StreamSampler(200, size, 0, stream.randomness)
        sources[stream] = StreamSource(reader, np.arange(200), torch.rand(200, 4), torch.zeros(200, 1), sampler)
    return Loader(sources, ViewDrawer(AugmentConfig(), 0, 64), lambda _: VIEWS, *ranks), calls


@pytest.mark.parametrize("ranks", [(0, 1), (2, 3)])
def test_a_step_is_read_in_one_call_with_the_same_result_as_in_two(store, ranks):
    shared = Streamed(Store.open(store).reader(("B04", "B02")))
    one, _ = loader_of(store, dict.fromkeys((Stream.LABELED, Stream.UNLABELED), shared), ranks)
    calls: list[int] = []
    read = Streamed.read
    shared.read = lambda rows: (calls.append(len(rows)), read(shared, rows))[1]
    two, apart = loader_of(store, {}, ranks)
    for mine, theirs in zip(one.batches(0, 5), two.batches(0, 5), strict=True):
        for stream in (Stream.LABELED, Stream.UNLABELED):
            assert torch.equal(mine[stream].rows, theirs[stream].rows)
            assert torch.equal(mine[stream].arrays["rgb"], theirs[stream].arrays["rgb"])
    labeled, unlabeled = (4, 12) if ranks == (0, 1) else (2, 4)
    assert calls == [labeled + unlabeled] * 5 and apart == [labeled, unlabeled] * 5  # the control: two readers


def test_tensors_come_out_of_one_buffer_as_they_went_in():
    draw = ViewDrawer(AugmentConfig(randaugment=RandAugmentConfig(n=4), cutout=0.5), 0, 32)
    draws = draw(VIEWS, np.zeros(9, np.int64), np.arange(9))
    tensors: list[torch.Tensor] = [torch.rand(3, dtype=torch.float64), torch.tensor(5), torch.zeros(0, 2)]
    for one in draws.values():
        one.each(lambda tensor: (tensors.append(tensor), tensor)[1])
    assert len(tensors) > 20 and len({tensor.dtype for tensor in tensors}) >= 4
    buffer = packed(tensors)
    found = unpacked(buffer, tensors)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, tensors, strict=True))
    assert all(one.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for one in found)
    moved = iter(found)
    again = draws[View.UNLABELED_STRONG]
    for _ in range(3):
        next(moved)
    copies = {view: one.each(lambda _: next(moved)) for view, one in draws.items()}
    assert torch.equal(copies[View.UNLABELED_STRONG].matrix, again.matrix) and next(moved, None) is None
