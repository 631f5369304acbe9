"""What `stssl weights FILE` says of a file of weights."""

import io
import pickle
import sys
import zipfile

import pytest
import torch

from stssl.analysis import weight_report
from stssl.base.errors import ConfigError
from stssl.commands.cli import main
from stssl.models.backbones import make_backbone
from stssl.models.sealed import seal


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Try few backbones: each takes a tenth of a second."""
    monkeypatch.setattr(weight_report, "MOST_TRIED", 3)


@pytest.fixture(scope="module")
def resnet():
    return make_backbone("resnet18", {}, size=64, in_channels=13, classes=2, hub=False).state_dict()


def test_a_published_file_is_recognized_and_the_command_prints_it(resnet, tmp_path, monkeypatch, capsys):
    path = tmp_path / "B13_rn18_moco_0099_ckpt.pth"
    state = {f"module.encoder_q.{name}": value for name, value in resnet.items()}
    torch.save({"state_dict": state | {"module.queue": torch.ones(2, 2)}}, path)
    found = weight_report.report_of_weights(path)
    assert found.layout == "DDP + MoCo + timm's names" and found.aside == {"queue": 1}
    assert found.bands == 13 == len(found.band_names) and found.band_names[3] == "B04"
    assert found.fits == ["resnet18"] and found.unused == ["fc.weight", "fc.bias"] and found.closest is None
    assert found.numbers == sum(value.numel() for value in resnet.values()) and found.skipped > 0
    monkeypatch.setattr(sys, "argv", ["stssl", "weights", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out.splitlines() == found.lines()
    text = "\n".join(found.lines())
    assert "known     SSL4EO-S12" in text and "fits      resnet18 (" in text and "not used  fc.weight, fc.bias" in text


def test_what_keeps_a_file_from_fitting_is_said(resnet, tmp_path):
    torch.save(resnet | {"layer5.weight": torch.tensor([1, torch.nan]), "bn1.bias": torch.ones(3)}, tmp_path / "w.pth")
    found = weight_report.report_of_weights(tmp_path / "w.pth")
    assert found.fits == [] and found.closest.backbone == "resnet18"
    assert found.closest[2:] == (["bn1.bias"], [], ["layer5.weight"])
    assert "damaged   NaN in layer5.weight" in found.lines()
    assert "1 not understood: layer5.weight" in found.lines()[-1] and not found.band_names
    torch.save({"odd.weight": torch.ones(2)}, tmp_path / "w.pth")
    found = weight_report.report_of_weights(tmp_path / "w.pth")
    assert found.tried == 0 and found.bands is None and found.lines()[-1] == "not used  odd.weight"


def test_a_damaged_description_of_an_export_is_refused(tmp_path):
    options = {"channels": [4, 8, 8, 8]}
    state = make_backbone("slim_resnet", options, size=16, in_channels=2, classes=3, hub=False).state_dict()
    weights, path = {f"backbone.{name}": value for name, value in state.items()}, tmp_path / "student.safetensors"
    path.write_bytes(seal(weights, {weight_report.KEY: "{}"}))
    with pytest.raises(ConfigError, match=r"student\.safetensors"):
        weight_report.report_of_weights(path)
    path.write_bytes(seal(weights))  # control: without a description, as older releases wrote it
    found = weight_report.report_of_weights(path)
    assert found.fits == [] and found.closest.backbone == "slim_resnet" and len(found.closest.reshaped) > 10


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", None])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_without_weights_give_one_line(name, content, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["stssl", "weights", str(tmp_path / name)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and len(told.err.strip().splitlines()) == 2  # one of progress
    assert name in told.err and "model.weights" not in told.err


def test_other_files_are_named_by_their_first_bytes(tmp_path, recwarn):
    def zipped(*names):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, b"x" * 99)
        return buffer.getvalue()

    for content, words in (
        (b"", "is empty"),
        (b"II*\0" + bytes(9), "TIFF or GeoTIFF"),
        (zipped("a.npy"), "NumPy arrays"),
        (zipped("m/code/__torch__.py", "m/data.pkl"), "TorchScript"),
        (zipped("m/data.pkl")[:60], "cut off or damaged"),
        (pickle.dumps({"a": 1}), "a plain pickle"),
        (b"hello", "holds no weights that can be read"),
    ):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"w\.pth .*{words}") as raised:
            weight_report.report_of_weights(tmp_path / "w.pth")
        assert not any(jargon in str(raised.value) for jargon in ("Unpickl", "Pytorch", "weights_only"))
    assert not recwarn.list
    torch.save({"LocEnc0.capsule.1.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"location encoder.*model\.encoder=\{name: geoclip\}"):
        weight_report.report_of_weights(f"file:{tmp_path / 'w.pth'}")
    others = {"timm:a1_in1k": "names no single file", str(tmp_path): "has no student", "run:x": "no file or folder"}
    for text, words in others.items():
        with pytest.raises(ConfigError, match=words):
            weight_report.report_of_weights(text)
