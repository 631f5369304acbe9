"""Examine the machine for `stssl doctor`: list versions, hardware and free disk space, and missing packages."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from stssl import __version__
from stssl.recipes.catalog import recipe_folder, recipe_names

SHOWN_PACKAGES = ("torch", "torchvision", "timm", "ray", "zarr", "numpy", "rasterio", "optuna", "pydantic", "pyarrow")
OPTIONAL = {
    "obstore": "stores on s3://, gs:// and az://: pip install 'stssl[cloud]'",
    "mlflow": "logging.mlflow: pip install 'stssl[mlflow]'",
    "psycopg": "sweeps with study: postgresql://...: pip install 'stssl[postgres]'",
    "xarray": "Store.to_xarray(): pip install 'stssl[xarray]'",
    "onnxruntime": "stssl export --format onnx: pip install 'stssl[onnx]'",
    "ipywidgets": "progress bars in notebooks: pip install 'stssl[notebook]'",
}
"""Optional packages. The text of each names its use and how to install it."""


def examine() -> Iterator[str]:
    """Yield lines of text that describe this machine for a bug report: versions, hardware, free disk space.

    No files are written, and no processes are started.
    """
    yield f"stssl      {__version__} in {Path(__file__).parents[1]}"
    yield f"python     {platform.python_version()} in {sys.prefix}"
    yield f"system     {platform.platform()}"
    yield "packages   " + ", ".join(f"{name} {_version(name)}" for name in SHOWN_PACKAGES)
    yield from _hardware()
    yield from _disk()
    yield f"recipes    {len(recipe_names())} in {recipe_folder()}"
    for name, use in OPTIONAL.items():
        if find_spec(name) is None:
            yield f"absent     {name} (optional), for {use}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> Iterator[str]:
    """Yield lines of text about CPU, memory, bf16 instructions, each GPU, and Ray."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 lacks this function
    slow = not (cpu.get("avx512_bf16") or cpu.get("amx_bf16")) and platform.machine() == "x86_64"
    bf16 = "no bf16 instructions: use compute.precision=fp32" if slow else "bf16 instructions: compute.precision=auto"
    yield f"cpu        {cpu.get('cpu_name', platform.machine())}, {cores} cores, {memory:.0f} GiB memory, {bf16}"
    if not torch.cuda.is_available():
        yield "gpu        none that PyTorch can use: set launch.gpus_per_worker=0"
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield f"gpu {number}      {about.name}, {about.total_memory / 2**30:.0f} GiB"
    address = os.environ.get("RAY_ADDRESS")
    yield f"ray        {'cluster at ' + address if address else 'starts on this machine when it is needed'}"


def _disk() -> Iterator[str]:
    """Yield a line of text with the free space of each disk that gets results or temporary files.

    These are the disks of the working folder and of `TMPDIR`.
    """
    seen: set[int] = set()
    for name in (".", os.environ.get("TMPDIR", "/tmp")):
        path = Path(name).absolute()
        if path.exists() and path.stat().st_dev not in seen:
            seen.add(path.stat().st_dev)
            yield f"disk       {shutil.disk_usage(path).free / 1e9:.0f} GB free in {path}"
