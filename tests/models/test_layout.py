import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stssl.models.backbones import make_backbone
from stssl.models.layout import memory_format, placed
from stssl.models.published import PUBLISHED_WEIGHTS

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CHECKER = "libc_malloc_debug.so.0"
"""Since glibc 2.34 malloc looks at MALLOC_CHECK_ only with this library."""


def slim(channels):
    options = {"channels": [channels, 16, 16, 16]}
    return make_backbone("slim_resnet", options, size=16, in_channels=3, classes=2, hub=False)


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(15, 32, 1, stride=2), False),
        (nn.Conv2d(16, 32, 1, stride=2), True),
        (nn.Conv2d(32, 32, 1, stride=2, groups=32), False),
        (nn.Conv2d(3, 4, 3, stride=2), True),
        (nn.Conv2d(4, 4, 1), True),
    ],
)
def test_the_cpu_has_channels_last_only_where_it_is_safe(layer, safe):
    network = nn.Sequential(nn.Conv2d(3, 3, 3), layer)
    assert memory_format(network, CPU) == (torch.channels_last if safe else torch.contiguous_format)
    assert memory_format(network, GPU) == torch.channels_last


@pytest.mark.parametrize(("channels", "last"), [(8, False), (16, True)])
def test_networks_are_laid_out_as_their_images(channels, last):
    network = slim(channels)
    chosen = placed(network, CPU)
    assert (chosen == torch.channels_last) == last
    assert network.layer2[0].conv1.weight.is_contiguous(memory_format=chosen)


@pytest.fixture(scope="class")
def lines():
    """Output of `heap.py` under malloc's checks, which end a process whose heap was written past a block's end."""
    stores = dict.fromkeys(("EUROSAT", "SYNTHETIC", "BIGEARTHNET", "OWN", *PUBLISHED_WEIGHTS), "/nowhere")
    environment = os.environ | stores | {"LD_PRELOAD": CHECKER, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(Path(__file__).with_name("heap.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout.splitlines(), (done.returncode, done.stderr)


def ended(line, control):
    """The number of the signal that ended a control, or 0."""
    name, number = line.split()
    assert name == control
    return int(number)


@pytest.mark.skipif(not Path(f"/lib/{platform.machine()}-linux-gnu/{CHECKER}").exists(), reason="needs glibc's checks")
class TestHeap:
    def test_networks_of_all_recipes_leave_the_heap_whole(self, lines):
        (_, _, *cases), (code, words) = lines
        assert code == 0, words
        assert {line.split()[0] for line in cases} == {
            "slim_resnet",
            "vit_small_patch16_224",
            "resnet50",
            "tf_efficientnet_lite0",
        }
        assert {line.split()[-1] for line in cases if "'channels'" not in line} == {"torch.channels_last"}

    def test_control_a_byte_past_a_tensor_is_caught(self, lines):
        assert ended(lines[0][0], "overrun") == signal.SIGABRT

    def test_channels_last_with_few_channels_is_caught(self, lines):
        number = ended(lines[0][1], "few_channels")
        if number == 0:
            pytest.skip("oneDNN's kernels for this CPU do not overrun")
        assert number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGALRM)
