"""Open the Optuna study of a sweep, the only record of its trials, and write each event of a trial to it at once."""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from stssl.base.config import differing_keys, validate
from stssl.base.errors import ConfigError, RunError
from stssl.base.json_types import JsonObject
from stssl.base.paths import below
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import write_whole
from stssl.recipes.recipe import Recipe
from stssl.sweeps.space import Space, TrialValues
from stssl.sweeps.spec import Sweep, SweepConfig
from stssl.sweeps.storage_errors import study_errors, without_password
from stssl.sweeps.sweep_place import STUDY_FILE, TRIALS, SweepPlace

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial

SPACE = "stssl"
"""Name of the study's attribute that keeps the search space and the base recipe."""

FOLDER = "folder"
"""Name of the study's attribute that keeps the sweep folder it belongs to: the folder's id and its path."""

LOCKED_S = 60
"""Seconds to wait for an SQLite file while another process writes to it."""

MARK_BYTES = 4096
"""Largest number of bytes that are read from `study.id`, the file with a sweep folder's id."""
DEATHS = 3
"""Number of deaths of a trial's driver (the Ray process that controls it) after which the trial fails."""


def storage_of(url: str) -> "BaseStorage":
    """Open the Optuna storage that a URL names, and return it.

    Args:
        url: `sqlite:///FILE`, `postgresql://...` or `journal:FILE`.

    Raises:
        ConfigError: The URL has none of these forms, or its driver is not installed.
        RunError: The storage cannot be reached.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    (kind, _, rest), shown = url.partition(":"), without_password(url)
    if kind == "journal":
        try:
            backend = JournalFileBackend(rest.removeprefix("//"))
        except OSError as error:
            raise RunError(f"study: cannot open {url}: {error.strerror}. Give journal:FILE in a folder.") from None
        with study_errors(url, opening=True):
            return optuna.storages.JournalStorage(backend)
    if kind.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError(f"study: '{shown}' is not sqlite:///FILE, postgresql://USER@HOST/NAME or journal:FILE")
    if kind in ("postgresql", "postgres"):
        url = f"postgresql+psycopg:{rest}"
    # Let SQLite wait for a file that another process has locked: by default, it gives up after 5 seconds. Ping a server
    # before each use, because it may have closed the connection since the last validation.
    options: JsonObject = {"connect_args": {"timeout": LOCKED_S}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        with study_errors(url, opening=True):
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise ConfigError(f"study: {shown} needs a driver: pip install 'stssl[postgres]' ({error})") from None


def study_url(config: SweepConfig) -> str:
    """Return the URL of a sweep study's storage: the sweep file's key `study`, or SQLite in the sweep's folder."""
    return config.study or f"sqlite:///{config.folder / STUDY_FILE}"


def open_study(sweep: Sweep, space: Space) -> "Study":
    """Return the sweep's Optuna study: create it, or open the study that an earlier start created.

    Args:
        sweep: Sweep file and base recipe.
        space: Search space. An existing study must have the same one.

    Raises:
        RunError: A study of the same name has another search space; the message names the difference. Or the study
            cannot be reached or is damaged. Or the study is missing, but runs of its trials exist.
    """
    import optuna

    config = sweep.config
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = storage_of(study_url(config))
    with study_errors(study_url(config)):
        return _opened(sweep, space, storage)


def _opened(sweep: Sweep, space: Space, storage: "BaseStorage") -> "Study":
    """Create the sweep's study in its storage, or open it if it exists. Return the study.

    The points to try first are queued in it.

    Args:
        sweep: Sweep file and base recipe.
        space: Search space. An existing study must have the same one.
        storage: Optuna storage that has the study or gets it.

    Raises:
        RunError: The existing study is damaged, or was made for another search or another sweep's folder.
    """
    import optuna

    config = sweep.config
    ours = space.identity() | {"metrics": list(config.metrics), "modes": list(config.modes)}
    found = _existing(config, storage)
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
    # Make a new sampler with another seed: with the same seed, a resumed sweep would draw the same values again.
    study.sampler = _sampler(config, len(study.get_trials(deepcopy=False)))
    _enqueue(study, config, space)
    return study


def _existing(config: SweepConfig, storage: "BaseStorage") -> "Study | None":
    """Load the sweep's study from its Optuna storage. Return None if the storage does not have it yet.

    Raises:
        RunError: The study is damaged. Or the study is missing, but runs of its trials exist.
    """
    import optuna

    # Read the whole study once, to find damage before a trial is trained.
    with study_errors(study_url(config), opening=True):
        if config.name in {summary.study_name for summary in optuna.get_all_study_summaries(storage)}:
            study = optuna.load_study(study_name=config.name, storage=storage)
            json.loads(study.user_attrs.get(SPACE, "{}"))
            study.get_trials(deepcopy=False)
            return study
    if SweepPlace(config.place).has_runs():
        runs = below(config.place, TRIALS)
        raise RunError(
            f"{without_password(study_url(config))} has no study '{config.name}', and {runs} has runs of its trials. "
            f"Put the study back, give this sweep another name (name=...), or delete {config.place} to begin again."
        )
    return None


def _same(ours: JsonObject, study: "Study", config: SweepConfig, runs: str = "runs") -> None:
    """Check that a study was made for this search, so that a sweep does not continue another sweep's study.

    Args:
        ours: Search space, base recipe, metrics and modes of this sweep.
        study: Existing study, which has recorded its own search in an attribute.
        config: Keys of the sweep file.
        runs: Value of the base recipe's key `launch.storage`, which may differ between the two.

    Raises:
        RunError: The study was made for another search. The message names the keys that differ.
    """
    text, place = study.user_attrs.get(SPACE), without_password(study_url(config))
    theirs = _as_today(json.loads(text), runs) if text else None
    if theirs is None and study.get_trials(deepcopy=False):
        raise RunError(f"the study '{config.name}' in {place} was not made by a sweep. Give another name=...")
    keys = differing_keys(theirs or ours, ours)
    if keys:
        raise RunError(
            f"the study '{config.name}' in {place} searched something else; it differs in "
            f"{', '.join(keys)}. Give this sweep another name (name=...), or delete the study and {config.place}."
        )


def _as_today(identity: JsonObject, storage: str) -> JsonObject:
    """Update the base recipe that a study stored, so that it can be compared: new recipe keys get their defaults.

    Args:
        identity: Search space and base recipe, as the study stored them.
        storage: Value for the recipe's key `launch.storage`, which studies do not store.

    Returns:
        A copy of `identity` with the updated recipe; `identity` itself if this version of stssl cannot read the recipe.
    """
    try:
        own = identity["recipe"]
        if not isinstance(own, dict):
            return identity
        recipe = validate(Recipe, {"name": "study", **own, "launch": {"storage": storage}}, "the study")
    except (ConfigError, KeyError):
        return identity
    return {**identity, "recipe": json.loads(json.dumps(recipe.identity()))}


def _one_folder(study: "Study", config: SweepConfig) -> None:
    """Check that a study belongs to this sweep's folder, because another folder lacks the runs of the study's trials.

    If the study has no folder yet, record this one in it.

    Args:
        study: Study in a storage that several sweeps may use.
        config: Keys of the sweep file, which name the folder.

    Raises:
        RunError: The study belongs to another folder.
    """
    path, theirs = config.folder / "study.id", study.user_attrs.get(FOLDER)
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    advice = "Put it back as it was, or give this sweep another name (name=...)."
    mark = read_bounded(path, MARK_BYTES, RunError, advice).decode("utf-8", "replace")
    if theirs is None:
        study.set_user_attr(FOLDER, [mark, f"{socket.gethostname()}:{config.place}"])
    elif theirs[0] != mark:
        raise RunError(
            f"the study '{config.name}' in {without_password(study_url(config))} keeps its runs in {theirs[1]}, and "
            f"not in {config.place}. Continue it there (storage=...), or give this sweep another name (name=...)."
        )


def _sampler(config: SweepConfig, drawn: int) -> "BaseSampler":
    """Return the Optuna sampler (method that chooses the values of trials) that a sweep file names.

    Its seed depends on `drawn`, the number of trials so far, because a resumed sweep must not choose the same values
    again.
    """
    import optuna

    chosen, seed = config.sampler, config.seed * 100_003 + drawn
    with _quiet():
        if chosen.name == "tpe":
            # Some keys exist only with one kind of a section. `multivariate` with `group` fits one model to each set of
            # keys that occur together. Plain TPE would treat all keys as independent.
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=chosen.startup, multivariate=True, group=True)
        if chosen.name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=chosen.startup)
        if chosen.name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=chosen.population)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(sweep: Sweep) -> "BasePruner":
    """Return the Optuna pruner: the rule of the sweep file that stops bad trials early.

    The pruner decides from the study alone, so a resumed sweep decides in the same way.
    """
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


def _enqueue(study: "Study", config: SweepConfig, space: Space) -> None:
    """Queue the trials that a study must train first: the points of the sweep file, and all points of a grid search.

    Leave out points that an earlier start queued.

    Args:
        study: Study that gets the trials.
        config: Keys of the sweep file.
        space: Search space.
    """
    points = [space.point(point, f"points[{i}]") for i, point in enumerate(config.points)]
    if config.sampler.name == "grid":
        points += [point for point in space.grid() if point not in points]
    for number in range(study.user_attrs.get("points", 0), len(points)):
        # If the process is killed between these two lines, the next start queues the point again. `skip_if_exists`
        # prevents a second trial with it.
        study.enqueue_trial(points[number], skip_if_exists=True)
        study.set_user_attr("points", number + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Return a context that hides Optuna's warnings about experimental options and repeated reports."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Book:
    """Manage the trials of a sweep's study: give out the next trial, and record each trial's scores and end."""

    def __init__(self, sweep: Sweep, space: Space, study: "Study") -> None:
        """Prepare to give out trials, first those that were still running when an earlier process of the sweep ended.

        Args:
            sweep: Sweep file and base recipe.
            space: Search space.
            study: Study of the sweep.
        """
        from optuna.trial import Trial, TrialState

        self.sweep, self.space, self.study = sweep, space, study
        states = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # Optuna has no public function to continue a running trial. A `Trial` with the same id continues it.
        self.interrupted = [Trial(study, frozen._trial_id) for frozen in states]
        self.started: float | None = None
        self.spent = self.hours

    def __deepcopy__(self, memo: dict[int, object]) -> "Book":
        """Return this object itself: Ray Tune copies its arguments, and a copy would miss later changes."""
        return self

    def send(self) -> None:
        """Send the study's file to the object store. Do nothing if the sweep or its study is stored elsewhere.

        Raises:
            DataError: The object store refuses the file, or does not answer.
            RunError: The study cannot be copied.
        """
        if self.sweep.config.study is None:
            SweepPlace(self.sweep.place).send_study()

    @property
    def hours(self) -> float:
        """Return the hours that the sweep took in all its starts together, as the study recorded them."""
        return float(self.study.user_attrs.get("hours", 0.0))

    def tick(self) -> None:
        """Record in the study how many hours the sweep has taken so far, because its process may be killed."""
        self.started = self.started or time.time()
        self.study.set_user_attr("hours", self.spent + (time.time() - self.started) / 3600)

    def next(self) -> "tuple[Trial, TrialValues] | None":
        """Return the next trial to train, and its values of the searched keys. Return None if no trial is left.

        Trials that were interrupted come first. The second item of the tuple is a dict from dotted recipe key to value.
        """
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

    def again(self, trial: "Trial") -> bool:
        """Hand out a trial again later, because its driver (the process that controls it) died, and return True.

        If drivers of this trial died `DEATHS` times, do not hand it out again, and return False.
        """
        deaths = int(trial.user_attrs.get("deaths", 0)) + 1
        trial.set_user_attr("deaths", deaths)
        if deaths < DEATHS:
            self.interrupted.append(trial)
        return deaths < DEATHS

    def report(self, trial: "Trial", step: int, value: float, seconds: float) -> bool:
        """Record a score and the time of a running trial. Return True if the trial must stop early.

        With several metrics, record only the time, and return False.

        Args:
            trial: Optuna's object of the trial.
            step: Training step of the score.
            value: Score by the sweep's first metric.
            seconds: Seconds that the trial took so far.
        """
        self.tick()
        trial.set_user_attr("seconds", round(seconds, 2))
        if len(self.sweep.config.metrics) > 1:  # Optuna refuses reports of a study with several metrics
            return False
        with _quiet():  # a resumed trial reports its earlier validations again, and Optuna warns about that
            trial.report(value, step)
        return bool(trial.should_prune())

    def complete(self, trial: "Trial", values: list[float]) -> None:
        """Record that a trial was trained to its end. `values` has its score for each metric of the sweep."""
        self.study.tell(trial, values)

    def stop(self, trial: "Trial") -> None:
        """Record that a trial was stopped early, because its scores were bad."""
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: "Trial", reason: str) -> None:
        """Record that a trial failed, and the text `reason`, which says why."""
        from optuna.trial import TrialState

        # Set the attribute before `tell`: Optuna refuses attributes of a trial that has ended.
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)


def run_name(number: int) -> str:
    """Return the name of a trial's run and of its folder, such as `trial-0007` for the trial with the number 7."""
    return f"trial-{number:04d}"


def trial_place(sweep: Sweep, number: int) -> str:
    """Return the path or URL of the folder in which a trial's run lies. `number` is the number of the trial."""
    return below(sweep.place, TRIALS, run_name(number))
