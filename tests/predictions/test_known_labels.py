"""Known labels of patches, and what is said about classes that a model lacks."""

from types import SimpleNamespace

import numpy as np

from stssl.base.labels import LabelSpace
from stssl.predictions.known_labels import KnownLabels


def test_what_is_said_of_unknown_classes_is_what_happens_to_them():
    several = KnownLabels("kinds", LabelSpace(("a", "b", "z"), True), LabelSpace(("a", "b"), True))
    assert several.notes == ("kinds: the model does not know z: scores leave these classes out",)
    several.add(SimpleNamespace(columns={"kinds": np.array([[1, 0, 1], [0, 0, 1]], np.uint8)}))
    assert several.targets().tolist() == [[1, 0], [0, 0]]
    one = KnownLabels("kind", LabelSpace(("a", "z"), False), LabelSpace(("a", "b"), False))
    assert one.notes == ("kind: the model does not know z: patches with these do not count in scores",)
    one.add(SimpleNamespace(columns={"kind": np.array([0, 1])}))
    assert one.targets().tolist() == [[0], [-1]]
    assert not KnownLabels("kind", LabelSpace(("a",), False), LabelSpace(("a", "b"), False)).notes  # the control
