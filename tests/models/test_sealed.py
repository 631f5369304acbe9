"""Exported weights: what changes in such a file is noticed, and what other programs wrote is read as ever."""

import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from stssl.base.errors import ConfigError
from stssl.models.sealed import read_sealed, seal
from stssl.models.weights import read_weights

WEIGHTS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3) + 1,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0),
}


def test_what_is_written_is_read_also_by_others(tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes(seal(WEIGHTS))
    for found in (read_sealed(path), load_file(path), read_weights(str(path))):
        assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert len({seal(WEIGHTS) for _ in range(5)}) == 1 and seal({"b": WEIGHTS["b"].t()}) != seal({"b": WEIGHTS["b"]})


def test_every_flipped_byte_is_an_error(tmp_path, caplog):
    path, whole, dice = tmp_path / "student.safetensors", seal(WEIGHTS), random.Random(0)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1 :])
        with pytest.raises(ConfigError, match=r"model\.weights: .*student\.safetensors is (damaged|empty|cut off)"):
            read_weights(str(path))
    assert not caplog.records


def test_control_without_a_checksum_a_flipped_byte_is_not_noticed_and_an_export_is_warned_of_once(tmp_path, caplog):
    path, other = tmp_path / "encoder.safetensors", tmp_path / "model.safetensors"
    whole = save(WEIGHTS, {"format": "pt"})
    path.write_bytes(whole[:-1] + b"x")
    for _ in range(2):
        read_weights(str(path))
    assert [record.message for record in caplog.records] == [
        f"{path} was written before exported weights had a checksum: bytes that change there are not noticed."
    ]
    caplog.clear()
    save_file(WEIGHTS, other, {"source": "somebody"})
    assert read_weights(str(other)).keys() == WEIGHTS.keys() and not caplog.records


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"stssl": "9.9"}, {}], ids=["digest", "writer", "both"])
def test_a_header_that_lost_a_part_is_an_error(tmp_path, change):
    path = tmp_path / "student.safetensors"
    path.write_bytes(seal(WEIGHTS))
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(WEIGHTS, path, header)
    read_sealed(path)  # the control: the same header again
    save_file(WEIGHTS, path, {"format": "pt"} | change if change else header | {"more": "x"})
    with pytest.raises(ConfigError, match=r"is damaged: its contents differ from its checksum\. Copy it again"):
        read_sealed(path)


def test_no_bytes_of_a_weights_file_end_in_another_error(tmp_path):
    """Both kinds of files, changed and cut off anywhere."""
    torch.save({"a": torch.ones(3)}, tmp_path / "new.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "w.safetensors").write_bytes(save(WEIGHTS))
    dice = random.Random(1)
    for source in list(tmp_path.iterdir()):
        whole, refused = source.read_bytes(), 0
        for _ in range(60):
            data = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
            for _ in range(min(dice.randrange(4), len(data))):
                data[dice.randrange(min(len(data), 700))] = dice.randrange(256)
            source.write_bytes(data)
            try:
                read_weights(str(source))
            except ConfigError as error:
                refused += str(source) in str(error)
        assert refused > 20
