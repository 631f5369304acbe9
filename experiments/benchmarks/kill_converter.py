"""Kill a conversion at random moments, and check that the finished store equals that of an undisturbed conversion.

    python experiments/benchmarks/kill_converter.py --patches 20000 --repeats 10 --threads 2 --json kills.json

The script generates an archive and converts it without interruption. Then it repeats `--repeats` times: it starts a
conversion, kills its process (SIGKILL) after a random time, and starts it again until it ends. All files of the stores
must be equal, byte by byte.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stssl.archives.conversion import verify_store
from stssl.archives.synthetic import synthesize_archive

DRIVER = """
import sys
from stssl.archives.conversion import Options, convert_archive
convert_archive("bigearthnet-v1", sys.argv[1], sys.argv[2], Options(workers=int(sys.argv[3])))
"""


def tree(folder: Path) -> dict[str, str]:
    """Hash every file below a folder. Return the hash of each file by its path inside the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(archive: Path, store: Path, workers: int) -> subprocess.Popen[bytes]:
    """Start the conversion of an archive in a process of its own, and return this process."""
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(archive), str(store), str(workers)])


def main() -> None:
    """Convert an archive many times, kill the conversions at random moments, and compare the finished stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2, help="Ray workers; 0 converts without Ray")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--kills", type=int, default=2, help="kills in a row before a conversion may end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        archive, whole, broken = (Path(name) / part for part in ("archive", "whole/store.zarr", "broken/store.zarr"))
        synthesize_archive(archive, options.patches)
        began = time.perf_counter()
        if start(archive, whole, options.threads).wait():
            raise SystemExit("the conversion failed")
        seconds = time.perf_counter() - began
        truth = tree(whole.parent)
        problems = verify_store(whole, archive).problems
        print(f"{options.patches} patches in {seconds:.0f} s, {len(problems)} problems found by verify")
        for repeat in range(options.repeats):
            shutil.rmtree(broken.parent, ignore_errors=True)
            moments = [dice.uniform(0.02, 1.0) * seconds for _ in range(options.kills)]
            for moment in moments:
                driver = start(archive, broken, options.threads)
                time.sleep(moment)
                driver.kill()
                driver.wait()
            code = start(archive, broken, options.threads).wait()
            same = code == 0 and tree(broken.parent) == truth
            rows.append({"killed after": [round(moment, 2) for moment in moments], "identical": same})
            print(f"{repeat + 1}: killed after {', '.join(f'{moment:.1f} s' for moment in moments)}: identical {same}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "problems": problems, "rows": rows}, indent=1))
    if problems or not all(row["identical"] for row in rows):
        raise SystemExit("not all identical")


if __name__ == "__main__":
    main()
