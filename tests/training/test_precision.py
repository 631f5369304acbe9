"""The number format of a run: chosen by the device, kept by a resumed run, and attention in fp32 on CPUs."""

import json

import pytest
import torch
from test_loop import last, make, same
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from stssl.models.backbones import make_backbone
from stssl.training import precision
from stssl.training.launch import run
from stssl.training.precision import about_speed, choose_precision, computing_in
from stssl.training.run_folder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def pretend(monkeypatch):
    """Pretend that this CPU has some instructions."""

    def change(**known):
        known = {"architecture": "x86_64", "cpu_name": "A CPU", "avx512_bf16": False, "amx_bf16": False} | known
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)

    return change


@pytest.mark.parametrize(
    ("given", "cpu", "words"),
    [
        (("bf16", "cpu"), {}, "A CPU has no bf16 instructions"),
        (("bf16", "cpu"), {"avx512_bf16": True}, None),
        (("bf16", "cpu"), {"amx_bf16": True}, None),
        (("bf16", "cpu"), {"architecture": "aarch64"}, None),
        (("fp32", "cpu"), {}, None),
        (("fp32", "cpu"), {"amx_bf16": True}, "compute.precision=auto"),
        (("bf16", "cuda"), {}, None),
    ],
)
def test_the_faster_format_of_a_cpu_is_said(given, cpu, words, pretend):
    pretend(**cpu)
    said = about_speed(given[0], torch.device(given[1]))
    assert said is None if words is None else words in said


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="an older torch does not tell")
def test_this_torch_tells_what_is_asked():
    real = torch.cpu.get_capabilities()
    assert {"architecture", "cpu_name"} <= real.keys()
    if real["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16"} <= real.keys()


@pytest.mark.parametrize(
    ("case", "recorded", "chosen"),
    [
        (("auto", True), None, "bf16"),
        (("auto", False), None, "fp32"),
        (("auto", False), {"precision": "bf16"}, "bf16"),
        (("auto", True), {"precision": "fp32"}, "fp32"),
        (("auto", True), {}, "bf16"),
        (("fp32", True), {"precision": "bf16"}, "fp32"),
        (("bf16", False), None, "bf16"),
    ],
)
def test_auto_takes_what_the_device_has_and_a_resumed_run_keeps_it(case, recorded, chosen, recipe_tree, pretend):
    asked, has = case
    pretend(avx512_bf16=has)
    assert choose_precision(make(recipe_tree, compute__precision=asked), CPU, recorded) == chosen


def test_a_run_records_what_auto_chose_and_resumes_in_it(recipe_tree, pretend, caplog):
    plain = make(recipe_tree, name="plain", compute__precision="bf16")
    pretend(avx512_bf16=True)
    run(plain)
    recipe = make(recipe_tree, name="auto", compute__precision="auto")
    folder = run(recipe)
    record = json.loads((folder.path / "record.json").read_text())
    assert record["precision"] == "bf16" and same(last(recipe)["step"], last(plain)["step"])
    (folder.path / "done.json").unlink()
    pretend(avx512_bf16=False)
    run(recipe)
    assert json.loads((folder.path / "record.json").read_text())["precision"] == "bf16"
    assert "A CPU has no bf16 instructions" in caplog.text
    fresh = make(recipe_tree, name="control", compute__precision="auto", schedule__steps=4)
    assert json.loads((run(fresh).path / "record.json").read_text())["precision"] == "fp32"
    assert RunFolder.of(fresh).recipe().compute.precision == "auto"


class Seen(TorchFunctionMode):
    """Note the number formats that attention gets."""

    def __init__(self):
        super().__init__()
        self.formats = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            asked = torch.is_autocast_enabled("cpu")
            self.formats.append(torch.bfloat16 if asked else args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("compiled", "formats"), [(False, {torch.float32}), (True, {torch.bfloat16})])
def test_attention_on_a_cpu_is_computed_in_fp32(compiled, formats):
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    network = make_backbone("vit_tiny_patch16_224", options, size=16, in_channels=3, classes=4, hub=False)
    images = torch.randn(2, 3, 16, 16)
    with Seen() as seen, computing_in("bf16", CPU, compiled):
        found = network(images)
    assert set(seen.formats) == formats and len(seen.formats) == 2 and found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in network.parameters())
    torch.testing.assert_close(found.float(), network(images), atol=0.05, rtol=0.05)


def test_masks_and_named_arguments_of_attention_are_kept():
    query, key, value = (torch.randn(1, 2, 4, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.tensor([[True, False, True, True]]).expand(4, 4)
    wide = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
    with precision.Fp32Attention():
        found = scaled_dot_product_attention(query, key=key, value=value, attn_mask=mask)
        named = scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)
    assert found.dtype == torch.bfloat16 and torch.equal(found, wide.bfloat16()) and torch.equal(found, named)
    other = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert not torch.equal(found, other)  # control
