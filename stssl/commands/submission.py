"""Submission of a recipe or sweep to a Ray cluster: `stssl submit`.

The working folder travels with the job, without data, environments and runs; what the job prints comes back, and its
exit code is the command's.
"""

import asyncio
import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stssl.base.config import Tree, apply_overrides, load_tree, validate
from stssl.base.errors import ConfigError, RunError, first_line
from stssl.base.stopping import Asked, stopped
from stssl.base.yaml_text import parse_yaml
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import LaunchConfig, Recipe

EXCLUDES = (
    "/.git/",
    ".venv/",
    "/venv/",
    "/data/",
    "/runs/",
    "/sweeps/",
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
)
"""What stays here, in the words of .gitignore (the folder's own .gitignore counts too)."""

LOST = (OSError, RuntimeError)
"""What Ray's client raises where a connection is lost; errors of `requests` are among them."""

TOKEN_ADVICE = (
    "Set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token "
    "(on a machine of the cluster `ray get-auth-token` prints it)."
)


@dataclass(frozen=True)
class Submission:
    """Describe a job: what to run, and where.

    Attributes:
        file: Recipe or sweep file, inside the working folder.
        overrides: `key=value` arguments.
        address: URL of the cluster's job server (its dashboard).
        folder: Working folder, which travels with the job.
        variables: `NAME=VALUE`, or `NAME` for the value it has here; for the job's environment.
        pip: Packages to install for the job, or one requirements file.
        cpus: Taken by the job's first process; None: nothing, unless it trains itself (`launch.workers: 0`).
        gpus: Taken by the job's first process; None as for `cpus`.
        wait: Follow the job to its end.
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


def command_for(tree: Tree) -> str:
    """The subcommand of `stssl` that a file is for: `sweep`, `pretrain` or `train`."""
    if "search" in tree:
        return "sweep"
    return "train" if kind_of(tree) is Recipe else "pretrain"


def job(submission: Submission) -> dict[str, Any]:
    """Arguments for Ray's `submit_job`, from files alone.

    Raises:
        ConfigError: The file (or one that it names) is missing, wrong, does not travel with the working folder, needs
            a variable that nobody gave, or would keep its results where they vanish with the job.
    """
    folder, file = submission.folder.resolve(), submission.file.resolve()
    tree = apply_overrides(load_tree(submission.file), submission.overrides)
    command = command_for(tree)
    if command == "sweep":
        key, storage, launch, recipe = _sweep(submission)
        tree |= {"base recipe": load_tree(recipe)}
        files = [*_files(file), *_files(recipe)]
    else:
        launch = validate(kind_of(tree), {"name": file.stem} | tree, str(submission.file), absolute=False).launch
        key, storage, files = "launch.storage", launch.storage, [*_files(file)]
    for one in files:
        _travels(one, folder)
    _lasting(key, storage)
    resources = {"entrypoint_num_cpus": submission.cpus, "entrypoint_num_gpus": submission.gpus}
    if launch.workers == 0:
        own = {"entrypoint_num_cpus": launch.cpus_per_worker, "entrypoint_num_gpus": launch.gpus_per_worker}
        resources = {name: own[name] if value is None else value for name, value in resources.items()}
    words = ["python", "-m", "stssl.commands.cli", command, str(file.relative_to(folder)), *submission.overrides]
    environment = _environment(tree, submission)
    return {
        "entrypoint": shlex.join(words),
        "runtime_env": {
            "working_dir": str(folder),
            "excludes": list(EXCLUDES),
            "env_vars": environment,
            **({"pip": _packages(submission.pip)} if submission.pip else {}),
        },
        "metadata": {"stssl": f"{command} {file.relative_to(folder)}"},
        **{name: value for name, value in resources.items() if value is not None},
    }


def _sweep(submission: Submission) -> tuple[str, str, LaunchConfig, Path]:
    """Check a sweep file as far as that goes here; its key of storage, the storage, how trials run, and its recipe."""
    from stssl.sweeps.domains import build_space
    from stssl.sweeps.spec import load_sweep

    what = load_sweep(submission.file, submission.overrides, here=False)
    space = build_space(what.config, what.recipe)
    for number, point in enumerate(what.config.points):
        space.point(point, f"points[{number}]")
    recipe = submission.file.resolve().parent / what.config.recipe
    return "storage", what.config.storage, what.recipe.launch, recipe.resolve()


def _files(file: Path) -> Iterator[Path]:
    """A file and those that its `base:` names; all were read before."""
    yield file
    base = parse_yaml(file.read_text(), str(file)).get("base")
    if base:
        yield from _files((file.parent / base).resolve())


def _travels(file: Path, folder: Path) -> None:
    if not file.is_relative_to(folder):
        raise ConfigError(f"{file} is not inside {folder}, which goes to the cluster. Give --folder.")
    parts = file.relative_to(folder).parts
    for pattern in EXCLUDES:
        places = parts[:-1] if pattern.endswith("/") else parts
        places = places[:1] if pattern.startswith("/") else places
        if any(fnmatch(part, pattern.strip("/")) for part in places):
            raise ConfigError(
                f"{file} does not go to the cluster: '{pattern}' stays here. Copy it to another place in {folder}."
            )


def _lasting(key: str, storage: str) -> None:
    if not storage.startswith(("/", "~")) and "${" not in storage:
        raise ConfigError(
            f"{key}: '{storage}' would lie in the job's copy of the folder and vanish with it. "
            f"Give a folder that all nodes share, such as {key}=/shared/runs."
        )


def _environment(tree: Tree, submission: Submission) -> dict[str, str]:
    """Variables of the job: those given, and those that the file names as `${NAME}`."""
    found = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
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
    """A requirements file's path, or the names as they were given."""
    return pip[0] if len(pip) == 1 and Path(pip[0]).is_file() else list(pip)


def submit_job(submission: Submission, show: Callable[[str], None], say: Callable[[str], None]) -> int:
    """Submit, and follow the job to its end.

    Args:
        submission: What to run, and where.
        show: Takes what the job prints, in pieces.
        say: Takes a line about the submission itself.

    Returns:
        The job's exit code; 0 once it is submitted where `wait` is off.

    Raises:
        ConfigError: The file or the address cannot be right.
        RunError: No server there, it refuses the token, or it is lost.
    """
    arguments = job(submission)
    with _explained(submission.address):
        client = _client(submission.address)
        name = client.submit_job(**arguments)
    say(f"{name}: {arguments['entrypoint']}")
    if not submission.wait:
        return 0
    later = f"The job goes on. Follow it with `ray job logs --follow {name} --address {submission.address}`."
    try:
        about = asyncio.run(_follow(client, name, show))
    except Asked as asked:
        raise stopped(asked, later) from None
    except LOST as error:
        raise RunError(f"{submission.address} does not answer any more ({type(error).__name__}). {later}") from None
    say(f"{name}: {about.status.value.lower()}")
    if about.status.value != "SUCCEEDED" and about.message:
        say(about.message.strip().splitlines()[0])
    return about.driver_exit_code or (0 if about.status.value == "SUCCEEDED" else 1)


def _client(address: str) -> Any:
    if not re.match(r"https?://", address):
        raise ConfigError(f"--address: '{address}' must be the URL of a job server, such as http://127.0.0.1:8265")
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


async def _follow(client: Any, name: str, show: Callable[[str], None], patience: int = 60, pause: float = 1.0) -> Any:
    """Show a job's output until it ends, also over lost connections; returns what is known of it then.

    Raises:
        OSError, RuntimeError: The server did not answer `patience` times, `pause` seconds apart.
    """
    import aiohttp

    shown, failures = 0, 0
    while True:
        with contextlib.suppress(*LOST, aiohttp.ClientError):
            position = 0
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
    """Turn what Ray's client raises into words on what to do."""
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
        raise RunError(f"{address} did not take the job: {first_line(error)}") from None
