"""Make tiny stores without Ray, from generated JPEGs in EuroSAT's layout. Color and place show the class."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image

from stssl.archives.conversion import Options, convert_archive
from stssl.archives.nomenclature import EUROSAT
from stssl.archives.synthetic import synthesize_archive
from stssl.base.hashing import column_hash
from stssl.store.zarr_metadata import description_hashes


def write_eurosat(folder: Path, per_class: int = 20, seed: int = 0) -> tuple[Path, Path]:
    """Write folders of JPEGs, one for each class, and a table of coordinates. Return the paths of both."""
    rng = np.random.default_rng(seed)
    archive, table = folder / "2750", folder / "places.csv"
    with_places = [["filepath", "class", "latitude", "longitude"]]
    for label, name in enumerate(EUROSAT):
        (archive / name).mkdir(parents=True)
        for number in range(per_class):
            color = 40 + 17 * label + rng.normal(0, 12, 3)
            pixels = np.clip(color + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(archive / name / f"{name}_{number + 1}.jpg", quality=90)
            place = [str(45 + label / 3 + rng.uniform(0, 4)), str(5 + rng.uniform(0, 6))]
            with_places.append([f"{name}/{name}_{number + 1}.jpg", name, *place])
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(with_places)
    return archive, table


def tiny_bigearthnet(folder: Path, patches: int = 120) -> Path:
    """Make and convert a tiny synthetic archive in BigEarthNet's layout. Return the store's path."""
    archive = synthesize_archive(folder / "archive", patches=patches, seed=1)
    convert_archive("bigearthnet-v1", archive, folder / "big.zarr", Options(workers=0, shard=64))
    return folder / "big.zarr"


def tiny_store(folder: Path, per_class: int = 20) -> Path:
    """Write a tiny archive in EuroSAT's layout, and convert it. Return the store's path."""
    archive, table = write_eurosat(folder, per_class)
    convert_archive("eurosat", archive, folder / "tiny.zarr", Options(workers=0, shard=64), coordinates=table)
    return folder / "tiny.zarr"


def relabel(store: Path, row: int, label: int) -> None:
    """Change one label of a tiny store, and the hash of the label column, as if it was converted with that label."""
    values = zarr.open_array(str(store), path="label", mode="r+")
    values[row] = label
    group = json.loads((store / "zarr.json").read_text())
    group["attributes"]["column_hashes"]["label"] = column_hash(np.asarray(values[:]))
    seal(store, group)


def seal(store: Path, group: dict[str, Any]) -> None:
    """Write the metadata of a store's root group, with hashes that fit it."""
    arrays = group["consolidated_metadata"]["metadata"]
    group["attributes"]["description_hashes"] = description_hashes(group["attributes"], arrays)
    (store / "zarr.json").write_text(json.dumps(group))


def tiny_recipe(store: Path, runs: Path) -> dict[str, Any]:
    """Return a recipe, as nested mappings, that trains on `tiny_store` in a second, in this process."""
    return {
        "name": "run",
        "data": {"store": str(store), "labels": "label", "scale": "bytes"},
        "labels": {"per_class": 3},
        "model": {
            "backbone": "slim_resnet",
            "backbone_args": {"channels": [4, 8, 8, 8]},
            "image_size": 16,
            "metadata": "teacher",
            "injection": {"name": "late"},
        },
        "algorithm": {"name": "fixmatch", "threshold": 0.3},
        "batch": {"labeled": 8, "unlabeled_ratio": 2},
        "augment": {"strong_labeled": True},
        "optimizer": {"lr": 0.003},
        "schedule": {"steps": 12, "warmup": 2, "supervised_start": 2, "evaluate_every": 4},
        "ema": {"decay": 0.9},
        "evaluation": {"batch": 32, "batchnorm_batches": 1},
        "launch": {"workers": 0, "storage": str(runs)},
        "compute": {"threads": 1},
        "logging": {"every": 2, "tensorboard": False},
    }
