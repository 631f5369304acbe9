"""The commands of the page on object stores, as they are written, with an S3 server on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from s3_server import environment, s3_server

PAGE = Path(__file__).parents[2] / "docs/how/object_storage.md"
SMALL = "schedule.steps=4 schedule.warmup=0 schedule.evaluate_every=2 evaluation.limit=16 evaluation.batch=8"
CHANGES = {
    "stssl train eurosat/fixmatch_votes_cpu": f"{SMALL} schedule.supervised_start=0 batch.labeled=4 launch.workers=0",
    "stssl pretrain pretrain/cpu": f"{SMALL} pretext.queue=64 pretext.geo.k=4 batch.size=8 launch.workers=0",
    "stssl sweep sweeps/cpu": "trials=1 scheduler.name=none "
    + " ".join(f"change.{word}" for word in f"{SMALL} schedule.supervised_start=0 launch.workers=0".split()),
}
"""What is added to commands: fewer steps, and training in the process of the command."""


def commands():
    """Commands of the first console block."""
    block = re.search(r"```console\n(.*?)```", PAGE.read_text(), re.S)
    return [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ stssl")]


def test_the_page_names_each_command():
    words = {line.split()[1] for line in commands()}
    assert words == {"train", "pretrain", "sweep", "evaluate", "report", "export", "predict"}


@pytest.mark.slow
def test_commands_of_the_page_readme(tmp_path):
    tiny.tiny_store(tmp_path).rename(tmp_path / "eurosat.zarr")
    tiny.tiny_bigearthnet(tmp_path).rename(tmp_path / "synthetic.zarr")
    with s3_server() as server:
        variables = os.environ | environment(server) | {"STSSL_RUN_CACHE": str(tmp_path / "cache")}
        variables |= {"EUROSAT": "eurosat.zarr", "SYNTHETIC": "synthetic.zarr"}
        for line in commands():
            added = next((words for start, words in CHANGES.items() if line.startswith(start)), "")
            words = [sys.executable, "-m", "stssl.commands.cli", *line.split()[1:], *added.split()]
            done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stderr)
    assert "bucket/tables/eurosat.parquet" in {name.replace("my-bucket", "bucket") for name in server.objects}
    assert (tmp_path / "report.html").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("s3", "runs", "sweeps"))]
