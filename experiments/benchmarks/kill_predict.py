"""Kill a prediction at random moments, and check that the finished map equals that of an undisturbed prediction.

    python experiments/benchmarks/kill_predict.py --side 10980 --kills 10 --threads 0 --json kills.json

The script generates a scene of 12 bands and a ResNet-18, as `predict.py` does, and maps the scene without interruption.
Then it starts the same command again and again, and kills its whole group of processes (SIGKILL) a random time after
the first file of the map appears: the start of Python would take most of the kills of a small scene.
If a map is finished before its kill, it is compared and removed, and the next one begins. The last one may end. All
maps must be equal, byte by byte.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from predict import write_scene, write_student


def start(folder: Path, out: Path, workers: int, stride: int) -> subprocess.Popen[bytes]:
    """Start `stssl predict` in a group of processes of its own."""
    words = [sys.executable, "-m", "stssl", "predict", str(folder / "student.safetensors"), str(folder / "scene.tif")]
    words += ["--out", str(out), "--stride", str(stride), *(["--workers", str(workers)] if workers else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nothing = subprocess.DEVNULL
    return subprocess.Popen(words, env=environment, start_new_session=True, stdout=nothing, stderr=nothing)


def begin(folder: Path, out: Path, workers: int, stride: int) -> subprocess.Popen[bytes]:
    """Start a prediction, and wait until the first file of the map appears."""
    process = start(folder, out, workers, stride)
    while not (out.parent / f".{out.name}.parts" / "plain.tif").exists():
        if process.poll() is not None:
            raise SystemExit(f"the prediction failed with exit code {process.returncode}")
        time.sleep(0.01)
    return process


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a prediction with its workers after a time. Return False if it ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.wait(seconds):
            raise SystemExit(f"the prediction failed with exit code {process.returncode}")
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def main() -> None:
    """Read the options, predict without and with kills, and compare the maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_980, help="height and width of the scene in pixels")
    parser.add_argument("--stride", type=int, default=120)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="Ray workers; 0 predicts without Ray")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dice, rows, kills = random.Random(options.seed), list[dict[str, object]](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, out = folder / "whole.tif", folder / "map.tif"
        write_scene(folder / "scene.tif", options.side)
        write_student(folder / "student.safetensors")
        process, began = begin(folder, whole, options.threads, options.stride), time.perf_counter()
        if process.wait():
            raise SystemExit("the prediction failed")
        seconds, truth = time.perf_counter() - began, whole.read_bytes()
        print(f"{options.side} x {options.side} pixels in {seconds:.0f} s", flush=True)
        while kills < options.kills:
            # A killed prediction may leave this file. Its next start removes it only after Python has started.
            (folder / ".map.tif.parts" / "plain.tif").unlink(missing_ok=True)
            moment = dice.uniform(0, 0.4) * seconds
            killed = kill_after(begin(folder, out, options.threads, options.stride), moment)
            kills += killed
            kept = len(list(folder.glob(".map.tif.parts/block_*.bin")))
            rows.append({"after": round(moment, 2), "killed": killed, "kept blocks": kept, "identical": None})
            if out.exists():
                # A killed prediction may have a whole map: the kill came after the map had got its name.
                rows[-1]["identical"] = out.read_bytes() == truth
                out.unlink()
            print(json.dumps(rows[-1]), flush=True)
        code = start(folder, out, options.threads, options.stride).wait()
        same = code == 0 and out.read_bytes() == truth
        left = sorted(path.name for path in folder.glob(".map.tif.*"))
    identical = same and not left and all(row["identical"] is not False for row in rows)
    print(f"{options.kills} kills: identical {identical}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "rows": rows, "identical": identical}, indent=1))
    if not identical:
        raise SystemExit(f"not identical: {left}")


if __name__ == "__main__":
    main()
