"""Load a student from its weights file alone: the header of the file describes the student's network."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stssl.base.errors import ConfigError, first_line, shown
from stssl.base.paths import is_url
from stssl.models import Network, build_network
from stssl.models.backbones import MISFITS
from stssl.models.encoders import RawConfig
from stssl.models.fetched_weights import fetched_weights
from stssl.models.geoclip import without_file
from stssl.models.injection import NoInjectionConfig
from stssl.models.sealed import EXPORTS, UNREADABLE, WRITER, read_with_header
from stssl.students.description import KEY, ModelDescription, parse_description
from stssl.students.student import Student

STUDENT_FILE, ENCODER_FILE = EXPORTS
DUMMY_PLACES = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
"""Metadata of two patches. Some encoders need a table when they are built. The file's weights replace its effect."""


def weights_file(place: str | Path) -> Path:
    """Return the path of the weights file of a student or encoder. Download the file if it is in an object store.

    Args:
        place: The file itself, a run's folder, or its folder of checkpoints; a path or a URL.

    Raises:
        ConfigError: There is no such file or folder, or the folder has no weights file.
        DataError: The object store cannot be read.
    """
    path = fetched_weights(str(place)) if is_url(str(place)) else Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        words = f"there is no file or folder {shown(str(path), 300)}"
        raise ConfigError(f"{words}. Give a run's folder or its {STUDENT_FILE}.")
    for name in (STUDENT_FILE, ENCODER_FILE):
        for folder in (path / "checkpoints", path):
            if (folder / name).is_file():
                return folder / name
    raise ConfigError(
        f"{path} has no {STUDENT_FILE}: it is no run's folder, or the run is not finished. The command that started "
        "a run finishes it."
    )


def weights_hashes(places: Sequence[str | Path]) -> dict[str, str]:
    """Return the hash of each model's weights file, by a name of the model: BLAKE2b, 16 bytes in hexadecimal.

    The name consists of the model's number, the name of its run's folder, and the file name. So it is the same on other
    machines.

    Args:
        places: For each model, its weights file, run's folder, or folder of checkpoints.

    Raises:
        ConfigError: There is no such file.
    """
    found: dict[str, str] = {}
    for number, place in enumerate(places, 1):
        path = weights_file(place).absolute()
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        found[f"{number}:{folder.name}/{path.name}"] = digest
    return found


def different_models(places: Sequence[str | Path]) -> dict[str, str]:
    """Check that all models of an ensemble differ, and return the hashes of their weights files.

    Args:
        places: For each model, its weights file, run's folder, or folder of checkpoints.

    Returns:
        Hash of each file (BLAKE2b, 16 bytes in hexadecimal) by number, folder and file name of the model.

    Raises:
        ConfigError: There is no such file, or two models have the same weights.
    """
    found = weights_hashes(places)
    known: dict[str, str | Path] = {}
    for place, digest in zip(places, found.values(), strict=True):
        if digest in known:
            raise ConfigError(
                f"{known[digest]} and {place} are the same model: it would count twice in the mean. Give it once."
            )
        known[digest] = place
    return found


class DescribedFile(NamedTuple):
    """Hold the contents of a weights file: its path, its description, and its tensors by name."""

    path: Path
    description: ModelDescription
    weights: dict[str, Tensor]


def read_described(place: str | Path) -> DescribedFile:
    """Read a weights file, and return its path, the description of its network, and its tensors by name.

    Args:
        place: The file itself, a run's folder, or its folder of checkpoints.

    Raises:
        ConfigError: The file is no weights file, is damaged, has a newer format, or has no description.
    """
    path = weights_file(place)
    try:
        weights, header = read_with_header(path)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("model.weights: ")) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or first_line(error)}") from None
    except UNREADABLE as error:
        raise ConfigError(
            f"{path} is no model: it is not a safetensors file ({first_line(error)}). Give a run's folder or its "
            f"{STUDENT_FILE}."
        ) from None
    if KEY not in header:
        raise ConfigError(_undescribed(path, WRITER in header or path.name in EXPORTS))
    return DescribedFile(path, parse_description(header[KEY], path), weights)


def _undescribed(path: Path, ours: bool) -> str:
    """Return the message about a weights file without a description: why it has none, and what to do.

    Args:
        path: Path of the file.
        ours: True if stssl wrote the file, False if another program did.
    """
    if not ours:
        return (
            f"{path} does not describe its network: another program wrote it. To start training from it, set "
            f"model.weights=file:{path}."
        )
    return (
        f"{path} does not describe its network: an earlier release of stssl wrote it. Remove done.json of its run and "
        "give that run's command again: it writes the file anew, without training."
    )


def read_student(place: str | Path) -> Student:
    """Load and return a student, in evaluation mode and on the CPU.

    Args:
        place: File of a student, a run's folder, or its folder of checkpoints.

    Raises:
        ConfigError: The file is no student, is damaged, has a newer format, or has no description.
    """
    path, description, weights = read_described(place)
    if description.network.role == "encoder":
        raise ConfigError(
            f"{path} is a pretrained encoder and has no classes. Train from it with model.weights=file:{path}, or "
            "write it for torchvision with `stssl export RUN --format torchvision`."
        )
    return Student(description, network_of(path, description, weights))


def network_of(path: Path, description: ModelDescription, weights: dict[str, Tensor]) -> Network:
    """Build the network of a student as its description says, load its weights, and return it.

    Args:
        path: Path of the file, for messages.
        description: Description of a student.
        weights: Tensors of the file by name.

    Raises:
        ConfigError: The weights do not fit the description.
    """
    parts, role = description.network, description.network.role
    assert role != "encoder"
    encoder, injection = parts.encoder, parts.injection
    try:
        # The weights are random until they are loaded. Draw them apart from the caller's random numbers: loading
        # a student must not change what the caller's program draws next.
        with torch.random.fork_rng(devices=[]):
            network = build_network(
                backbone=parts.backbone,
                backbone_args=parts.backbone_args,
                image_size=description.image.pixels,
                in_channels=len(description.bands),
                classes=len(description.classes),
                encoder=without_file(encoder or RawConfig()),
                injection=injection or NoInjectionConfig(),
                role=role,
                weights="none",
                distill=parts.distilled,
                places=DUMMY_PLACES,
            )
        network.load_state_dict(weights)
    except (ConfigError, RuntimeError, *MISFITS) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise ConfigError(
            f"{path}: its weights do not fit its description ({shown(reason, 200)}). Copy the file again."
        ) from None
    return network
