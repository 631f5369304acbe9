"""Test what a submission sends, without a cluster; a real cluster takes one in cluster/test_submission.py."""

import asyncio
import socket
import subprocess
import sys

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus

from stssl.base.errors import ConfigError, RunError
from stssl.commands.cli import main
from stssl.commands.submission import Submission, _follow, command_for, job, submit_job


@pytest.fixture
def recipe(recipe_tree, tmp_path):
    path = tmp_path / "project" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(recipe_tree))
    return path


def submission(file, *overrides, **changes):
    return Submission(**{"file": file, "overrides": overrides, "address": "http://127.0.0.1:1"} | changes)


def asked(file, *overrides, **changes):
    return job(submission(file, *overrides, **({"folder": file.parent} | changes)))


def test_the_command_follows_from_the_file():
    assert command_for({"search": {}, "recipe": "a.yaml"}) == "sweep"
    assert command_for({"pretext": {}}) == "pretrain"
    assert command_for({"algorithm": {}}) == "train"


def test_a_recipe_becomes_a_command(recipe):
    sent = asked(recipe, "launch.workers=2", "name=a b")
    assert sent["entrypoint"] == "python -m stssl.commands.cli train recipe.yaml launch.workers=2 'name=a b'"
    assert sent["runtime_env"]["working_dir"] == str(recipe.parent)
    assert "entrypoint_num_cpus" not in sent and "pip" not in sent["runtime_env"]


def test_a_job_that_trains_itself_takes_its_resources(recipe):
    sent = asked(recipe, "launch.workers=0", "launch.gpus_per_worker=1", "launch.cpus_per_worker=4")
    assert (sent["entrypoint_num_cpus"], sent["entrypoint_num_gpus"]) == (4, 1)
    assert asked(recipe, "launch.workers=0", cpus=0.5)["entrypoint_num_cpus"] == 0.5


def test_variables_of_the_recipe_travel(recipe, monkeypatch):
    monkeypatch.setenv("SOME_STORE", "/here.zarr")
    monkeypatch.setenv("SECRET", "x")
    text = "data.store=${SOME_STORE}"
    sent = asked(recipe, text)["runtime_env"]["env_vars"]
    assert sent["SOME_STORE"] == "/here.zarr" and "SECRET" not in sent
    given = asked(recipe, text, variables=("SOME_STORE=/there.zarr", "SECRET"))["runtime_env"]["env_vars"]
    assert given["SOME_STORE"] == "/there.zarr" and given["SECRET"] == "x"
    monkeypatch.delenv("SOME_STORE")
    with pytest.raises(ConfigError, match="--env SOME_STORE=VALUE"):
        asked(recipe, text)


def test_a_sweep_takes_the_variables_of_its_base(recipe, recipe_tree, monkeypatch):
    recipe_tree["data"]["store"] = "${SOME_STORE}"
    recipe.write_text(yaml.safe_dump(recipe_tree))
    sweep = recipe.with_name("sweep.yaml")
    sweep.write_text("recipe: recipe.yaml\ntrials: 2\nsearch: {optimizer.lr: auto}\n")
    monkeypatch.setenv("SOME_STORE", "/here.zarr")
    sent = asked(sweep, "storage=/shared")
    assert sent["entrypoint"] == "python -m stssl.commands.cli sweep sweep.yaml storage=/shared"
    assert sent["runtime_env"]["env_vars"]["SOME_STORE"] == "/here.zarr"
    with pytest.raises(ConfigError, match=r"storage: 'sweeps' would lie"):
        asked(sweep)


@pytest.fixture
def sweep(recipe):
    """Writes a sweep over the recipe."""

    def go(**changes):
        tree = {"recipe": "recipe.yaml", "trials": 2, "search": {"optimizer.lr": "auto"}, "storage": "/shared"}
        (recipe.parent / "s.yaml").write_text(yaml.safe_dump(tree | changes))
        return recipe.parent / "s.yaml"

    return go


def test_a_sweep_that_trains_in_the_jobs_own_process_takes_its_resources(sweep):
    own = {"launch.workers": 0, "launch.gpus_per_worker": 1, "launch.cpus_per_worker": 4}
    sent = asked(sweep(change=own))
    assert (sent["entrypoint_num_cpus"], sent["entrypoint_num_gpus"]) == (4, 1)
    assert asked(sweep(change=own), gpus=0)["entrypoint_num_gpus"] == 0
    assert "entrypoint_num_gpus" not in asked(sweep(change=own | {"launch.workers": 1}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trails": 3}, "did you mean trials"),
        ({"search": {"optimizer.lrr": None}}, r"Did you mean optimizer\.lr"),
        ({"change": {"optimizr.lr": 3}}, "did you mean optimizer"),
        ({"points": [{"optimizer.lr": 7.0}]}, "outside of its domain"),
        ({"storage": 5}, "storage: Input should be a valid string"),
        ({"recipe": "nowhere.yaml"}, "cannot read"),
    ],
)
def test_mistakes_in_a_sweep_are_found_before_anything_is_sent(sweep, changes, words):
    with pytest.raises(ConfigError, match=words):
        asked(sweep(**changes))


def test_files_that_would_stay_here_are_refused(recipe, sweep):
    best = recipe.parent / "sweeps" / "first" / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(recipe.read_text())
    with pytest.raises(ConfigError, match=r"'/sweeps/' stays here\. Copy it"):
        asked(best, "launch.storage=/shared", folder=recipe.parent)
    kept = recipe.parent / "experiments" / "sweeps" / "best.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text("base: ../../recipe.yaml\n")
    assert asked(kept, "launch.storage=/shared", folder=recipe.parent)["entrypoint"].split()[4] == (
        "experiments/sweeps/best.yaml"
    )
    outside = recipe.parents[1] / "outside.yaml"
    outside.write_text(recipe.read_text())
    with pytest.raises(ConfigError, match=r"outside\.yaml is not inside"):
        asked(sweep(recipe="../outside.yaml"))
    kept.write_text(f"base: {outside}\n")
    with pytest.raises(ConfigError, match=r"outside\.yaml is not inside"):
        asked(kept, "launch.storage=/shared", folder=recipe.parent)


def test_packages(recipe, tmp_path):
    (tmp_path / "needed.txt").write_text("six\n")
    assert asked(recipe, pip=("six", "wheel"))["runtime_env"]["pip"] == ["six", "wheel"]
    assert asked(recipe, pip=(str(tmp_path / "needed.txt"),))["runtime_env"]["pip"] == str(tmp_path / "needed.txt")


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        (("launch.storage=runs",), {}, "vanish with it"),
        (("optimizr.lr=1",), {}, "did you mean optimizer"),
        ((), {"folder": None}, "is not inside"),
        ((), {"variables": ("NOT_SET_ANYWHERE",)}, "--env NOT_SET_ANYWHERE"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(recipe, overrides, changes, words):
    if "folder" in changes:
        changes = {"folder": recipe.parents[1] / "elsewhere"}
    with pytest.raises(ConfigError, match=words):
        asked(recipe, *overrides, **changes)


def test_an_address_that_is_none(recipe):
    for address in ("ray://127.0.0.1:10001", "127.0.0.1:8265", "auto"):
        with pytest.raises(ConfigError, match="must be the URL"):
            submit_job(submission(recipe, folder=recipe.parent, address=address), print, print)


def test_no_server(recipe):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RunError, match="no job server answers"):
            submit_job(submission(recipe, folder=recipe.parent, address=address), print, print)


def test_a_missing_file_ends_the_command_with_words(tmp_path):
    command = [sys.executable, "-m", "stssl.commands.cli", "submit", str(tmp_path / "no.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "cannot read" in done.stderr and "Traceback" not in done.stderr


class Server:
    """Stand for a job server that goes away meanwhile; `answers` are its replies to requests for the job's state."""

    def __init__(self, *answers):
        self.answers, self.output = list(answers), ""

    async def tail_job_logs(self, name):
        self.output += "line\n"
        yield self.output
        raise ConnectionResetError

    def get_job_info(self, name):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return JobDetails(type="SUBMISSION", entrypoint="true", status=answer)

    def get_job_logs(self, name):
        return f"{self.output}end\n"


def test_a_job_is_followed_over_lost_connections():
    shown = []
    server = Server(ConnectionError(), RuntimeError("502"), JobStatus.RUNNING, ConnectionError(), JobStatus.SUCCEEDED)
    about = asyncio.run(_follow(server, "job", shown.append, patience=3, pause=0))
    assert about.status == JobStatus.SUCCEEDED and "".join(shown) == "line\n" * 5 + "end\n"
    with pytest.raises(RuntimeError, match="502"):
        asyncio.run(_follow(Server(ConnectionError(), RuntimeError("502")), "job", shown.append, patience=2, pause=0))


def test_a_prediction_becomes_a_command(monkeypatch, capsys, tmp_path):
    sent = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stssl.commands.submission.submit_job", lambda given, *_: sent.append(job(given)) or 0)
    words = "/shared/runs/a /shared/T32.SAFE --out /shared/map.tif --model /shared/runs/b --workers 4 --gpus 0.25"

    def submit(words):
        monkeypatch.setattr(sys, "argv", ["stssl", "submit", "predict", "--", *words.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    assert submit(words) == (0, "")
    assert sent[0]["entrypoint"] == f"python -m stssl.commands.cli predict {words}"
    assert sent[0]["metadata"] == {"stssl": "predict /shared/map.tif"} and len(sent) == 1
    assert "entrypoint_num_cpus" not in sent[0]
    code, told = submit(words.replace("/shared/T32", "T32"))
    assert code == 2 and "'T32.SAFE' is relative" in told and len(sent) == 1
    assert submit(words.replace("--out", "--ouput"))[0] == 2
    assert submit(words.replace("--workers 4 --gpus 0.25", "--workers 0")) == (0, "")
    assert sent[1]["entrypoint_num_cpus"] == 1  # without tasks, the first process predicts
