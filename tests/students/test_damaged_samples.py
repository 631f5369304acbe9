"""Arrays with flipped bits, or with a mark that says they are encrypted, end in one line that names the file."""

import numpy as np
import pytest

from stssl.analysis.run_views import read_arrays
from stssl.base.errors import RunError
from stssl.students.samples import Samples, read_samples, write_samples
from stssl.training.run_files import ScoresFile

PART = {
    "patches": 6,
    "checkpoint": "best",
    "step": 4,
    "networks": {"student": {"scores": {"accuracy": 1.0}, "per_class": {"a": {"count": 6, "recall": 1.0}}}},
}


def encrypted(data):
    for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(head) + flags] |= 1
    return data


def flipped(data):
    data[300:340] = bytes(255 - one for one in data[300:340])
    return data


@pytest.mark.parametrize("damaged", [encrypted, flipped])
def test_damaged_arrays_give_one_line(damaged, tmp_path):
    path = tmp_path / "a.npz"
    images = np.random.default_rng(0).integers(0, 9, (8, 3, 24, 24), np.uint8)
    write_samples(path, Samples(images, np.zeros((8, 4), np.float32), np.zeros((5, 2), np.float32)))
    assert (read_samples(path).images == images).all()  # control
    path.write_bytes(damaged(bytearray(path.read_bytes())))
    with pytest.raises(RunError, match=r"a\.npz is damaged"):
        read_samples(path)
    with pytest.raises(RunError, match=r"a\.npz is damaged \((RuntimeError|error|BadZipFile)"):
        read_arrays(path, ScoresFile.model_validate(PART), "")
