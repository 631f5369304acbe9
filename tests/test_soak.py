"""Run the soak in short: a command that is killed and resumed gives equal results, and the soak notices faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_a_few_kills_leave_no_trace(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--kinds", "one process", "pretrain"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "s.json")], capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "s.json").read_text())["kinds"]
    assert sum(kind["kills"] for kind in found) == 3 and not any(kind["different"] for kind in found)


COUNTING = """
import subprocess, sys, time
from pathlib import Path
folder, leaves = Path(sys.argv[1]), sys.argv[2] == "leaves"
file = folder / "n"
for number in range(int(file.read_text()) if file.exists() else 0, 20):
    time.sleep(0.02)
    fresh = folder / "fresh"
    fresh.write_text(str(number + 1))
    fresh.replace(file)
(folder / "starts").open("a").write("x")
if leaves:
    subprocess.Popen(["sleep", "60"], start_new_session=True)
"""

DRIVER = """
import json, random, sys
from pathlib import Path
import soak

soak.LINGER = 0.5
soak.adopt_orphans()
found = {}
for name, argument, result in (("good", "x", "n"), ("different", "x", "starts"), ("left", "leaves", "n")):
    kind = soak.Kind(
        name,
        lambda folder: [sys.executable, "-c", sys.argv[2], str(folder), argument],
        lambda folder: {result: (folder / result).read_text() + str(folder.name == "killed") * (name == "different")},
        lambda folder: (folder / "n").exists(),
    )
    try:
        count = soak.soak(kind, Path(sys.argv[1]) / name, 4, random.Random(0))
        found[name] = [count.good, count.kills, count.different]
    except SystemExit as error:
        found[name] = str(error)
found["below"] = len(soak.below())
print(json.dumps(found))
"""


def test_kills_are_counted_and_differences_and_orphans_are_found(tmp_path):
    """In a process of its own, since it looks at all processes below its own."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path), COUNTING]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parent, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["good"] == [True, 4, []]
    assert found["different"][0] is False and found["different"][2] == ["starts"]
    assert found["left"] == "left leaves processes: ['sleep 60']"
    assert found["below"] == 0
