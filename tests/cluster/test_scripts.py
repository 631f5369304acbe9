"""Shell scripts: shellcheck, and the Slurm script run under stubs of Slurm's and Ray's commands."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [ROOT / "cluster" / "slurm.sh", ROOT / ".ci" / "run"]
STUBS = {
    # Drops srun's own options and runs the rest once, as the first node would.
    "srun": 'echo "srun $*" >> "$LOG"\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
    "scontrol": 'printf "node1\\nnode2\\n"',
    # Runs what stands after `--`, as symmetric-run does on the head node; or fails to start, and still ends with 0.
    "ray": 'echo "ray $* [$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}]" >> "$LOG"\n[ -z "${NO_RAY:-}" ] || exit 0\n'
    'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"',
    "stssl": 'printf "stssl at $RAY_ADDRESS" >> "$LOG"\nprintf " <%s>" "$@" >> "$LOG"\n'
    'echo >> "$LOG"\nexit "${CODE:-0}"',
}


def shellcheck(*paths):
    found = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if not found:
        pytest.skip("shellcheck is not installed")
    return subprocess.run([found, *map(str, paths)], capture_output=True, text=True, timeout=120, check=False)


def test_shellcheck_has_nothing_to_say():
    done = shellcheck(*SCRIPTS)
    assert done.returncode == 0, done.stdout


def test_control_shellcheck_sees_a_missing_quote(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm -r $1/*\n")
    assert shellcheck(tmp_path / "bad.sh").returncode == 1


@pytest.fixture
def slurm(tmp_path):
    """Runs the script with stubs instead of Slurm and Ray; returns the process and what the stubs saw."""
    for name, body in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def go(*arguments, **variables):
        log = tmp_path / "log"
        log.write_text("")
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "LOG": str(log),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "32",
        }
        done = subprocess.run(
            ["bash", str(SCRIPTS[0]), *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done, log.read_text().splitlines()

    (tmp_path / "recipe.yaml").write_text("algorithm: {name: fixmatch}\n")
    (tmp_path / "sweep.yaml").write_text("recipe: recipe.yaml\nsearch: {}\n")
    (tmp_path / "pretrain.yaml").write_text("pretext: {name: geo}\n")
    return go


def test_the_slurm_script_starts_ray_everywhere_and_trains(slurm, tmp_path):
    done, (srun, ray, stssl) = slurm("recipe.yaml", "name=two words", "seed=1")
    assert done.returncode == 0, done.stderr
    assert srun.startswith("srun --nodes=2 --ntasks=2 ray symmetric-run --address node1:23456 --min-nodes 2")
    assert ray.endswith("[token 64]")
    assert stssl == "stssl at node1:23456 <train> <recipe.yaml> <name=two words> <seed=1>"
    assert not list(tmp_path.glob(".stssl-*"))


def test_the_slurm_script_knows_sweeps_and_pretraining(slurm):
    assert slurm("sweep.yaml")[1][-1] == "stssl at node1:23456 <sweep> <sweep.yaml>"
    assert slurm("pretrain.yaml")[1][-1] == "stssl at node1:23456 <pretrain> <pretrain.yaml>"


def test_the_slurm_script_knows_files_by_their_base(slurm, tmp_path):
    for name, base in (("a", "sweep.yaml"), ("c", "recipe.yaml"), ("d", "none.yaml")):
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / f"{name}.yaml").write_text(f"# its base: sweep.yaml\nbase: ../{base}\nseed: 1\n")
    (tmp_path / "more" / "b.yaml").write_text("base: '../pretrain.yaml'  # that\n")
    (tmp_path / "e.yaml").write_text(f"base: {tmp_path}/more/a.yaml\n")
    (tmp_path / "f.yaml").write_text("base: f.yaml\n")
    found = {
        name: slurm(f"{name}.yaml")[1][-1].split("<")[1] for name in ("more/a", "more/b", "more/c", "more/d", "e", "f")
    }
    assert [word.rstrip("> ") for word in found.values()] == ["sweep", "pretrain", "train", "train", "sweep", "train"]


def test_the_slurm_script_fails_with_the_run_and_without_ray(slurm):
    assert slurm("recipe.yaml", CODE="3")[0].returncode == 3
    done, _ = slurm("recipe.yaml", NO_RAY="1")
    assert done.returncode == 1 and "Ray did not start" in done.stderr


def test_the_slurm_script_explains_its_use(slurm):
    for arguments in ((), ("nowhere.yaml",)):
        done, log = slurm(*arguments)
        assert done.returncode == 2 and done.stderr and not log


def test_ray_takes_the_options_of_the_slurm_script(slurm):
    """The words before `--` go through Ray's own check of them."""
    from click import ClickException
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    words = slurm("recipe.yaml")[1][1].split()
    given = words[2 : words.index("--")]
    assert curate_and_validate_ray_start_args(given)[0] == "--num-cpus=32"
    with pytest.raises(ClickException):
        curate_and_validate_ray_start_args([*given, "--head"])
