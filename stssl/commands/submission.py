"""Submit a recipe, sweep or prediction to a Ray cluster as a job: `stssl submit`.

The command sends the working folder with the job, but without data, environments and runs. It shows the job's output
and returns the job's exit code.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stssl.base.config import Tree, apply_overrides, load_tree, load_with, parse_tree, validate
from stssl.base.errors import ConfigError, RunError, first_line
from stssl.base.paths import is_url
from stssl.base.stopping import stopped
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import Recipe
from stssl.recipes.sections import LaunchConfig

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

EXCLUDES = (
    "/.git/",
    ".venv/",
    "/venv/",
    "/data/",
    "/runs/",
    "/sweeps/",
    "/shifts/",
    "/quickstart/",
    "/build/",
    "__pycache__/",
    ".*_cache/",
    "*.egg-info/",
    "*.zarr/",
    "*.tif",
    "*.zip",
    "*.tar",
    "*.tar.*",
    "*.pt",
    "*.pt2",
    "*.onnx",
)
"""Files that are not sent, as patterns of .gitignore. Files in the folder's own .gitignore are not sent, either."""

LOST = (OSError, RuntimeError)
"""Errors that Ray's client raises if a connection is lost. The errors of `requests` are subclasses of these."""

TOO_LARGE = ("status code 413", "exceeds the maximum size")
"""Words of the errors of Ray's job server and of its client if the working folder is too large."""

TOKEN_ADVICE = (
    "Set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token "
    "(on a machine of the cluster `ray get-auth-token` prints it)."
)


PREDICT = Path("predict")
"""Given as the file of a submission, this word asks for a prediction instead of a recipe or sweep."""


@dataclass(frozen=True)
class Submission:
    """Describe a job for a Ray cluster: which recipe, sweep or prediction to run, and where.

    Attributes:
        file: Recipe or sweep file, inside the working folder; `PREDICT` for a prediction.
        overrides: Changes to the recipe or sweep, as `key=value`. For a prediction: the words after `stssl predict`.
        address: URL of the cluster's job server (its dashboard).
        folder: Working folder to send with the job.
        variables: Environment variables of the job: `NAME=VALUE`, or `NAME` to take the value on this machine.
        pip: Packages to install for the job, or one requirements file.
        cpus: CPUs of the job's first process. None reserves the CPUs of a worker if this process trains itself
            (`launch.workers: 0`), one CPU if it predicts itself, and no CPU otherwise.
        gpus: GPUs of the job's first process. None reserves the GPUs of a worker if this process trains itself, and no
            GPU otherwise.
        wait: True to follow the job to its end.
        paths: Paths of a prediction: models, inputs, and the output as the last one.
        tasks: True if a prediction computes in Ray tasks, and not in the job's first process.
    """

    file: Path
    overrides: tuple[str, ...]
    address: str
    folder: Path = field(default_factory=Path.cwd)
    variables: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    cpus: float | None = None
    gpus: float | None = None
    wait: bool = True
    paths: tuple[str, ...] = ()
    tasks: bool = False


def command_for(tree: Tree) -> str:
    """Return the subcommand of `stssl` that runs a file: `sweep`, `pretrain` or `train`, by the keys of the file.

    Args:
        tree: Content of the recipe or sweep file, a nested dict.
    """
    if "search" in tree:
        return "sweep"
    return "train" if kind_of(tree) is Recipe else "pretrain"


def job(submission: Submission) -> dict[str, Any]:
    """Check a job, and return the arguments of Ray's function `submit_job` for it as a dict.

    The cluster is not contacted.

    Args:
        submission: Job that the user described.

    Raises:
        ConfigError: The file, or a file that it names, is missing, wrong, or not sent with the working folder. Or it
            needs a variable that is not set. Or its results would be in a folder that is deleted with the job.
    """
    if submission.file == PREDICT:
        return _prediction(submission)
    folder, file = submission.folder.resolve(), submission.file.resolve()
    tree, overrides = load_with(submission.file, submission.overrides)
    tree = apply_overrides(tree, overrides)
    command = command_for(tree)
    if command == "sweep":
        key, storage, launch, recipe = _sweep(submission)
        # Add the base recipe to the tree, so that `_environment` also finds the variables that this recipe names.
        tree |= {"base recipe": load_tree(recipe)}
        files = [*_files(file), *_files(recipe)]
    else:
        launch = validate(kind_of(tree), {"name": file.stem, **tree}, str(submission.file), absolute=False).launch
        key, storage, files = "launch.storage", launch.storage, [*_files(file)]
    for one in files:
        _travels(one, folder)
    _lasting(key, storage)
    resources = {"entrypoint_num_cpus": submission.cpus, "entrypoint_num_gpus": submission.gpus}
    if launch.workers == 0:
        own = {"entrypoint_num_cpus": launch.cpus_per_worker, "entrypoint_num_gpus": launch.gpus_per_worker}
        resources = {name: own[name] if value is None else value for name, value in resources.items()}
    words = [command, str(file.relative_to(folder)), *submission.overrides]
    return _arguments(words, f"{command} {file.relative_to(folder)}", _environment(tree, submission), submission) | {
        name: value for name, value in resources.items() if value is not None
    }


def _prediction(submission: Submission) -> dict[str, Any]:
    """Check the job of a prediction, and return the arguments of Ray's function `submit_job` for it as a dict.

    Args:
        submission: Job that the user described.

    Raises:
        ConfigError: A path is relative, or a variable is not set.
    """
    for path in submission.paths:
        if not path.startswith("/") and not is_url(path):
            raise ConfigError(
                f"'{path}' is relative: models, scenes and maps are not sent to the cluster. Give absolute paths in a "
                "folder that all nodes share, such as /shared/map.tif, or URLs of an object store."
            )
    # Without Ray tasks, the job's first process does the prediction. Reserve a CPU for it, since Ray reserves none by
    # default and would give the same CPU to other tasks.
    cpus = 1 if submission.cpus is None and not submission.tasks else submission.cpus
    resources = {"entrypoint_num_cpus": cpus, "entrypoint_num_gpus": submission.gpus}
    words = ["predict", *submission.overrides]
    return _arguments(words, f"predict {submission.paths[-1]}", _environment({}, submission), submission) | {
        name: value for name, value in resources.items() if value is not None
    }


def _arguments(words: Sequence[str], title: str, environment: dict[str, str], submission: Submission) -> dict[str, Any]:
    """Return the arguments of Ray's function `submit_job` as a dict, without those for CPUs and GPUs.

    Args:
        words: Words of the command line after `stssl`.
        title: Text by which the cluster shows the job.
        environment: Environment variables of the job, by name.
        submission: Job that the user described.
    """
    return {
        "entrypoint": shlex.join(["python", "-m", "stssl.commands.cli", *words]),
        "runtime_env": {
            "working_dir": str(submission.folder.resolve()),
            "excludes": list(EXCLUDES),
            "env_vars": environment,
            **({"pip": _packages(submission.pip)} if submission.pip else {}),
        },
        "metadata": {"stssl": title},
    }


class _SweepJob(NamedTuple):
    """Hold the values of a sweep file that decide how its job runs on the cluster.

    Attributes:
        key: Key of the sweep file that sets the folder where sweeps lie.
        storage: This folder, or its URL.
        launch: Section `launch` of the base recipe, which says how a trial (one training of the sweep) runs.
        recipe: Path of the base recipe, which all trials change.
    """

    key: str
    storage: str
    launch: LaunchConfig
    recipe: Path


def _sweep(submission: Submission) -> _SweepJob:
    """Check a sweep file and its base recipe, as far as this machine can check them.

    Return those values of both files that decide how the job runs.

    Args:
        submission: Job that the user described.

    Raises:
        ConfigError: A value in one of the files is wrong.
    """
    from stssl.sweeps.domains import build_space
    from stssl.sweeps.spec import load_sweep

    what = load_sweep(submission.file, submission.overrides, here=False)
    space = build_space(what.config, what.recipe)
    for number, point in enumerate(what.config.points):
        space.point(point, f"points[{number}]")
    recipe = submission.file.resolve().parent / what.config.recipe
    return _SweepJob("storage", what.config.storage, what.recipe.launch, recipe.resolve())


def _files(file: Path) -> Iterator[Path]:
    """Yield the path of a recipe file, then those of the recipes that it builds on.

    The key `base:` of a recipe names the next one.

    Args:
        file: Path of the recipe or sweep file.
    """
    yield file
    base = parse_tree(file.read_text(), str(file)).get("base")
    if isinstance(base, str):
        yield from _files((file.parent / base).resolve())


def _travels(file: Path, folder: Path) -> None:
    """Raise an error if a file would not be sent to the cluster with the working folder.

    Args:
        file: Absolute path of the file.
        folder: Absolute path of the working folder.

    Raises:
        ConfigError: The file lies outside of the folder, or matches a pattern in `EXCLUDES`.
    """
    if not file.is_relative_to(folder):
        raise ConfigError(f"{file} is not inside {folder}, which is sent to the cluster. Give --folder.")
    parts = file.relative_to(folder).parts
    for pattern in EXCLUDES:
        places = parts[:-1] if pattern.endswith("/") else parts
        places = places[:1] if pattern.startswith("/") else places
        if any(fnmatch(part, pattern.strip("/")) for part in places):
            raise ConfigError(
                f"{file} is not sent to the cluster: '{pattern}' stays here. Copy it to another place in {folder}."
            )


def _lasting(key: str, storage: str) -> None:
    """Raise an error if results would be deleted with the job, since they lie in its copy of the working folder.

    Args:
        key: Key of the recipe or sweep that sets the folder of results, for the message.
        storage: Folder of results, or its URL.

    Raises:
        ConfigError: The folder is a relative path, which would lie in this copy.
    """
    if not storage.startswith(("/", "~")) and "${" not in storage and not is_url(storage):
        raise ConfigError(
            f"{key}: '{storage}' would lie in the job's copy of the folder and vanish with it. "
            f"Give a folder that all nodes share, such as {key}=/shared/runs, or a URL such as s3://BUCKET/runs."
        )


def _environment(tree: Tree, submission: Submission) -> dict[str, str]:
    """Return the environment variables of the job as a dict from name to value.

    They are three fixed ones, those that the user gave, and those that the recipe or sweep file names as `${NAME}`.

    Args:
        tree: Content of the file, a nested dict; empty for a prediction.
        submission: Job that the user described.

    Raises:
        ConfigError: A variable has no value, neither a given one nor one on this machine.
    """
    # Turn off Python's output buffer: users follow the output while the job runs.
    # After `ray job stop`, give the ranks time to write a checkpoint: Ray's own three seconds are too short.
    found = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    for variable in submission.variables:
        name, equals, value = variable.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(f"--env {name}: not set here. Give --env {name}=VALUE.")
        found[name] = value if equals else os.environ[name]
    for name in re.findall(r"\$\{(\w+)\}", str(tree)):
        if name not in found and name not in os.environ:
            raise ConfigError(
                f"{submission.file} needs the environment variable {name}, which is not set. "
                f"Give its value on the cluster: --env {name}=VALUE."
            )
        found.setdefault(name, os.environ.get(name, ""))
    return found


def _packages(pip: Sequence[str]) -> list[str] | str:
    """Return the packages to install for a job in the form that Ray expects.

    This is the path of one requirements file, or a list of packages.

    Args:
        pip: Packages, or one requirements file.
    """
    return pip[0] if len(pip) == 1 and Path(pip[0]).is_file() else list(pip)


def submit_job(submission: Submission, show: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Submit a job to a Ray cluster, follow it to its end, and return its exit code.

    Args:
        submission: Job that the user described, with the address of the cluster.
        show: Function that is called with each new piece of the job's output.
        say: Function that is called with lines of text about the submission itself.

    Returns:
        The job's exit code. If the user does not want to wait, 0 as soon as the job is submitted.

    Raises:
        ConfigError: The file or the address is wrong.
        RunError: No server answers, the server refuses the token, or the connection is lost.
    """
    arguments = job(submission)
    with _explained(submission.address):
        client = _client(submission.address)
        name = client.submit_job(**arguments)
    say(f"{name}: {arguments['entrypoint']}")
    if not submission.wait:
        return 0
    later = f"The job continues. Follow it with `ray job logs --follow {name} --address {submission.address}`."
    try:
        about = asyncio.run(_follow(client, name, show))
    except KeyboardInterrupt:
        raise stopped(later) from None
    except LOST as error:
        raise RunError(f"{submission.address} does not answer any more ({type(error).__name__}). {later}") from None
    say(f"{name}: {about.status.value.lower()}")
    if about.status.value != "SUCCEEDED" and about.message:
        say(about.message.strip().splitlines()[0])
    return about.driver_exit_code or (0 if about.status.value == "SUCCEEDED" else 1)


def _client(address: str) -> "JobSubmissionClient":
    if not re.match(r"https?://", address):
        raise ConfigError(f"--address: '{address}' must be the URL of a job server, such as http://127.0.0.1:8265")
    from ray.job_submission import JobSubmissionClient

    # Hide Ray's notes on its connection. Set this after the import, because the import sets the level, too.
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)
    return JobSubmissionClient(address)


async def _follow(
    client: "JobSubmissionClient", name: str, show: Callable[[str], None], patience: int = 60, pause: float = 1.0
) -> "JobDetails":
    """Show the output of a job on a Ray cluster until the job ends. Return Ray's details of the job (its exit code).

    If the connection is lost, connect again.

    Args:
        client: Connection to the job server.
        name: Id of the job.
        show: Function that is called with each new piece of the job's output.
        patience: Number of failures in a row after which this function gives up: the server did not answer.
        pause: Seconds between two attempts.

    Raises:
        OSError, RuntimeError: The server failed to answer `patience` times in a row.
    """
    import aiohttp

    shown, failures = 0, 0
    while True:
        with contextlib.suppress(*LOST, aiohttp.ClientError):
            position = 0
            # After a lost connection, the server sends the log from its start. Skip the part that was shown already.
            async for piece in client.tail_job_logs(name):
                fresh = piece[max(0, shown - position) :]
                position += len(piece)
                shown = max(shown, position)
                if fresh:
                    show(fresh)
        try:
            about = client.get_job_info(name)
            if about.status.is_terminal():
                rest = client.get_job_logs(name)[shown:]
                if rest:
                    show(rest)
                return about
            failures = 0
        except LOST:
            failures += 1
            if failures >= patience:
                raise
        await asyncio.sleep(pause)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Return a context that turns errors of a connection to a Ray cluster into a `RunError` with advice.

    Args:
        address: URL of the job server, for the messages.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise RunError(f"{address} refuses this client: no token, or a wrong one. {TOKEN_ADVICE}") from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise RunError(
            f"no job server answers at {address} ({type(error).__name__}). Is the cluster up, and its dashboard's port "
            "forwarded to this machine (`ray dashboard CLUSTER.yaml`, or `kubectl port-forward`)?"
        ) from None
    except (RuntimeError, ValueError) as error:
        if any(words in str(error) for words in TOO_LARGE):
            raise RunError(
                f"{address} did not take the job: the working folder is too large to send, and 100 MB are the most "
                "that a job server takes. Name large files in the folder's .gitignore, or give a smaller --folder."
            ) from None
        raise RunError(f"{address} did not take the job: {first_line(error)}") from None
