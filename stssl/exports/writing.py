"""Export a run: write its student (the trained network) for other programs into a folder, whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from stssl.base.errors import ConfigError, RunError, shown
from stssl.base.mirror import mirror_of
from stssl.base.outputs import naming_url
from stssl.base.paths import folder_given, is_url
from stssl.base.whole_files import cannot_write, is_there, sync_folder
from stssl.exports.card import model_card
from stssl.exports.facts import (
    CARD,
    CONFIG,
    ITEM,
    MAP,
    Exported,
    check_license,
    config_of,
    model_name,
    read_config,
    read_scores,
)
from stssl.exports.graphs import graph_file, require_onnx
from stssl.exports.places import places_svg
from stssl.exports.stac import stac_item
from stssl.exports.torchvision_weights import bands_entry, chosen_bands, exported_bands, torchvision_weights
from stssl.models.fetched_weights import run_of_weights
from stssl.models.sealed import seal
from stssl.students.description import ModelDescription
from stssl.students.loading import DescribedFile, network_of, read_described
from stssl.students.samples import REWRITE, SAMPLES_FILE, Samples, read_samples
from stssl.students.student import Student

ExportFormat = Literal["pt2", "onnx", "torchvision"]
FILES = {"pt2": "student.pt2", "onnx": "student.onnx", "torchvision": "backbone.safetensors"}
"""Name of the model file of each format."""
EXPORT_FILES = (*FILES.values(), CONFIG, CARD, MAP, ITEM)
"""Files that an export writes."""
EXPORT_FOLDER = "export"
"""Default folder inside the run's folder."""
TAKEN = ("checkpoints", "evaluation", "tensorboard", "probe")
"""Folders of a run that hold other files."""


def export_run(
    place: str | Path,
    kind: str = "pt2",
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    license: str | None = None,
) -> Path:
    """Write a run's student for other programs, with a model card and a description. Compare the file with the student.

    Args:
        place: Folder of a run, or the weights file of a student or encoder in it.
        kind: `pt2`, `onnx` or `torchvision`.
        out: Folder to write; None takes the folder `export` inside the run's.
        bands: Three bands for torchvision's models; None takes all bands of the student.
        license: License of the weights (SPDX). None keeps that of an earlier export, or else of the weights file.

    Returns:
        Absolute path of the model file.

    Raises:
        ConfigError: An argument is wrong, the file is no student, or a package is missing.
        RunError: The folder holds other files or has another license, or cannot be written; the format lacks an
            operator, or the file gives other logits than the student. Nothing is written then.
    """
    form, chosen_license = _checked(kind, bands), check_license(license)
    described = read_described(place)
    source, description = described.path, described.description
    _check_kind(source, description, form)
    if form == "torchvision":
        chosen_bands(description, bands)
    run = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    target = (run / EXPORT_FOLDER if out is None else Path(out)).absolute()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    earlier = _claim(target, run.absolute(), digest)
    facts = Exported(
        name=model_name(run.absolute().name),
        description=description,
        digest=digest,
        files={},
        difference={},
        scores=read_scores(run),
        license=_license(target, earlier, chosen_license) or description.training.license,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise RunError(cannot_write(target, error)) from None
    try:
        # Write into another folder first: `target` must never have a file that was not compared with the student.
        differences, samples = _write_model(form, part / FILES[form], described, bands)
        _keep_earlier(earlier, target, part)
        _write_documents(facts, described, _earlier_differences(earlier) | differences, samples, part)
        _move(part, target)
    except OSError as error:
        raise RunError(cannot_write(target, error)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target / FILES[form]


def export_to(
    place: str | Path,
    kind: str = "pt2",
    out: str | Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    license: str | None = None,
) -> Path | str:
    """Write a run's student for other programs, with a model card and a description. Compare the file with the student.

    Run and output may lie on a disk or in an object store.

    Args:
        place: Folder of a run, or the weights file of a student or encoder in it; a path or URL.
        kind: `pt2`, `onnx` or `torchvision`.
        out: Path or URL of the folder to write; None takes the folder `export` inside the run's.
        bands: Three bands for torchvision's models; None takes all bands of the student.
        license: License of the weights (SPDX). None keeps that of an earlier export, or else of the weights file.

    Returns:
        Path of the model file, or its URL if it was written to an object store.

    Raises:
        StsslError: An argument is wrong, the student cannot be exported, or the folder cannot be used. Or the object
            store refuses files, or does not answer.
    """
    run = run_of_weights(str(place)) if is_url(str(place)) else None
    if out is None and run is not None:
        out = f"{run}/{EXPORT_FOLDER}"
    if out is None or not is_url(str(out)):
        return export_run(place, kind, out, bands=bands, license=license)
    url = folder_given(out, "--out")
    if run is not None and (url == run or url.startswith(tuple(f"{run}/{name}" for name in TAKEN))):
        raise RunError(f"--out {url}: the run keeps its own files there. Give {run}/{EXPORT_FOLDER} or another folder.")
    mirror = mirror_of(url)
    strangers = set(mirror.pull(lambda name: name in EXPORT_FILES)) - set(EXPORT_FILES)
    if strangers:
        raise _not_ours(url, min(strangers))
    with naming_url(mirror.folder, url):
        made = export_run(place, kind, mirror.folder, bands=bands, license=license)
    # Send `config.json` last, as `_move` does on a disk: a folder without this file counts as unfinished.
    mirror.remote.remove(CONFIG)
    mirror.push(lambda name: name != CONFIG)
    mirror.push(lambda name: name == CONFIG)
    return f"{url}/{made.name}"


def _not_ours(target: Path | str, stranger: str) -> RunError:
    return RunError(f"--out {target} holds other files ({shown(stranger)}). Give an empty or a new folder.")


def _checked(kind: str, bands: Sequence[str] | None) -> ExportFormat:
    """Check that the format of an export is known, and that bands and packages fit it. Return the format.

    Args:
        kind: Format that the user gave.
        bands: Names of bands that the user chose, or None.

    Raises:
        ConfigError: The format is unknown, does not let the user choose bands, or needs a package that is missing.
    """
    if kind not in get_args(ExportFormat):
        raise ConfigError(f"--format {shown(kind)}: give pt2, onnx or torchvision.")
    if bands is not None and kind != "torchvision":
        raise ConfigError(
            f"--bands: only --format torchvision chooses bands. A {kind} file takes all of the student's."
        )
    if kind == "onnx":
        require_onnx()
    return cast(ExportFormat, kind)


def _check_kind(source: Path, description: ModelDescription, form: ExportFormat) -> None:
    if description.network.role == "encoder" and form != "torchvision":
        raise ConfigError(f"{source} is a pretrained encoder and has no classes: only --format torchvision exports it.")


def _claim(target: Path, run: Path, digest: str) -> dict[str, object]:
    """Check that an export may be written into a folder. Return the `config.json` of an earlier export in it.

    Return an empty dict if the folder has no earlier export of this student.

    Args:
        target: Folder of the export.
        run: Folder of the run that is exported.
        digest: SHA-256 of the student's weights file.

    Raises:
        RunError: The folder has other files or the export of another student, or the run needs it for other files.
    """
    if target == run or (target.parent == run and target.name in TAKEN):
        raise RunError(
            f"--out {target}: the run keeps its own files there. Give another folder, such as {run / EXPORT_FOLDER}."
        )
    if not is_there(target):
        return {}
    if not target.is_dir():
        raise RunError(f"--out {target} is a file. Give a folder.")
    names = {path.name for path in target.iterdir()}
    if not names:
        return {}
    if CONFIG not in names and names <= set(EXPORT_FILES) and names & {MAP, ITEM, *FILES.values()}:
        return {}  # the files are from an export that was killed before it wrote `config.json`: overwrite all of them
    earlier = read_config(target / CONFIG)
    if earlier is None or not names <= set(EXPORT_FILES):
        raise _not_ours(target, min(names - set(EXPORT_FILES), default=CONFIG))
    if earlier["student"] != digest:
        raise RunError(f"--out {target} holds the export of another student. Remove that folder, or give another one.")
    return {**earlier}


def _license(target: Path, earlier: dict[str, object], given: str | None) -> str | None:
    """Return the license of an earlier export in the folder, or else the one that the user gave, or else None.

    Args:
        target: Folder of the export, for messages.
        earlier: Contents of the earlier `config.json`; empty without one.
        given: License that the user gave.

    Raises:
        RunError: The folder holds an export with another license than the given one.
    """
    known = earlier.get("license")
    if not isinstance(known, str):
        return given
    if given is not None and given != known:
        raise RunError(
            f"--license {given}: {target} holds an export of this student with the license {known}. Remove that "
            "folder, give another one, or leave --license out."
        )
    return known


def _write_model(
    form: ExportFormat, path: Path, described: DescribedFile, bands: Sequence[str] | None
) -> tuple[dict[str, float], Samples | None]:
    """Write the model file, and compare it with the student if the format is pt2 or ONNX.

    Args:
        form: Format of the file.
        path: File to write.
        described: Weights file of the student or encoder.
        bands: Names of three bands for torchvision's models; None takes all bands.

    Returns:
        Two values: the largest difference between the logits of file and student, by file name (empty for
        torchvision), and the sample patches and places that the run stored (None if it stored none).

    Raises:
        RunError: The run stored no sample patches, or the file gives other logits than the student.
    """
    source, description, weights = described
    samples_file = source.parent / SAMPLES_FILE
    if form == "torchvision":
        _put(path, seal(torchvision_weights(description, weights, bands), bands_entry(description, bands)))
        return {}, read_samples(samples_file) if is_there(samples_file) else None
    if not is_there(samples_file):
        raise RunError(
            f"cannot export {source} as {form}: {SAMPLES_FILE} is not beside it. The run keeps some patches there, and "
            "the exported file is compared on them. Give the run's folder, or copy its whole folder checkpoints. If "
            f"the run itself lacks the file: {REWRITE}"
        )
    samples = read_samples(samples_file)
    student = Student(description, network_of(source, description, weights))
    if samples.images.shape[1] != len(student.bands):
        raise RunError(f"{samples_file} has other bands than the student. Put back the run's own file.")
    content, difference = graph_file(student, form, samples)
    _put(path, content)
    return {path.name: difference}, samples


def _put(path: Path, content: str | bytes) -> None:
    """Write `content` as the file `path`, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _earlier_differences(earlier: dict[str, object]) -> dict[str, float]:
    known = earlier.get("difference")
    return {str(name): float(value) for name, value in known.items()} if isinstance(known, dict) else {}


def _keep_earlier(earlier: dict[str, object], target: Path, part: Path) -> None:
    """Copy model files of an earlier export of the same student into `part`, the folder of the new export.

    So the model card names them too. Leave out files that have changed since the earlier export, and files
    that the new export has written itself.

    Args:
        earlier: Contents of the earlier `config.json`.
        target: Folder of the earlier export.
        part: Folder of the new export.
    """
    files = earlier.get("files")
    for name, digest in files.items() if isinstance(files, dict) else ():
        path = target / name
        if name in FILES.values() and path.is_file() and not (part / name).exists() and _digest(path) == digest:
            shutil.copyfile(path, part / name)


def _write_documents(
    facts: Exported, described: DescribedFile, differences: dict[str, float], samples: Samples | None, part: Path
) -> None:
    """Write the files beside the model files in the folder `part`: model card, map, STAC item and `config.json`.

    Args:
        facts: What these files state about the student, except for the hashes and differences of files.
        described: The student's weights file.
        differences: Largest difference between the logits of a file and of the student, by file name.
        samples: Patches and places of the run; None makes a map without places.
        part: Folder with the model files.
    """
    files = {name: _digest(part / name) for name in FILES.values() if (part / name).exists()}
    backbone = part / FILES["torchvision"]
    full = replace(
        facts,
        files=files,
        difference={name: differences[name] for name in files if name in differences},
        backbone_bands=exported_bands(backbone) if backbone.exists() else (),
    )
    has_item = any(name.endswith((".pt2", ".onnx")) for name in files)
    places = samples.places if samples else np.zeros((0, 2), np.float32)
    _put(part / MAP, places_svg(places))
    _put(part / CARD, model_card(full, has_item=has_item))
    if has_item:
        network = network_of(*described)
        parameters = sum(value.numel() for value in network.parameters())
        _put(part / ITEM, json.dumps(stac_item(full, datetime.now(UTC), parameters), indent=1))
    _put(part / CONFIG, json.dumps(config_of(full), indent=1))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _move(part: Path, target: Path) -> None:
    """Move all files of the folder `part` into the folder `target`. Make `target` if it is missing.

    Move `config.json` last: a folder without this file counts as unfinished.
    """
    part.chmod(0o755)
    if not target.exists():
        part.rename(target)
    else:
        with suppress(FileNotFoundError):
            (target / CONFIG).unlink()
        for path in sorted(part.iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(target / path.name)
        sync_folder(target)
    sync_folder(target.parent)
