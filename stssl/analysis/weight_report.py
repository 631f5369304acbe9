"""Describe a file of network weights: the program that wrote it, its tensors, and the backbones that it fits."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from stssl.base.errors import ConfigError, shown
from stssl.base.json_types import JsonObject
from stssl.base.paths import WEIGHT_KINDS, is_url
from stssl.models.backbones import OWN, Backbone, make_backbone
from stssl.models.sealed import UNREADABLE, read_with_header
from stssl.models.weight_fitting import COUNTERS, fit_weights
from stssl.models.weight_sources import Checkpoint, first_kernel, hub_file, open_file, packaged_file
from stssl.models.weights import broken_tensors
from stssl.students.description import KEY, ModelDescription, parse_description
from stssl.students.loading import weights_file

MOST_TRIED = 40
"""Largest number of backbones to try: each takes about a tenth of a second."""
MOST_LISTED = 6
"""Largest number of names that a line lists."""
WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
"""Usual widths of vision transformers, and the words in timm's names for them."""


class Closest(NamedTuple):
    """Say how a file of weights that fits no backbone differs from the backbone that is closest to it.

    Attributes:
        backbone: Name of the closest backbone: its tensors have the most names in common with the file.
        shared: Number of tensors with the same name in the file and the backbone.
        reshaped: Names of tensors that have another shape in the backbone than in the file.
        lacking: Names of the backbone's tensors that the file lacks.
        unknown: Names of the file's tensors that the backbone lacks.
    """

    backbone: str
    shared: int
    reshaped: list[str]
    lacking: list[str]
    unknown: list[str]


@dataclass
class InspectedWeights:
    """Describe a file of network weights: its tensors, bands and origin, and the backbones that the weights fit.

    Attributes:
        path: Path of the file.
        layout: Programs that wrote the file, in words.
        tensors: Number of tensors of the network.
        numbers: Number of values in these tensors.
        bands: Number of bands that the first layer reads; None if no layer reads images.
        band_names: Names of the bands; empty if unknown.
        known_as: Title of published weights; empty if the file is none that is known.
        page: Page that publishes them.
        license: License that this page names; empty if it names none.
        network: Network that the file says it holds; empty if it does not say it.
        backbone_args: Further arguments of that network, if an export of this program names them.
        classes: Names of the outputs, if an export of this program names them.
        not_finite: Tensors with NaN or infinite numbers, in words. Training and probes refuse such weights.
        aside: Number of tensors that do not belong to the network, such as those of a momentum encoder, by the first
            part of their names.
        fits: Backbones that the weights fit. Two of them can have the same tensors and compute different numbers.
        tried: Number of backbones that were tried.
        skipped: Number of further backbones, with the same name of the first layer, that were not tried.
        unused: Names of tensors that the first fitting backbone does not take, such as those of a head. All names if no
            backbone is close.
        closest: The closest backbone, if none fits.
    """

    path: str
    layout: str
    tensors: int
    numbers: int
    bands: int | None
    band_names: tuple[str, ...] = ()
    known_as: str = ""
    page: str = ""
    license: str = ""
    network: str = ""
    backbone_args: JsonObject = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    not_finite: list[str] = field(default_factory=list)
    aside: dict[str, int] = field(default_factory=dict)
    fits: list[str] = field(default_factory=list)
    tried: int = 0
    skipped: int = 0
    unused: list[str] = field(default_factory=list)
    closest: Closest | None = None

    def lines(self) -> list[str]:
        """Return the description of the file as lines of text for the user, with one fact in a line."""
        bands = "none: no layer reads images"
        if self.bands is not None:
            names = ", ".join(self.band_names) or "the file does not name them: give model.weights_bands"
            bands = f"{self.bands}: {names}"
        known = f"{self.known_as} ({self.license or 'license not stated'}; {self.page})" if self.known_as else ""
        given = ", ".join(f"{key}={value}" for key, value in self.backbone_args.items())
        rows = {
            "file": f"{self.path}, {Path(self.path).stat().st_size / 1e6:.1f} MB",
            "layout": self.layout,
            "tensors": f"{self.tensors} with {self.numbers:,} numbers",
            "bands": bands,
            "known": known,
            "network": self.network + (f" with model.backbone_args {given}" if given else ""),
            "classes": _listed(self.classes),
            "damaged": _listed(self.not_finite),
            "set aside": _listed([f"{part} ({count})" for part, count in self.aside.items()]),
            "fits": self._fits(),
            "not used": _listed(self.unused),
            "closest": self._closest(),
        }
        return [f"{what:<10}{text}" for what, text in rows.items() if text]

    def _fits(self) -> str:
        """Return the text that names the backbones that the weights fit, and says how reliable this list is."""
        if not self.tried:
            return "no backbone: none has such a first layer"
        found = ", ".join(self.fits) or f"none of {self.tried} backbones that were tried"
        if len(self.fits) > 1:
            found += ": the names and shapes do not tell these apart, and some compute different numbers"
        if self.fits and self.fits == [self.network]:
            found += ": the file says that it is of this network, so no other was tried"
        return found + (f" ({self.skipped} more were not tried)" if self.skipped and not self.network else "")

    def _closest(self) -> str:
        if self.closest is None:
            return ""
        _, shared, *differences = self.closest
        words = ("of other shapes", "lacking", "not understood")
        told = [
            f"{len(names)} {what}: {_listed(names)}" for what, names in zip(words, differences, strict=True) if names
        ]
        return f"{self.closest.backbone}: {shared} tensors of the same name; {'; '.join(told)}"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def report_of_weights(path: str | Path) -> InspectedWeights:
    """Return a description of a file of network weights: its tensors, its origin, and the backbones that it fits.

    The file is read without running code from it.

    Args:
        path: File of weights, of this or another program. Or a run's folder, or a value of `model.weights`.

    Raises:
        ConfigError: The file cannot be read, or it holds no network.
    """
    try:
        file = local_file(str(path))
        found, described = open_file(file), _described(Path(file))
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("model.weights: ")) from None
    kernel, known = first_kernel(found.tensors), found.known
    about = InspectedWeights(
        file,
        found.layout,
        len(found.tensors),
        sum(value.numel() for value in found.tensors.values()),
        None if kernel is None else kernel.shape[1],
        found.bands or (),
        known_as=known.title if known else "",
        page=known.source if known else "",
        license=known.license if known else "",
        network=found.arch or "",
        not_finite=broken_tensors(found.tensors),
        aside=dict(Counter(name.split(".")[0] for name in found.aside)),
    )
    if described is not None:
        network = described.network
        about.network, about.backbone_args = network.backbone, network.backbone_args
        about.band_names = tuple(band.name for band in described.bands)
        about.classes = tuple(one.name for one in described.classes)
        about.layout = "stssl's export"
    _try_backbones(found, about)
    return about


def local_file(text: str) -> str:
    """Return the path of the file of weights that a user names: by its path, a run's folder or a value of the recipe.

    Args:
        text: Path of a file or of a run's folder, or a value of `model.weights`, such as `hf:NAME`.

    Raises:
        ConfigError: There is no such file, or the text names no single file.
    """
    kind, _, place = text.partition(":")
    if kind not in WEIGHT_KINDS and is_url(text):
        raise ConfigError(f"{shown(text)} is a URL. Download the file, and give its path.")
    if text in ("none", "imagenet") or kind == "timm":
        raise ConfigError(
            f"{text} names no single file. timm's weights lie at Hugging Face: give for example "
            "hf:timm/resnet50.a1_in1k, or the path of a file."
        )
    if kind == "hf" and place:
        return hub_file(text, place)
    if kind == "package" and place:
        return str(packaged_file(place))
    named = place if kind in ("file", "run") and place else text
    return str(weights_file(named)) if kind == "run" or Path(named).is_dir() else named


def _described(path: Path) -> ModelDescription | None:
    """Return the description of the network in the header of a file, if this program exported the file; else None.

    Return None, too, if the header cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        header = read_with_header(path)[1]
    # The weights could be read before, so another program must have changed the file in between. The weights in memory
    # can still be described, so go on without the header.
    except (OSError, *UNREADABLE):
        return None
    return parse_description(header[KEY], path) if KEY in header else None


def _try_backbones(found: Checkpoint, about: InspectedWeights) -> None:
    """Try to load weights into likely backbones, and write into `about` which of them fit, or the closest one.

    Args:
        found: Weights as read from the file.
        about: Description of the file, to complete.
    """
    if about.bands is None:
        about.unused = list(found.tensors)
        return
    if about.network:
        _try_names([about.network], about.bands, found, about)
    if not about.fits and not about.backbone_args:
        names = [name for name in _candidates(found) if name != about.network]
        about.skipped = max(0, len(names) - MOST_TRIED)
        _try_names(names, about.bands, found, about)
    if about.fits:
        about.closest = None
    elif about.closest is None:
        about.unused = list(found.tensors)
    if not about.fits and (about.closest is None or 2 * about.closest.shared < about.tensors):
        about.layout = about.layout.replace("timm's names", "names of no network that is known")


def _try_names(names: list[str], bands: int, found: Checkpoint, about: InspectedWeights) -> None:
    """Try to load weights into the first `MOST_TRIED` of the named backbones, and write into `about` which of them fit.

    Args:
        names: Names of backbones, the likeliest first.
        bands: Number of bands that the weights' first layer reads.
        found: Weights as read from the file.
        about: Description of the file, to complete.
    """
    for name in names[:MOST_TRIED]:
        backbone = _without_memory(name, about.backbone_args, bands)
        if backbone is None:
            continue
        about.tried += 1
        try:
            unused = fit_weights(backbone, found).unexpected
        # A ConfigError means other tensors, a RuntimeError position embeddings of another size: neither is a fit.
        except (ConfigError, RuntimeError):
            _note_closest(name, backbone, found, about)
        else:
            about.unused = about.unused or [one for one in unused if one not in found.aside]
            about.fits.append(name)


def _without_memory(name: str, options: JsonObject, bands: int) -> Backbone | None:
    """Build a backbone whose tensors have shapes but no values, so that it needs no memory.

    Args:
        name: Name of the backbone.
        options: Further arguments of the backbone.
        bands: Number of bands of its images.

    Returns:
        The backbone; None if it cannot be built in this way, for example because its constructor needs values.
    """
    try:
        with torch.device("meta"):
            return make_backbone(name, options, size=224, in_channels=bands, classes=2, hub=False)
    except (ConfigError, RuntimeError):
        return None


def _note_closest(name: str, backbone: Backbone, found: Checkpoint, about: InspectedWeights) -> None:
    """Write into `about` how a backbone differs from the weights, if it is the closest one so far.

    The closest backbone has the most names of tensors in common with the weights.

    Args:
        name: Name of the backbone.
        backbone: Backbone that the weights do not fit.
        found: Weights as read from the file.
        about: Description of the file, to complete.
    """
    own, given = backbone.state_dict(), found.tensors
    shared = [one for one in given if one in own]
    if shared and (about.closest is None or len(shared) > about.closest.shared):
        head = str(getattr(backbone, "default_cfg", {}).get("classifier", "fc"))
        about.closest = Closest(
            name,
            len(shared),
            [one for one in shared if own[one].shape != given[one].shape and not one.startswith(head)],
            [one for one in own if one not in given and not one.endswith(COUNTERS) and not one.startswith(head)],
            [one for one in given if one not in own],
        )


def _candidates(found: Checkpoint) -> list[str]:
    """Return the names of backbones that the weights `found` in a file may fit, the likeliest first.

    Their first layer has the same name as in the file, and the names of their tensors are the most similar ones.
    """
    from timm.models import get_pretrained_cfg

    kernel = next((name for name, value in found.tensors.items() if value.ndim == 4), "")
    out, _, patch, _ = found.tensors[kernel].shape
    plain = frozenset(re.sub(r"\d+", "#", name) for name in found.tensors)
    fitting = []
    for module, names in _families():
        likely = [name for name in names if kernel in _first_layers(get_pretrained_cfg(name, True))]
        if not likely or (found.arches and not any(name.startswith(found.arches) for name in likely)):
            continue
        # Build only one backbone of each module of timm, to save time: inside a module, tensors have similar names.
        one = _without_memory(min(likely, key=lambda name: (name.startswith("test_"), len(name))), {}, 3)
        if one is not None:
            own = frozenset(re.sub(r"\d+", "#", name) for name in one.state_dict())
            fitting.append((len(own & plain) / len(own | plain), module, likely))
    best = max((share for share, _, _ in fitting), default=0.0)
    near = [name for share, _, likely in fitting if share > 0.8 * best for name in likely]
    said = found.arch or found.arches

    def unlikely(name: str) -> tuple[bool, bool, bool, int, str]:
        sides = re.search(r"patch(\d+)", name)
        return (
            not (said and name.startswith(said)),
            sides is not None and int(sides[1]) != patch,
            sides is not None and WIDTHS.get(out, "") not in name,
            len(name),
            name,
        )

    near = [name for name in near if name.startswith(found.arches)]
    return [*(OWN if not found.arches and kernel == "conv1.weight" else ()), *sorted(near, key=unlikely)]


def _families() -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each module of timm that defines backbones, with the names of these backbones."""
    from timm.models import list_models, list_modules

    for module in list_modules():
        yield module, list_models(module=module)


def _first_layers(config: object) -> list[str]:
    """Return the names of the weight tensors with which a backbone reads the image's bands.

    `config` is timm's description of the backbone.
    """
    first = getattr(config, "first_conv", None)
    return [f"{one}.weight" for one in (first if isinstance(first, tuple | list) else [first]) if one]
