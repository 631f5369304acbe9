"""Delete the checkpoints of all but a sweep's best trials, and compute how much disk room its checkpoints need."""

import shutil
from typing import TYPE_CHECKING

from stssl.base.logs import LOG
from stssl.base.paths import is_url
from stssl.base.whole_files import as_size, nearest_folder
from stssl.recipes.build import build_step, without_weights
from stssl.recipes.recipe import Recipe
from stssl.recipes.run_data import open_data
from stssl.sweeps.results import dominates, gains
from stssl.sweeps.spec import Sweep
from stssl.sweeps.study import Book, run_name
from stssl.sweeps.sweep_place import SweepPlace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

COPIES_ENDED = 3
"""Largest number of checkpoints that an ended trial has on disk: last, previous and best."""
COPIES_RUNNING = 4
"""Largest number of checkpoints that a running trial has on disk: one more is being written."""
STATES_OF_OPTIMIZER = {"adamw": 2, "sgd": 1}
"""Number of values that an optimizer keeps for each trained weight."""


def tidy(book: Book) -> None:
    """Delete the checkpoints of trials that ended, except those of the best trials.

    The sweep file's key `keep` says how many trials keep their checkpoints. Running trials always keep theirs. The
    student networks, metrics and records of all trials stay. `book` manages the sweep's study and trials.
    """
    keep = book.sweep.config.keep
    if keep == "all":
        return
    ended = [t for t in book.study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED", "FAIL")]
    others = sorted(ended, key=lambda trial: _rank(book, trial, ended))[keep:]
    SweepPlace(book.sweep.place).remove_checkpoints([run_name(trial.number) for trial in others])


def _rank(book: Book, trial: "FrozenTrial", among: list["FrozenTrial"]) -> tuple[object, ...]:
    """Return a sort key for a trial that ended. It puts complete trials first, then stopped ones, then failed ones.

    Among trials of the same state, the best come first. With several metrics, these are the trials that no other one
    dominates; after that, the first metric decides.

    Args:
        book: Manager of the sweep's study and trials.
        trial: The trial.
        among: All trials that ended, for the comparison.
    """
    kind = ("COMPLETE", "PRUNED", "FAIL").index(trial.state.name)
    own = _gains(book, trial)
    if not own:
        return kind, True, 0.0, trial.number
    others = [_gains(book, other) for other in among if other.state == trial.state] if len(own) > 1 else []
    return kind, any(dominates(other, own) for other in others if other), -own[0], trial.number


def _gains(book: Book, trial: "FrozenTrial") -> list[float]:
    """Return a trial's score for each metric, so that larger is better: the sign changes if smaller scores are better.

    For a stopped or failed trial, return only its best score by the first metric so far. Return an empty list if it was
    never validated.
    """
    modes = book.sweep.config.modes
    if trial.state.name == "COMPLETE" and trial.values:
        return gains(trial.values, modes)
    on_the_way = [gains([value], modes[:1])[0] for value in trial.intermediate_values.values()]
    return [max(on_the_way)] if on_the_way else []


def checkpoint_bytes(recipe: Recipe) -> int:
    """Return how many bytes a checkpoint of a recipe's run has. Compute this from its networks, without training."""
    step = build_step(without_weights(recipe), open_data(recipe))
    trained = sum(part.nbytes for part in step.networks.parameters() if part.requires_grad)
    state = sum(int(value.nbytes) for value in step.state_dict().values())
    return state + trained * STATES_OF_OPTIMIZER[recipe.optimizer.name]


def needed_bytes(sweep: Sweep, checkpoint: int, at_once: int) -> int:
    """Return how many bytes the checkpoints of a sweep need at most.

    Args:
        sweep: Sweep file and base recipe.
        checkpoint: Bytes of one checkpoint of the base recipe. Trials with other networks may need more or less.
        at_once: Number of trials that run at the same time.
    """
    config = sweep.config
    kept = config.trials if config.keep == "all" else min(config.keep, config.trials)
    return checkpoint * (COPIES_ENDED * kept + COPIES_RUNNING * min(at_once, config.trials))


def room_line(sweep: Sweep, checkpoint: int, at_once: int) -> str:
    """Return a line for the user about the disk room that a sweep's checkpoints need.

    Log a warning if the disk of the sweep's folder has less room. For a sweep in an object store, do not check this.

    Args:
        sweep: Sweep file and base recipe.
        checkpoint: Bytes of one checkpoint.
        at_once: Number of trials that run at the same time.
    """
    needed = needed_bytes(sweep, checkpoint, at_once)
    keep = sweep.config.keep
    whose = "all trials" if keep == "all" else f"the best {keep} trials" if keep > 1 else "the best trial"
    line = f"up to {as_size(needed)} for the checkpoints of {whose} (keep) and of {at_once} running, "
    line += f"{as_size(checkpoint)} each"
    if is_url(sweep.place):
        return line
    disk = nearest_folder(sweep.folder)
    free = shutil.disk_usage(disk).free
    if needed > free:
        LOG.warning(
            "the sweep's checkpoints need up to %s, and %s has %s free: lower keep (now %s) or concurrent, or set "
            "another storage",
            *(as_size(needed), disk, as_size(free), keep),
        )
    return f"{line}; {as_size(free)} free"
