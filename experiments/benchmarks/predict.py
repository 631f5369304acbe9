"""Measure how fast `stssl predict` maps a large scene, and how much memory it takes.

    python experiments/benchmarks/predict.py --side 10980 --threads 2 --repeats 3 --json predict.json

The script generates a scene of 12 bands (uint16, 10 m) and a ResNet-18 for windows of 120 pixels with random weights.
It compares three paths, with one thread each: the network alone on tensors in memory, one process, and two Ray workers.
Rates are windows a second between the first and the last block, so they leave out the start of Python and Ray. Memory
is the largest resident size of the process that writes the map.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
WINDOW, BATCH, CLASSES = 120, 64, 19


def write_scene(path: Path, side: int) -> None:
    """Write a tiled GeoTIFF [12, side, side] of random numbers; tiles repeat."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    tile, rng = 1024, np.random.default_rng(0)
    values = rng.integers(1, 4000, (len(BANDS), tile, tile)).astype(np.uint16)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": len(BANDS), "dtype": "uint16"}
    profile |= {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_500_000, 10, 10), "tiled": True}
    profile |= {"blockxsize": 512, "blockysize": 512, "interleave": "band", "bigtiff": "if_safer"}
    with rasterio.open(path, "w", **profile) as file:
        for row in range(0, side, tile):
            for column in range(0, side, tile):
                height, width = min(tile, side - row), min(tile, side - column)
                file.write(values[:, :height, :width], window=Window(column, row, width, height))
        for index, name in enumerate(BANDS, 1):
            file.set_band_description(index, name)


def write_student(path: Path) -> None:
    """Write a ResNet-18 of 12 bands with random weights as a student's file."""
    from stssl.models import build_network
    from stssl.models.encoders import RawConfig
    from stssl.models.injection import NoInjectionConfig
    from stssl.models.sealed import seal
    from stssl.students.description import (
        KEY,
        BandDescription,
        ClassDescription,
        ImageDescription,
        ModelDescription,
        NetworkDescription,
        TrainingDescription,
    )
    from stssl.students.loading import DUMMY_PLACES

    network = build_network(
        backbone="resnet18",
        backbone_args={},
        image_size=WINDOW,
        in_channels=len(BANDS),
        classes=CLASSES,
        encoder=RawConfig(),
        injection=NoInjectionConfig(),
        role="plain",
        weights="none",
        distill=False,
        places=DUMMY_PLACES,
    )
    bands = tuple(
        BandDescription(name=name, mean=2000.0, std=1000.0, low=0.0, high=4000.0, dtype="uint16", meters=10.0)
        for name in BANDS
    )
    classes = tuple(ClassDescription(name=f"class {n}", color=f"#{n * 13:02x}8040") for n in range(CLASSES))
    description = ModelDescription(
        network=NetworkDescription(backbone="resnet18", role="plain", injection=NoInjectionConfig()),
        image=ImageDescription(pixels=WINDOW, stored_pixels=WINDOW, meters=10.0 * WINDOW, scaling="sigmas", bits=16),
        bands=bands,
        classes=classes,
        task="single-label",
        cdmad=False,
        training=TrainingDescription(
            source="generated", patches=0, labeled=0, box=None, months=(), recipe={}, hashes={}, versions={}
        ),
    )
    path.write_bytes(seal(dict(network.state_dict()), {KEY: description.text()}))


def in_memory(student: Path, batches: int) -> float:
    """Return the windows a second of the student alone, on a batch of tensors in memory."""
    import torch

    from stssl.students.loading import read_student

    torch.set_num_threads(1)
    network, images = read_student(student), torch.rand(BATCH, len(BANDS), WINDOW, WINDOW) * 4000
    with torch.inference_mode():
        network(images)
        start = time.perf_counter()
        for _ in range(batches):
            network(images)
    return batches * BATCH / (time.perf_counter() - start)


def predicted(folder: Path, workers: int, stride: int) -> dict[str, float]:
    """Map the scene in a process of its own. Return windows a second and the peak of its memory in bytes."""
    words = [sys.executable, __file__, "--child", str(folder), "--threads", str(workers), "--stride", str(stride)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(folder: Path, workers: int, stride: int) -> None:
    """Map the scene in this process, and print what `predicted` returns."""
    import resource

    import torch

    from stssl.mapping.prediction import MapOptions, predict_scene

    torch.set_num_threads(1)
    times: list[tuple[float, int]] = []
    options = MapOptions(stride=stride, batch=BATCH, device="cpu", workers=0 if workers == 1 else workers)
    made = predict_scene(
        [folder / "student.safetensors"],
        [folder / "scene.tif"],
        folder / f"map{workers}.tif",
        options,
        lambda done, of: times.append((time.perf_counter(), done * 1_000_000 // of)),
    )
    # Begin at the first finished block of each worker: before it, workers start.
    (first, before), (last, after) = times[min(workers, len(times) - 2)], times[-1]
    rate = made.windows * (after - before) / 1_000_000 / (last - first)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rate": rate, "peak": peak, "seconds": time.perf_counter() - times[0][0]}))


def main() -> None:
    """Read the options, measure all paths several times, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_980, help="height and width of the scene in pixels")
    parser.add_argument("--stride", type=int, default=WINDOW)
    parser.add_argument("--threads", type=int, default=2, help="Ray workers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.threads, options.stride)
        return
    found: dict[str, list[float]] = {"in memory": [], "one process": [], "workers": [], "peak": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder / "scene.tif", options.side)
        write_student(folder / "student.safetensors")
        for _ in range(options.repeats):
            found["in memory"].append(in_memory(folder / "student.safetensors", 8))
            one, several = (predicted(folder, workers, options.stride) for workers in (1, options.threads))
            found["one process"].append(one["rate"])
            found["workers"].append(several["rate"])
            found["peak"].append(one["peak"])
    rate = {path: statistics.median(values) for path, values in found.items()}
    # Each repetition is a pair, measured at the same time: the machine's load cancels out.
    share = statistics.median(a / b for a, b in zip(found["one process"], found["in memory"], strict=True))
    gain = statistics.median(a / b for a, b in zip(found["workers"], found["one process"], strict=True))
    for path in ("in memory", "one process", "workers"):
        print(f"{path:<14}{rate[path]:>10,.1f} windows/s")
    rows = [
        {"what": "peak of memory, GB", "measured": rate["peak"] / 1e9, "at most": 2.0},
        {"what": "one process / network in memory", "measured": share, "at least": 0.8},
        {"what": f"{options.threads} workers / one process", "measured": gain, "at least": 1.6},
    ]
    for row in rows:
        limit = next((key, value) for key, value in row.items() if key.startswith("at "))
        print(f"{row['what']:<34}{row['measured']:>8.2f}  {limit[0]} {limit[1]}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "child")}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "rates": found}, indent=1))


if __name__ == "__main__":
    main()
