"""Groups of ways."""

import pytest
import torch
from small import MULTILABEL, SINGLELABEL

from stssl.base.batch import IGNORED


def test_softmax_over_ways_is_the_probability_of_each_class():
    logits = torch.randn(6, 5)
    torch.testing.assert_close(MULTILABEL.grouped(logits).softmax(-1)[..., 1], MULTILABEL.probabilities(logits))
    logits = torch.randn(6, 4)
    torch.testing.assert_close(SINGLELABEL.grouped(logits).softmax(-1)[:, 0], SINGLELABEL.probabilities(logits))


def test_ungrouping_undoes_grouping():
    for space in (MULTILABEL, SINGLELABEL):
        logits = torch.randn(3, len(space.classes))
        assert torch.equal(space.ungrouped(space.grouped(logits)), logits)
        assert torch.equal(space.outputs(space.grouped(logits)), logits)
        assert space.grouped(logits).shape == (3, space.groups, space.choices)


def test_unknown_labels_are_ignored():
    targets = MULTILABEL.targets(torch.tensor([[0, 1, 255, 1, 0]], dtype=torch.uint8))
    assert targets.tolist() == [[0, 1, IGNORED, 1, 0]]
    assert SINGLELABEL.targets(torch.tensor([2, -1, 9])).tolist() == [[2], [IGNORED], [IGNORED]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_the_table_of_all_patches_takes_a_byte_for_each_class(dtype):
    labels = torch.tensor([[0, 1, 127, 1, 0], [1, 2, 0, -1, 1]]).to(dtype)
    labels[0, 2] = -1 if dtype.is_signed else 255
    table = MULTILABEL.table(labels)
    assert table.dtype == torch.int8 and torch.equal(table.long(), MULTILABEL.targets(labels))
    assert torch.equal(MULTILABEL.positives(table), MULTILABEL.positives(MULTILABEL.targets(labels)))
    single = torch.tensor([2, -1, 9])
    assert torch.equal(SINGLELABEL.table(single), SINGLELABEL.targets(single))
