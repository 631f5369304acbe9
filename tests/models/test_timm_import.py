"""Training does without torch's compiler unless a recipe asks for it, and the compiler still works afterwards."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from stssl.models.backbones import make_backbone
from stssl.models.blank import BlankWeights
from stssl.training.plain_optimizers import SGD, AdamW

FIRST = """
import sys
import torch
from stssl.models.backbones import make_backbone
from stssl.models.timm_import import compiler_later
from stssl.training.plain_optimizers import AdamW

disable = torch.compiler.disable
net = make_backbone("slim_resnet", {}, size=8, in_channels=3, classes=2, hub=False)
optimizer = AdamW(net.parameters(), fused=True)
net(torch.zeros(2, 3, 8, 8)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
assert torch.compiler.disable is disable

with compiler_later():
    from torch._dynamo.utils import is_compile_supported
    kept = torch.compiler.disable(lambda: 3, reason="a test")
    assert "torch._dynamo" not in sys.modules
assert kept() == 3 and "torch._dynamo" in sys.modules and torch.compiler.disable is disable
assert is_compile_supported("cpu") in (True, False)
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
"""
OTHER_NAMES = """
import sys
import torch
from stssl.models.timm_import import compiler_later

with compiler_later():
    from torch._dynamo.utils import counters
    @torch.compiler.disable
    class Kept: pass
assert sys.modules["torch._dynamo.utils"].counters is counters and isinstance(Kept, type)
"""


@pytest.mark.parametrize("script", [FIRST, OTHER_NAMES], ids=["first use", "other names"])
def test_compiler_waits_until_it_is_asked_for(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]


def steps_of(optimizer: torch.optim.Optimizer, layer: nn.Linear) -> list[torch.Tensor]:
    """Take four steps, of which the third is left out as the loop does after bad gradients."""
    generator = torch.Generator().manual_seed(3)
    for number in range(4):
        optimizer.zero_grad(set_to_none=True)
        layer(torch.randn(5, 4, generator=generator)).square().sum().backward()
        optimizer.found_inf = torch.tensor(float(number == 2))  # type: ignore[attr-defined]
        optimizer.step()
    return [value.detach().clone() for value in layer.parameters()]


@pytest.mark.parametrize("own, theirs", [(AdamW, torch.optim.AdamW), (SGD, torch.optim.SGD)])
def test_own_optimizers_take_the_steps_of_torch(
    own: type[torch.optim.Optimizer], theirs: type[torch.optim.Optimizer]
) -> None:
    def trained(kind: type[torch.optim.Optimizer], rate: float = 0.1) -> list[torch.Tensor]:
        torch.manual_seed(1)
        layer = nn.Linear(4, 3)
        optimizer = kind(
            [{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.3}], lr=rate, fused=True
        )  # type: ignore[call-arg]
        called: list[int] = []
        optimizer.register_step_pre_hook(lambda *_: called.append(1))
        found = steps_of(optimizer, layer)
        assert len(called) == 4 and not any(
            value.requires_grad for value in optimizer.state[layer.weight].values() if isinstance(value, torch.Tensor)
        )
        again = kind(optimizer.param_groups, lr=rate, fused=True)  # type: ignore[call-arg]
        again.load_state_dict(optimizer.state_dict())
        return [*found, *(torch.as_tensor(value) for state in again.state.values() for value in state.values())]

    expected, found, control = trained(theirs), trained(own), trained(own, 0.2)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert not torch.equal(control[0], expected[0])


def test_networks_for_checks_draw_no_weights() -> None:
    def kernels() -> list[torch.Tensor]:
        options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
        net = make_backbone("vit_tiny_patch16_224", options, size=16, in_channels=3, classes=2, hub=False)
        return [value.detach() for value in net.get_submodule("blocks").parameters() if value.ndim == 2]

    with BlankWeights():
        blank = kernels()
    assert not any(bool(value.any()) for value in blank)
    drawn = kernels()
    assert all(bool(value.any()) for value in drawn)
    assert [value.shape for value in blank] == [value.shape for value in drawn]
