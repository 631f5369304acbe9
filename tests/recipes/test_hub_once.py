"""Of the ranks on a machine, one asks the hub for weights. The hub is a server on this machine with its answers."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import hub_of
from processes import on_ranks
from safetensors.torch import save

from stssl.base.distributed import gather_texts
from stssl.base.errors import ConfigError
from stssl.models.backbones import make_backbone
from stssl.models.weights import FirstWeights
from stssl.recipes.sections import ModelConfig
from stssl.recipes.starting import first_weights_of, first_weights_on_ranks

RGB = ("B04", "B03", "B02")
CASES = ("hf:some/net", "timm:r160_in1k", "hf:some/absent/model.safetensors")


def built(first: FirstWeights) -> float:
    """Build two networks from weights, as a teacher and a student are, and return the sum of their first kernels."""
    nets = [first.build("test_resnet", {}, size=32, in_channels=3, classes=2) for _ in range(2)]
    return sum(float(net.get_parameter("conv1.0.weight").detach().sum()) for net in nets)


def work(rank: int, folder: Path, url: str, once: bool) -> None:
    from huggingface_hub import constants

    torch.set_num_threads(1)
    constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = url, url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(folder / "cache")
    told: dict[str, Any] = {"texts": gather_texts("é" * rank)}
    for weights in CASES:
        model = ModelConfig(backbone="test_resnet", image_size=32, weights=weights)
        try:
            told[weights] = built((first_weights_on_ranks if once else first_weights_of)(model, RGB))
        except ConfigError as error:
            told[weights] = str(error)
    assert not constants.HF_HUB_OFFLINE
    (folder / f"{rank}.json").write_text(json.dumps(told))


def asked_by_ranks(folder: Path, once: bool) -> tuple[list[dict[str, Any]], Counter[str]]:
    folder.mkdir()
    state = make_backbone("test_resnet", {}, size=32, in_channels=3, classes=1000, hub=False).state_dict()
    config = json.dumps({"architecture": "test_resnet"}).encode()
    files = {"some/net/config.json": config, "some/absent/config.json": config}
    files |= dict.fromkeys(("some/net/model.safetensors", "timm/test_resnet.r160_in1k/model.safetensors"), save(state))
    with hub_of(files) as (url, asked):
        on_ranks(2, work, folder, url, once)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], asked


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[list[dict[str, Any]], Counter[str]]]:
    folder = tmp_path_factory.mktemp("hub")
    return {once: asked_by_ranks(folder / str(once), once) for once in (True, False)}


def test_two_ranks_of_a_machine_ask_the_hub_once(
    outcomes: dict[bool, tuple[list[dict[str, Any]], Counter[str]]],
) -> None:
    (first, second), asked = outcomes[True]
    assert first == second and first["texts"] == ["", "é"]
    assert isinstance(first["hf:some/net"], float) and isinstance(first["timm:r160_in1k"], float)
    loads = {name: count for name, count in asked.items() if name.startswith("GET") and name.endswith("safetensors")}
    assert loads == {
        "GET /some/net/resolve/main/model.safetensors": 1,
        "GET /timm/test_resnet.r160_in1k/resolve/main/model.safetensors": 1,
    }
    control = outcomes[False][1]
    assert sum(control.values()) == 2 * sum(asked.values()) - sum(loads.values()), (asked, control)


def test_all_ranks_raise_the_error_of_the_one_that_asked(
    outcomes: dict[bool, tuple[list[dict[str, Any]], Counter[str]]],
) -> None:
    (first, second), asked = outcomes[True]
    name = "HEAD /some/absent/resolve/main/model.safetensors"
    assert "cannot load hf:some/absent/model.safetensors from Hugging Face" in first[CASES[2]] == second[CASES[2]]
    assert asked[name] == 1 < outcomes[False][1][name]
