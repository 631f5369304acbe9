"""Predict a recipe's cost: `stssl plan` times a few real steps on this machine and extrapolates.

One process takes the steps of one worker, with as many rows as that worker would have. It exchanges no gradients: that
time is computed from their bytes.
"""

import math
import resource
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from stssl.analysis.costs import CostEstimate, Machines, Measured, exchange_seconds
from stssl.base.config import load_tree
from stssl.base.errors import ConfigError, RunError
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import RunRecipe, load_as
from stssl.recipes.run_data import PixelData
from stssl.store.remote import is_remote
from stssl.training.loop import train_step
from stssl.training.state import TrainState, open_train_state

WARM_UP = 2
"""Steps that are not timed: the first ones bring things into memory."""
MORE = 5
"""Batches of the longer of two kinds of validations that are timed; the shorter has one."""


def plan(recipe: RunRecipe, machines: Machines, steps: int = 5) -> CostEstimate:
    """Take steps of a recipe on this machine, and predict the whole run. Writes nothing.

    Args:
        recipe: Recipe to plan.
        machines: Machines that the run is planned for.
        steps: How many steps to time, after two to warm up.

    Raises:
        ConfigError: There are more workers than rows of a batch.
        RunError: A worker's share of a batch does not fit into this machine's memory.
    """
    key, least = recipe.least_rows
    if least < machines.workers:
        raise ConfigError(f"{key} {least} is smaller than {machines.workers} workers: no row for each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_state = open_train_state(recipe, device)
    last = recipe.schedule.steps - 1
    share = _measure(train_state, machines.workers, steps, last)
    if share is None:
        raise RunError(
            f"one worker's rows of a step do not fit into this machine's memory ({machines.workers} workers). "
            "Plan for more workers, or set batch.micro."
        )
    checkpoint = sum(tensor.nbytes for tensor in _tensors(train_state.checkpoint_state()))
    gradients = sum(part.nbytes for part in train_state.task.step.networks.parameters() if part.requires_grad)
    validation = _validation(train_state, recipe, machines.workers)
    one = share if machines.workers == 1 else _measure(train_state, 1, steps, last)
    # The number of views never falls during a run, so the first step with all of them is found by halving.
    start = bisect_left(range(last), train_state.task.view_count(last), key=train_state.task.view_count)
    early = _measure(train_state, machines.workers, steps, 0) if start >= WARM_UP + steps else None
    stored, rows = _stored_bytes(train_state), train_state.task.rows
    return CostEstimate(
        machines=machines,
        one=one,
        share=share,
        exchange=exchange_seconds(gradients, machines),
        link=rows / machines.nodes * stored * 8 / (machines.link * 1e9),
        validation=validation,
        steps=recipe.schedule.steps,
        validations=math.ceil(recipe.schedule.steps / recipe.schedule.evaluate_every),
        gradients=gradients,
        checkpoint=checkpoint,
        stored=stored,
        rows=rows,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        start=start if early else 0,
        early=early,
    )


def _measure(train_state: TrainState, workers: int, steps: int, start: int) -> Measured | None:
    """Time steps of one worker's rows, as the run takes them at step `start`; None if they do not fit into memory."""
    loader, device = train_state.task.loader, train_state.task.device
    # Read as the first of that many ranks: only its own rows.
    loader.ranks, train_state.progress.step = (0, workers), start
    loading, taken = [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        for number in range(start, start + WARM_UP + steps):
            before = time.perf_counter()
            raw = next(loader.batches(number, number + 1))
            loaded = time.perf_counter()
            train_step(train_state, raw)
            if device.type == "cuda":
                torch.cuda.synchronize()  # kernels run later than their calls, and would be timed with the next step
            loading.append(loaded - before)
            taken.append(time.perf_counter() - loaded)
    except torch.OutOfMemoryError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    memory = int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else peak
    rows = loader.rows_at(start) // workers
    return Measured(statistics.median(taken[WARM_UP:]), statistics.median(loading[WARM_UP:]), rows, memory)


def _validation(train_state: TrainState, recipe: RunRecipe, workers: int) -> float:
    """Predict the seconds of a validation on all workers: a fixed part, and one that grows with the patches."""
    options = recipe.evaluation
    data: PixelData = train_state.task.data
    total = len(data.split.validation)
    total = total if options.limit is None else min(total, options.limit)

    def taken(batches: int, **changes: int) -> float:
        limited = options.model_copy(update={"limit": batches * options.batch, **changes})
        train_state.task.recipe = recipe.model_copy(update={"evaluation": limited})
        before = time.perf_counter()
        with train_state.autocast():
            train_state.task.validate(train_state.next_step)
        return time.perf_counter() - before

    taken(1)  # not counted: the first validation brings things into memory
    whole = taken(1)
    # The batches that settle BatchNorm take so long that the difference of one and five batches would be lost in it.
    little, much = (min(taken(batches, batchnorm_batches=0) for _ in range(2)) for batches in (1, MORE))
    train_state.task.recipe = recipe
    first, last = (min(total, batches * options.batch) for batches in (1, MORE))
    growing = max(0.0, much - little) / (last - first) if last > first else 0.0
    return max(0.0, whole - growing * first) + growing * total / workers


def _stored_bytes(train_state: TrainState) -> float:
    """Compute the stored bytes that reading one patch moves: all bands of each array that has a wanted band."""
    data: PixelData = train_state.task.data
    store, names = data.store, data.reader.layout
    if is_remote(store.path):
        reader = store.reader(train_state.recipe.data.bands)
        return sum(math.prod(shape[1:]) * dtype.itemsize for shape, dtype in reader.shapes(1).values())
    sizes = [path.stat().st_size for name in names for path in Path(store.path, name, "c").rglob("*") if path.is_file()]
    return sum(sizes) / store.size


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def load(path: Path, overrides: Iterable[str]) -> RunRecipe:
    """Read a recipe file, for training or pretraining."""
    return load_as(kind_of(load_tree(path)), path, overrides)


def machines_for(recipe: RunRecipe, nodes: int, per_node: int | None, link: float) -> Machines:
    """Describe the machines of a plan, by default with as many workers together as `launch.workers` says.

    Args:
        recipe: Recipe to plan.
        nodes: Number of machines.
        per_node: Workers on each machine; None divides the recipe's workers among the machines.
        link: Speed of the network between machines in Gbit/s.
    """
    asked = recipe.launch.workers
    most = max(1, asked[1] if isinstance(asked, tuple) else asked)
    return Machines(nodes, per_node or math.ceil(most / nodes), link)
