"""Test exact quantiles over the newest rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stssl.algorithms.ring import Ring, order_statistic


@pytest.mark.parametrize("kind", ["uniform", "ties", "extremes"])
def test_order_statistics_are_those_of_a_sort(kind):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(6, 301, generator=generator)
    if kind == "ties":
        values = (values * 5).round() / 5
    if kind == "extremes":
        values = torch.where(values < 0.3, 0.0, torch.where(values > 0.7, 1.0, values**40))
    for rank in (0, 1, 150, 299, 300):
        expected = values.sort(1).values[:, rank]
        assert torch.equal(order_statistic(values, torch.full((6,), rank)), expected)


def test_each_row_has_its_own_rank():
    values = torch.rand(4, 50)
    ranks = torch.tensor([0, 10, 49, 25])
    assert torch.equal(order_statistic(values, ranks), values.sort(1).values.gather(1, ranks[:, None])[:, 0])


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 7), pushes=st.lists(st.integers(1, 12), min_size=1, max_size=6), share=st.floats(0, 1))
def test_a_ring_is_the_end_of_all_rows(size, pushes, share):
    """Also when a push is larger than the ring, or not the whole ring is filled."""
    ring, rows = Ring(2, size), torch.empty(0, 2)
    for number, count in enumerate(pushes):
        new = torch.rand(count, 2, generator=torch.Generator().manual_seed(number))
        ring.push(new)
        rows = torch.cat([rows, new])[-size:]
        n = len(rows)
        rank = min(max(int(n * share), 0), n - 1)
        assert ring.filled == n
        assert torch.equal(ring.quantile(torch.full((2,), share, dtype=torch.float64)), rows.sort(0).values[rank])


def test_a_state_dict_keeps_how_many_rows_there_are():
    ring, other = Ring(3, 5), Ring(3, 5)
    ring.push(torch.rand(3, 3))
    other.load_state_dict(ring.state_dict())
    more = torch.rand(4, 3)
    ring.push(more)
    other.push(more)
    assert other.pushed == 7 and torch.equal(ring.values, other.values)
