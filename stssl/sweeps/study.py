"""The Optuna study of a sweep: the one record of its trials, written before and after everything that happens."""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from stssl.base.config import differing_keys, validate
from stssl.base.errors import ConfigError, RunError
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import write_whole
from stssl.recipes.recipe import Recipe
from stssl.sweeps.space import Space
from stssl.sweeps.spec import Sweep, SweepConfig
from stssl.sweeps.trouble import study_errors, without_password

SPACE = "stssl"
"""The study's attribute that says what is searched."""

FOLDER = "folder"
"""The study's attribute that says whose runs it is about: a mark in the sweep's folder, and where that was."""

LOCKED_S = 60
"""How long to wait for another process that writes into an SQLite file."""

MARK_BYTES = 4096
DEATHS = 3
"""So often may a trial's driver die before the trial counts as failed."""


def storage_of(url: str) -> Any:
    """The Optuna storage of `sqlite:///FILE`, `postgresql://...` or `journal:FILE`.

    Raises:
        ConfigError: It is none of these.
        RunError: It cannot be reached.
    """
    import optuna

    (kind, _, rest), shown = url.partition(":"), without_password(url)
    if kind == "journal":
        try:
            backend = optuna.storages.journal.JournalFileBackend(rest.removeprefix("//"))
        except OSError as error:
            raise RunError(f"study: cannot open {url}: {error.strerror}. Give journal:FILE in a folder.") from None
        with study_errors(url, opening=True):
            return optuna.storages.JournalStorage(backend)
    if kind.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError(f"study: '{shown}' is not sqlite:///FILE, postgresql://USER@HOST/NAME or journal:FILE")
    if kind in ("postgresql", "postgres"):
        url = f"postgresql+psycopg:{rest}"
    options: dict[str, Any] = {"connect_args": {"timeout": LOCKED_S}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        with study_errors(url, opening=True):
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise ConfigError(f"study: {shown} needs a driver: pip install 'stssl[postgres]' ({error})") from None


def study_url(config: SweepConfig) -> str:
    """Return the URL of the study's storage."""
    return config.study or f"sqlite:///{config.folder / 'study.db'}"


def open_study(sweep: Sweep, space: Space) -> Any:
    """Make the sweep's study, or go on with it.

    Raises:
        RunError: A study of that name searched something else; names what differs. Or it cannot be reached, is
            damaged, or is gone while the runs of its trials are there.
    """
    import optuna

    config = sweep.config
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = storage_of(study_url(config))
    with study_errors(study_url(config)):
        return _opened(sweep, space, storage)


def _opened(sweep: Sweep, space: Space, storage: Any) -> Any:
    import optuna

    config = sweep.config
    ours = space.identity() | {"metrics": list(config.metrics), "modes": list(config.modes)}
    found = _found(config, storage)
    if found is not None:
        _same(ours, found, config, sweep.recipe.launch.storage)
    with _quiet():
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            directions=["maximize" if mode == "max" else "minimize" for mode in config.modes],
            sampler=_sampler(config, 0),
            pruner=_pruner(sweep),
            load_if_exists=True,
        )
    if SPACE not in study.user_attrs:
        with _quiet():
            study.set_metric_names(list(config.metrics))
        study.set_user_attr(SPACE, json.dumps(ours))
    if config.study is not None:
        _one_folder(study, config)
    # A sampler that starts again with the same seed would draw the same values again.
    study.sampler = _sampler(config, len(study.get_trials(deepcopy=False)))
    _enqueue(study, config, space)
    return study


def _found(config: SweepConfig, storage: Any) -> Any:
    """Look for the sweep's study, and read all of it once, so that a damaged one is found before any trial."""
    import optuna

    with study_errors(study_url(config), opening=True):
        if config.name in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
            study = optuna.load_study(study_name=config.name, storage=storage)
            json.loads(study.user_attrs.get(SPACE, "{}"))
            study.get_trials(deepcopy=False)
            return study
    runs = trials_folder(config.folder)
    if runs.is_dir() and any(runs.iterdir()):
        raise RunError(
            f"{without_password(study_url(config))} has no study '{config.name}', and {runs} has runs of its trials. "
            f"Put the study back, give this sweep another name (name=...), or delete {config.folder} to begin again."
        )
    return None


def _same(ours: dict[str, Any], study: Any, config: SweepConfig, runs: str = "runs") -> None:
    text, place = study.user_attrs.get(SPACE), without_password(study_url(config))
    theirs = _as_today(json.loads(text), runs) if text else None
    if theirs is None and study.get_trials(deepcopy=False):
        raise RunError(f"the study '{config.name}' in {place} was not made by a sweep. Give another name=...")
    keys = differing_keys(theirs or ours, ours)
    if keys:
        raise RunError(
            f"the study '{config.name}' in {place} searched something else; it differs in "
            f"{', '.join(keys)}. Give this sweep another name (name=...), or delete the study and {config.folder}."
        )


def _as_today(identity: dict[str, Any], storage: str) -> dict[str, Any]:
    """A space's identity as this version would write it: keys that recipes did not have then have their defaults."""
    try:
        tree = {"name": "study", **identity["recipe"], "launch": {"storage": storage}}
        recipe = validate(Recipe, tree, "the study")
    except (ConfigError, KeyError):
        return identity
    return {**identity, "recipe": json.loads(json.dumps(recipe.identity()))}


def _one_folder(study: Any, config: SweepConfig) -> None:
    """Keep two folders from sharing a study: each would take up the other's running trials, and miss its runs."""
    path, theirs = config.folder / "study.id", study.user_attrs.get(FOLDER)
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    advice = "Put it back as it was, or give this sweep another name (name=...)."
    mark = read_bounded(path, MARK_BYTES, RunError, advice).decode("utf-8", "replace")
    if theirs is None:
        study.set_user_attr(FOLDER, [mark, f"{socket.gethostname()}:{config.folder}"])
    elif theirs[0] != mark:
        raise RunError(
            f"the study '{config.name}' in {without_password(study_url(config))} keeps its runs in {theirs[1]}, and "
            f"not in {config.folder}. Go on with it there (storage=...), or give this sweep another name (name=...)."
        )


def _sampler(config: SweepConfig, drawn: int) -> Any:
    import optuna

    chosen, seed = config.sampler, config.seed * 100_003 + drawn
    with _quiet():
        if chosen.name == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=chosen.startup, multivariate=True, group=True)
        if chosen.name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=chosen.startup)
        if chosen.name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=chosen.population)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(sweep: Sweep) -> Any:
    """Optuna's own rules: they look at the study, and so outlive the process that is killed."""
    import optuna

    scheduler, steps = sweep.config.scheduler, sweep.recipe.schedule.steps
    first = sweep.recipe.schedule.evaluate_every
    if scheduler.name == "asha":
        grace = scheduler.grace or max(first, steps // scheduler.reduction**2)
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=scheduler.reduction)
    if scheduler.name == "median":
        grace = first if scheduler.grace is None else scheduler.grace
        return optuna.pruners.MedianPruner(n_startup_trials=scheduler.startup, n_warmup_steps=grace)
    return optuna.pruners.NopPruner()


def _enqueue(study: Any, config: SweepConfig, space: Space) -> None:
    """Put the points to try first into the queue, once."""
    points = [space.point(point, f"points[{i}]") for i, point in enumerate(config.points)]
    if config.sampler.name == "grid":
        points += [point for point in space.grid() if point not in points]
    for number in range(study.user_attrs.get("points", 0), len(points)):
        study.enqueue_trial(points[number], skip_if_exists=True)
        study.set_user_attr("points", number + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings about options that are marked experimental."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Book:
    """Keep the trials of a study: hand out the next one, record how each goes and ends."""

    def __init__(self, sweep: Sweep, space: Space, study: Any) -> None:
        """Trials that were running when an earlier process ended are handed out first."""
        from optuna.trial import Trial, TrialState

        self.sweep, self.space, self.study = sweep, space, study
        states = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.interrupted = [Trial(study, frozen._trial_id) for frozen in states]
        self.started: float | None = None
        self.spent = self.hours

    def __deepcopy__(self, memo: dict[int, Any]) -> "Book":
        """Tune copies what it is given; there is one book."""
        return self

    @property
    def hours(self) -> float:
        """Time on the clock that all starts of the sweep took together, as far as it is written down."""
        return float(self.study.user_attrs.get("hours", 0.0))

    def tick(self) -> None:
        """Write down the time since the first tick, so that a sweep that is killed has spent it all the same."""
        self.started = self.started or time.time()
        self.study.set_user_attr("hours", self.spent + (time.time() - self.started) / 3600)

    def next(self) -> tuple[Any, dict[str, Any]] | None:
        """The next trial and its values; None when all were handed out."""
        from optuna.trial import TrialState

        if self.interrupted:
            trial = self.interrupted.pop(0)
        else:
            trials = self.study.get_trials(deepcopy=False)
            started = sum(trial.state != TrialState.WAITING for trial in trials)
            exhausted = self.sweep.config.sampler.name == "grid" and started == len(trials)
            if exhausted or started >= self.sweep.config.trials:
                return None
            trial = self.study.ask()
        values = self.space.draw(trial)
        trial.set_user_attr("started", datetime.now().isoformat(timespec="seconds"))
        return trial, values

    def again(self, trial: Any) -> bool:
        """Hand a trial out once more whose driver or machine died; False when that happened too often."""
        deaths = int(trial.user_attrs.get("deaths", 0)) + 1
        trial.set_user_attr("deaths", deaths)
        if deaths < DEATHS:
            self.interrupted.append(trial)
        return deaths < DEATHS

    def report(self, trial: Any, step: int, value: float, seconds: float) -> bool:
        """Write down a score in mid-run; return True if the trial is to be stopped.

        Args:
            trial: The study's trial.
            step: Step of the score.
            value: The score.
            seconds: Time since the trial began.
        """
        self.tick()
        trial.set_user_attr("seconds", round(seconds, 2))
        if len(self.sweep.config.metrics) > 1:
            return False
        with _quiet():  # a trial that goes on tells its earlier validations again
            trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, trial: Any, values: list[float]) -> None:
        """A trial went to its end."""
        self.study.tell(trial, values)

    def stop(self, trial: Any) -> None:
        """A trial was stopped early."""
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Any, reason: str) -> None:
        """A trial could not be carried out."""
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)


def run_name(number: int) -> str:
    """Return the name of a trial's run folder."""
    return f"trial-{number:04d}"


def trials_folder(folder: Path) -> Path:
    """Return the folder of the runs of a sweep's trials."""
    return folder / "trials"
