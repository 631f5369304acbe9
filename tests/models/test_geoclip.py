"""The location encoder of GeoCLIP, restated: it computes what the package computes."""

import importlib
import sys
import types

import pytest
import torch
from small import MULTILABEL, make_network, part

from stssl.base.errors import ConfigError
from stssl.models import EncoderConfig, InjectionConfig, geoclip
from stssl.models.geoclip import Geoclip, GeoclipConfig, LocationNetwork, load_package_weights, package_file

LAT = torch.tensor([48.1, -33.9, 0.0, 90.0, -90.0, 51.0])
LON = torch.tensor([11.6, 151.2, -179.9, 10.0, 0.0, 180.0])


@pytest.fixture
def packaged(monkeypatch):
    """The package's own location encoder. Its folder is imported alone, since the package would import transformers."""
    folder = types.ModuleType("location_only")
    folder.__path__ = [str(package_file().parents[1])]
    monkeypatch.setitem(sys.modules, "location_only", folder)
    with torch.random.fork_rng():
        return importlib.import_module("location_only.location_encoder").LocationEncoder().eval()


def test_features_are_those_of_the_package(packaged):
    before = set(sys.modules)
    own = LocationNetwork()
    load_package_weights(own)
    with torch.no_grad():
        expected = packaged(torch.stack([LAT, LON], 1))
        torch.testing.assert_close(own(LAT, LON), expected, rtol=0, atol=1e-6)
        assert (LocationNetwork()(LAT, LON) - expected).abs().max() > 0.01  # control: random weights give others
    assert "transformers" not in set(sys.modules) - before


def encoder(seed=0, **options):
    torch.manual_seed(seed)
    return Geoclip(GeoclipConfig(**options), 8)


def test_places_are_unit_vectors_and_only_a_tuned_encoder_learns():
    frozen, tuned = encoder(), encoder(tune=True)
    torch.testing.assert_close(frozen.place(LAT, LON).norm(dim=1), torch.ones(len(LAT)))
    assert not any(parameter.requires_grad for parameter in frozen.location.parameters())
    assert all(parameter.requires_grad for parameter in tuned.location.parameters())
    assert list(frozen.pretrained()) == [] and len(list(tuned.pretrained())) == 24
    assert torch.equal(frozen.place(LAT, LON), tuned.place(LAT, LON))


def test_the_control_is_random_and_follows_the_seed():
    one, again, other = (encoder(seed, weights="none").place(LAT, LON) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert list(encoder(weights="none", tune=True).pretrained()) == []


def test_a_network_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(geoclip, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"geoclip is not installed. Run pip install 'stssl\[geoclip\]'"):
        make_network(MULTILABEL, "teacher", encoder=part(EncoderConfig, "geoclip"))
    late = part(InjectionConfig, "late")
    assert make_network(MULTILABEL, "direct", injection=late, encoder=part(EncoderConfig, "geoclip", weights="none"))


def test_a_file_of_other_weights_is_refused(monkeypatch, tmp_path):
    torch.save({"LocEnc0.capsule.1.weight": torch.ones(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(geoclip, "package_file", lambda: tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other.pth does not hold the weights of GeoCLIP"):
        encoder()
