"""What `stssl export` writes: files that give the student's logits without stssl, and documents that describe them."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
import rasterio
import torch
from exported import bigearthnet_patches, eurosat_patches, write_run
from real import real_data
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7
from safetensors.torch import load_file
from typer.testing import CliRunner

import stssl
from stssl.base.remote_folder import RemoteFolder
from stssl.commands.cli import app
from stssl.exports import graphs
from stssl.exports.places import places_svg
from stssl.exports.stac import stac_item
from stssl.exports.torchvision_weights import exported_bands
from stssl.exports.writing import export_to
from stssl.models import backbones
from stssl.models.sealed import seal
from stssl.models.sites import LateConfig, TokenConfig
from stssl.students.description import KEY, NetworkDescription

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "export.md"
BLOCK = "import sys\nsys.modules['stssl'] = None\n"
"""First lines of a script that cannot import stssl."""
SLIM = {"backbone_args": {"channels": [4, 8, 8, 8]}}


def patches(count=3, side=20, kind=np.uint8):
    return np.random.default_rng(0).integers(0, 250, (count, 3, side, side)).astype(kind)


def alone(script, folder, *arguments):
    """Run a script in a process that cannot import stssl."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "runs" / "own-fixmatch-s0"
    write_run(folder, patches(), cdmad=True, size=12, **SLIM)
    for form in ("pt2", "onnx"):
        stssl.export(folder, form, license="CC-BY-4.0")
    return folder


def test_the_pages_scripts_classify_a_geotiff_without_stssl(run):
    folder = run.parents[1]
    (folder / "images").mkdir()
    pixels = patches(1)[0]
    with rasterio.open(
        folder / "images" / "0.tif", "w", driver="GTiff", count=3, height=20, width=20, dtype="uint8"
    ) as f:
        f.write(pixels)
    student = stssl.load_student(run)
    expected = student(torch.from_numpy(pixels[None]))[0].numpy()
    name = student.classes[int(expected.argmax())]
    scripts = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "stssl" not in text]
    assert len(scripts) == 2 and all(len(text.splitlines()) <= 16 for text in scripts)
    torch_says, onnx_says = (alone(script, folder) for script in scripts)
    assert torch_says.startswith(f"{name} ") and onnx_says.startswith(f"{name} ")
    assert float(torch_says.split()[-1]) == pytest.approx(float(torch.from_numpy(expected).softmax(0).max()), abs=1e-4)
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", onnx_says)]
    assert np.allclose(numbers, expected, atol=1e-3)
    assert np.abs(expected + student.bias[0].numpy() - np.array(numbers)).max() > 0.01  # control: CDMAD is inside


def local_schema():
    """The schema of MLM items; of the other extensions that it refers to, the definitions that it uses, restated."""
    classes = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["value", "name"],
            "properties": {
                "value": {"type": "integer"},
                "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
                "description": {"type": "string"},
                "color_hint": {"type": "string", "pattern": "^([0-9A-Fa-f]{6})$"},
            },
        },
    }
    expression = {"type": "object", "required": ["format", "expression"], "properties": {"format": {"type": "string"}}}
    types = {"type": "string", "enum": ["uint8", "uint16", "float32"]}
    others = {
        "classification/v1.1.0": {"fields": {"properties": {"classification:classes": classes}}},
        "processing/v1.1.0": {"fields": {"properties": {"processing:expression": expression}}},
        "raster/v1.1.0": {"bands": {"items": {"properties": {"data_type": types}}}},
    }
    made = [
        (f"https://stac-extensions.github.io/{name}/schema.json", Resource({"definitions": parts}, DRAFT7))
        for name, parts in others.items()
    ]
    schema = json.loads(Path(__file__).with_name("stac-mlm.json").read_text())
    return jsonschema.Draft7Validator(schema, registry=Registry().with_resources(made))


def test_the_stac_item_is_valid_and_says_where_and_when(run):
    item = json.loads((run / "export" / "item.json").read_text())
    schema = local_schema()
    assert list(schema.iter_errors(item)) == []
    assert item["bbox"] == [5, 45, 11, 52] and item["properties"]["end_datetime"] == "2017-08-31T23:59:59Z"
    assert item["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, 20, 20]
    assert {asset["href"] for asset in item["assets"].values()} >= {"./student.pt2", "./student.onnx"}
    for asset in item["assets"].values():
        assert (run / "export" / asset["href"]).is_file()
    for change in ({"mlm:name": "1"}, {"mlm:tasks": ["guessing"]}, {"mlm:output": [{}]}):  # the control
        assert list(schema.iter_errors(item | {"properties": item["properties"] | change}))


def test_the_card_says_scores_data_and_limits(run):
    card = (run / "export" / "README.md").read_text()
    for words in (
        "license: cc-by-4.0",
        "not evaluated",
        "## Limits",
        "places.svg",
        "display-stretched 8-bit",
        "2017-06",
    ):
        assert words in card
    config = json.loads((run / "export" / "config.json").read_text())
    assert set(config["files"]) == {"student.pt2", "student.onnx"} and config["side"] == 20
    assert all(difference < 1e-4 for difference in config["difference"].values()) and len(config["difference"]) == 2
    assert "<circle" in (run / "export" / "places.svg").read_text()
    assert "have no places" in places_svg(np.zeros((0, 2), np.float32))


def test_a_later_export_keeps_the_license_and_the_card_shows_each_format(tmp_path):
    folder = write_run(tmp_path / "run", patches(), size=12, backbone="resnet18")
    path = stssl.export(folder, license="CC-BY-4.0")
    count = json.loads((path.parent / "item.json").read_text())["properties"]["mlm:total_parameters"]
    assert "with the license CC-BY-4.0" in exported(folder, "--format", "torchvision", "--license", "MIT")
    assert not (path.parent / "backbone.safetensors").exists()
    stssl.export(folder, "torchvision")
    card, item = ((path.parent / name).read_text() for name in ("README.md", "item.json"))
    assert json.loads((path.parent / "config.json").read_text())["license"] == "CC-BY-4.0"
    assert "license: cc-by-4.0" in card and json.loads(item)["properties"]["license"] == "CC-BY-4.0"
    assert "torch.export.load" in card and "resnet_fpn_backbone" in card
    assert json.loads(item)["properties"]["mlm:total_parameters"] == count  # of the student, not of the backbone alone
    stssl.export(folder, "torchvision", license="CC-BY-4.0")  # the control: the same license is no contradiction


def test_an_export_into_a_bucket_refuses_other_files_unread_and_ends_with_its_description(
    tmp_path, monkeypatch, server, elsewhere
):
    pytest.importorskip("obstore")
    folder, write = write_run(tmp_path / "run", patches(), size=12, backbone="resnet18"), RemoteFolder.write
    words = ("--format", "torchvision", "--license", "MIT", "--out")

    def broken_off(remote, name, data):
        if name == "backbone.safetensors":
            raise KeyboardInterrupt
        write(remote, name, data)

    server.objects["bucket/strange/data/big.bin"] = bytes(9)
    assert exported(folder, *words, "s3://bucket/strange").startswith(
        "--out s3://bucket/strange holds other files (data/big.bin)"
    )
    assert ("GET", "/bucket/strange/data/big.bin") not in server.requests
    export_to(folder, "torchvision", "s3://bucket/e", license="MIT")
    whole = set(server.objects)
    assert {"bucket/e/config.json", "bucket/e/backbone.safetensors"} < whole
    elsewhere()
    assert "s3://bucket/e holds an export" in exported(folder, *words[:3], "GPL-2.0-only", *words[4:], "s3://bucket/e")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteFolder, "write", broken_off)
        export_to(folder, "torchvision", "s3://bucket/e")
    assert set(server.objects) == whole - {"bucket/e/config.json"}
    elsewhere()
    export_to(folder, "torchvision", "s3://bucket/e", license="MIT")
    assert set(server.objects) == whole


def test_an_export_that_finds_no_room_gives_one_line_and_leaves_nothing(run, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for form in ("pt2", "onnx"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            words = exported(run, "--format", form, "--out", tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert words.startswith(f"cannot write {tmp_path / 'out'}: File too large") and not list(tmp_path.iterdir())


def test_the_files_hold_no_patches_and_no_folders_of_this_machine(run):
    for path in (run / "export").iterdir():
        content = path.read_bytes()
        assert str(Path(stssl.__file__).parent).encode() not in content and str(run).encode() not in content
    assert (run / "export" / "student.pt2").stat().st_size < 400_000


def exported(*arguments):
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert isinstance(done.exception, stssl.StsslError) and done.exception.exit_code == 2
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_wrong_arguments_and_folders_are_refused_and_nothing_is_written(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    other = write_run(tmp_path / "other", patches(), size=12, **SLIM)
    for arguments, words in (
        ((run, "--format", "tflite"), "give pt2, onnx or torchvision"),
        ((tmp_path / "nothing",), "there is no file or folder"),
        ((tmp_path / "full",), "has no student.safetensors"),
        ((tmp_path / "file",), "is no model"),
        ((run, "--out", tmp_path / "file"), "is a file. Give a folder"),
        ((run, "--out", tmp_path / "full"), r"holds other files (notes.txt)"),
        ((run, "--out", run), "the run keeps its own files there"),
        ((run, "--out", run / "checkpoints"), "the run keeps its own files there"),
        ((run, "--out", run / "evaluation"), "the run keeps its own files there"),
        ((run, "--out", tmp_path / "file" / "x"), "cannot write"),
        ((run, "--out", "/proc/self/x"), "cannot write"),
        ((other, "--out", run / "export"), "the export of another student"),
        ((run, "--bands", "B04,B03,B02"), "only --format torchvision chooses bands"),
        ((run, "--license", "a\nb"), "give an SPDX identifier"),
        ((run, "--format", "torchvision"), "takes ResNets (resnet101"),
    ):
        assert words in exported(*arguments)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "other"]


def test_a_file_that_differs_from_the_student_or_lacks_an_operator_is_not_written(tmp_path, monkeypatch):
    class Odd(torch.nn.Module):
        def forward(self, values):
            return torch.special.bessel_j0(values)

    def odd(in_channels, classes, **options):
        network = backbones.slim_resnet(in_channels, classes, **options)
        network.maxpool = Odd()
        return network

    monkeypatch.setitem(backbones.OWN, "odd", odd)
    run = write_run(tmp_path / "run", patches(), size=12, backbone="odd", **SLIM)
    assert "ONNX lacks the operator prims.bessel_j0" in exported(run, "--format", "onnx")
    assert [path.name for path in run.iterdir()] == ["checkpoints"]
    assert stssl.export(run).is_file()  # the control: pt2 has it
    shifted = write_run(tmp_path / "shifted", patches(), size=12, **SLIM)
    monkeypatch.setattr(graphs.ImageGraph, "forward", lambda self, images: self.predicted(images, None) + 2e-4)
    assert "gives other logits than the student" in exported(shifted)
    assert [path.name for path in shifted.iterdir()] == ["checkpoints"]


def test_without_the_extra_the_message_names_it(run, monkeypatch):
    monkeypatch.setattr(graphs, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    assert "needs no_such_package: pip install 'stssl[onnx]'" in exported(run, "--format", "onnx")


def test_lost_or_damaged_samples_say_what_to_do(tmp_path):
    run = write_run(tmp_path / "run", patches(), size=12, **SLIM)
    samples = run / "checkpoints" / "samples.npz"
    samples.write_bytes(samples.read_bytes()[:-200])
    assert "samples.npz is damaged" in exported(run)
    samples.unlink()
    words = exported(run)
    assert "Remove done.json of the run" in words and "is not beside it" in words


def test_an_export_that_was_killed_amid_its_move_is_written_again(tmp_path):
    run = write_run(tmp_path / "run", patches(), size=12, backbone="resnet18")
    path = stssl.export(run, "torchvision")
    (path.parent / "config.json").unlink()
    path.write_bytes(b"half")
    assert load_file(stssl.export(run, "torchvision")) and (path.parent / "config.json").is_file()
    for name in ("config.json", "places.svg", "backbone.safetensors"):
        (path.parent / name).unlink()
    assert "holds other files" in exported(run, "--format", "torchvision")  # the control: only a README.md is left


NETWORKS = {
    "slim_resnet": {},
    "resnet18": {"backbone": "resnet18"},
    "tf_efficientnet_lite0": {"backbone": "tf_efficientnet_lite0", "size": 64},
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"patch_size": 8, "depth": 3},
        "role": "student",
        "distilled": True,
        "injection": TokenConfig(),
    },
}
COMPARE = """
import json, pathlib
import numpy as np, onnxruntime, torch
worst = 0
for folder in sorted(pathlib.Path(".").glob("run*")):
    arrays = np.load(folder / "expected.npz")
    images = arrays["images"].astype("float32")
    with torch.no_grad():
        one = torch.export.load(folder / "export" / "student.pt2").module()(torch.from_numpy(images)).numpy()
    two = onnxruntime.InferenceSession(folder / "export" / "student.onnx").run(None, {"images": images})[0]
    worst = max(worst, *(float(abs(found - arrays["logits"]).max()) for found in (one, two)))
    print(folder, abs(arrays["logits"]).max(), abs(one - arrays["logits"]).max(), abs(two - arrays["logits"]).max())
print(worst)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_soak_pt2_and_onnx_give_the_students_logits_on_real_patches_without_stssl(name, tmp_path):
    real = {"eurosat": eurosat_patches(real_data("eurosat") / "EuroSAT.zip")}
    real["bigearthnet"] = bigearthnet_patches(real_data("bigearthnet-v1"))
    for source, images in real.items():
        for cdmad in (False, True):
            run = write_run(tmp_path / f"run-{source}-{cdmad}", images, cdmad=cdmad, **NETWORKS[name])
            for form in ("pt2", "onnx"):
                stssl.export(run, form)
            student = stssl.load_student(run)
            logits = student(torch.from_numpy(images)).numpy()
            assert cdmad == bool(student.bias.abs().max() > 1e-3)
            np.savez(run / "expected.npz", images=images, logits=logits)
    assert float(alone(COMPARE, tmp_path).split()[-1]) < 1e-4


@pytest.mark.slow
def test_soak_a_direct_student_exports_with_its_metadata(tmp_path):
    run = write_run(tmp_path / "run", patches(), cdmad=True, size=12, role="direct", injection=LateConfig(), **SLIM)
    path = stssl.export(run, "onnx")
    item = json.loads((path.parent / "item.json").read_text())
    assert list(local_schema().iter_errors(item)) == [] and len(item["properties"]["mlm:input"]) == 2
    images, table = patches().astype(np.float32), np.float32([[48, 8, 150, np.nan], [np.nan] * 4, [0, 0, 1, 12]])
    found = onnxruntime.InferenceSession(path).run(None, {"images": images, "metadata": table})[0]
    expected = stssl.load_student(run)(torch.from_numpy(images), torch.from_numpy(table)).numpy()
    assert np.abs(found - expected).max() < 1e-4
    moved = onnxruntime.InferenceSession(path).run(None, {"images": images, "metadata": table * 0.5})[0]
    assert np.abs(found - moved).max() > 1e-4  # the control


@pytest.mark.slow
def test_soak_torchvisions_detector_and_segmenter_start_from_the_backbone_and_learn(tmp_path):
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.segmentation import deeplabv3_resnet50

    run = write_run(tmp_path / "run", patches(), size=32, backbone="resnet50.a1_in1k")
    weights = load_file(stssl.export(run, "torchvision", bands=["B02", "B03", "B04"]))
    own = load_file(run / "checkpoints" / "student.safetensors")["backbone.conv1.weight"]
    assert torch.equal(weights["conv1.weight"], own.flip(1)) and not any(name.startswith("fc") for name in weights)
    images = torch.rand(2, 3, 64, 64)
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64)
    detector.backbone.body.load_state_dict(weights)
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    segmenter = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)
    segmenter.backbone.load_state_dict(weights)

    def detection_loss():
        return sum(detector(list(images), [target, target]).values())

    def segmentation_loss():
        return torch.nn.functional.cross_entropy(segmenter(images)["out"], torch.zeros(2, 64, 64, dtype=torch.long))

    for network, loss in ((detector, detection_loss), (segmenter, segmentation_loss)):
        optimizer = torch.optim.SGD(network.parameters(), 1e-3)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        for _ in range(2):
            optimizer.zero_grad()
            value = loss()
            assert torch.isfinite(value)
            value.backward()
            optimizer.step()
        changed = [not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
        assert sum(changed) > 0.9 * len(changed)


def backbone_bands(folder):
    """Read the bands of a run's export, or of a folder of an export."""
    export = folder / "export" if (folder / "export").exists() else folder
    told = json.loads((export / "config.json").read_text())["backbone_bands"]
    assert tuple(told) == exported_bands(export / "backbone.safetensors")
    return told


def test_only_torchvisions_own_resnets_and_three_bands_are_exported_for_it(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", patches(), size=12, backbone="resnet18")
    own = load_file(run / "checkpoints" / "student.safetensors")
    kept = {name.removeprefix("backbone.") for name in own if not name.startswith("backbone.fc.")}
    assert set(load_file(stssl.export(run, "torchvision"))) == kept
    card = (run / "export" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run / "export")
    made: dict = {}
    exec(snippet, made)
    assert torch.equal(made["model"].backbone.body["conv1"].weight, own["backbone.conv1.weight"])
    assert "deeplabv3" not in card  # torchvision has none for a resnet18
    assert "bands B04, B03, B02, in this sequence" in card and backbone_bands(run) == ["B04", "B03", "B02"]
    other_way = load_file(stssl.export(run, "torchvision", tmp_path / "e", bands=["B02", "B03", "B04"]))
    assert torch.equal(other_way["conv1.weight"], own["backbone.conv1.weight"].flip(1))
    stssl.export(run, "onnx", tmp_path / "e")  # a later export keeps the file, so it keeps the bands too
    assert "bands B02, B03, B04, in this sequence" in (tmp_path / "e" / "README.md").read_text()
    assert backbone_bands(tmp_path / "e") == ["B02", "B03", "B04"]
    told = stssl.load_student(run).description
    parts = {"network": NetworkDescription(backbone="resnet18", role="encoder"), "classes": (), "task": "features"}
    encoder = tmp_path / "pretrained" / "checkpoints" / "encoder.safetensors"
    encoder.parent.mkdir(parents=True)
    body = {name.removeprefix("backbone."): value for name, value in own.items() if ".fc." not in name}
    encoder.write_bytes(seal(body, {KEY: told.model_copy(update=parts).text()}))
    found = load_file(stssl.export(tmp_path / "pretrained", "torchvision"))
    assert set(found) == kept and torch.equal(found["conv1.weight"], body["conv1.weight"])
    assert "is a pretrained encoder and has no classes" in exported(tmp_path / "pretrained")
    with pytest.raises(stssl.ConfigError, match="is a pretrained encoder and has no classes"):
        stssl.load_student(encoder)
    assert "has no B99. It has: B04, B03, B02" in exported(run, "--format", "torchvision", "--bands", "B04,B03,B99")
    assert "take three bands, not B04, B03" in exported(run, "--format", "torchvision", "--bands", "B04,B03")
    deep = write_run(tmp_path / "deep", patches(), size=12, backbone="resnet18d")
    assert "takes ResNets" in exported(deep, "--format", "torchvision")
    other = write_run(tmp_path / "act", patches(), size=12, backbone="resnet18", backbone_args={"act_layer": "silu"})
    assert "Its features differ" in exported(other, "--format", "torchvision")
    assert not (other / "export").exists()


def test_control_an_item_without_places_and_dates_is_valid_too(run):
    from datetime import UTC, datetime

    from stssl.exports.facts import Exported

    told = stssl.load_student(run).description
    bare = told.model_copy(update={"training": told.training.model_copy(update={"box": None, "months": ()})})
    facts = Exported("model", bare, "d", {"student.pt2": "e"}, {}, {}, None)
    item = stac_item(facts, datetime.now(UTC), 9)
    assert item["geometry"] is None and "bbox" not in item and list(local_schema().iter_errors(item)) == []
