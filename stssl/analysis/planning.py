"""Predict a recipe's cost: time a few real training steps on this machine, and compute the cost of the run.

This process trains like one worker, with one worker's share of each batch. It exchanges no gradients. The time of the
exchange is computed from the size of the gradients.
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
from stssl.base.distributed import reading_threads
from stssl.base.errors import ConfigError, RunError
from stssl.base.logs import LOG
from stssl.base.remote import is_remote
from stssl.recipes.part_counts import announce
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import RunRecipe, load_as
from stssl.recipes.run_data import PixelData
from stssl.training.loop import train_step
from stssl.training.state import TrainState, open_train_state

WARM_UP = 2
"""Number of first steps that are not timed, because they fill caches and memory and are slower."""
MORE = 5
"""Number of batches in the longer of two timed validations. The shorter one has one batch."""


def plan_run(recipe: RunRecipe, machines: Machines, steps: int = 5) -> CostEstimate:
    """Time a few training steps of a recipe on this machine, and return the predicted cost of the whole run.

    This function writes no files.

    Args:
        recipe: Recipe of the planned run.
        machines: Machines of the planned run.
        steps: Number of steps to time, after two steps that are not timed.

    Raises:
        ConfigError: The number of workers is larger than the number of rows in a batch.
        RunError: A worker's share of a batch does not fit into this machine's memory.
    """
    key, least = recipe.least_rows
    if least < machines.workers:
        raise ConfigError(f"{key} {least} is smaller than {machines.workers} workers: no row for each")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.data.threads is None:
        # On the planned machines, workers share the cores. With more threads than one of them has, the measured reading
        # would be too fast.
        data = recipe.data.model_copy(update={"threads": reading_threads(machines.per_node)})
        recipe = recipe.model_copy(update={"data": data})
    train_state = open_train_state(recipe, device)
    for line in announce(recipe, train_state.task.data):
        LOG.info("%s", line)
    last = recipe.schedule.steps - 1
    share = _measure(train_state, machines.workers, steps, last)
    if share is None:
        raise RunError(
            f"one worker's rows of a step do not fit into this machine's memory ({machines.workers} workers). "
            "Plan for more workers, or set batch.micro."
        )
    checkpoint = sum(tensor.nbytes for tensor in _tensors(train_state.checkpoint_state()))
    gradients = sum(part.nbytes for part in train_state.task.step.networks.parameters() if part.requires_grad)
    validation, batchnorm = _validation(train_state, recipe, machines.workers)
    one = share if machines.workers == 1 else _measure(train_state, 1, steps, last)
    # The number of views never falls from step to step, so bisection can find the first step that uses all views.
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
        batchnorm=batchnorm,
    )


def _measure(train_state: TrainState, workers: int, steps: int, start: int) -> Measured | None:
    """Time training steps of one worker with its share of each batch, and return the median times and peak memory.

    Return None if the share does not fit into memory.

    Args:
        train_state: Data and networks of the run. This training changes the weights of the networks.
        workers: Number of workers that share each batch.
        steps: Number of steps to time, after `WARM_UP` steps that are not timed.
        start: Number of the first step, which decides how many views the steps use.
    """
    loader, device = train_state.task.loader, train_state.task.device
    # Act as rank 0 of `workers` ranks: the loader then reads only this worker's rows.
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
                torch.cuda.synchronize()  # wait for the GPU: its kernels run after the calls return
            loading.append(loaded - before)
            taken.append(time.perf_counter() - loaded)
    except torch.OutOfMemoryError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux returns KiB
    memory = int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else peak
    rows = loader.rows_at(start) // workers
    return Measured(statistics.median(taken[WARM_UP:]), statistics.median(loading[WARM_UP:]), rows, memory)


def _validation(train_state: TrainState, recipe: RunRecipe, workers: int) -> tuple[float, float]:
    """Predict the seconds of a validation that all workers share, from short validations that are timed here.

    The prediction is a fixed time, plus a time for each patch that a worker scores, plus the time of new BatchNorm
    statistics, whose batches the workers share too.

    Args:
        train_state: Data and networks of the run.
        recipe: Recipe of the planned run.
        workers: Number of workers.

    Returns:
        Seconds of a validation, and how many of them compute BatchNorm statistics.
    """
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

    taken(1)  # not timed: the first validation is slower, because it fills caches and memory
    whole = taken(1)
    # Switch off BatchNorm statistics: they take so long that the time of a few more batches would not show.
    little, much = (min(taken(batches, batchnorm_batches=0) for _ in range(2)) for batches in (1, MORE))
    train_state.task.recipe = recipe
    first, last = (min(total, batches * options.batch) for batches in (1, MORE))
    growing = max(0.0, much - little) / (last - first) if last > first else 0.0
    batchnorm = max(0.0, whole - little)
    count = max(1, options.batchnorm_batches)
    shared = batchnorm * math.ceil(count / workers) / count
    return max(0.0, whole - batchnorm - growing * first) + shared + growing * total / workers, shared


def _stored_bytes(train_state: TrainState) -> float:
    """Return the number of bytes that a run reads from its store for one patch.

    A run reads all bands of each pixel array that has a band of its recipe.

    For a store on disk, this is the compressed size; for a store in an object store, the size without compression.
    """
    data: PixelData = train_state.task.data
    store, names = data.store, data.reader.layout
    if is_remote(store.path):
        reader = store.reader(train_state.recipe.data.bands)
        return sum(math.prod(shape[1:]) * dtype.itemsize for shape, dtype in reader.shapes(1).values())
    sizes = [path.stat().st_size for name in names for path in Path(store.path, name, "c").rglob("*") if path.is_file()]
    return sum(sizes) / store.size


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield all tensors in `value`, a tensor or nested mappings, such as the state of a checkpoint."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def load(path: Path, overrides: Iterable[str]) -> RunRecipe:
    """Return the training or pretraining recipe in the file `path`, changed by `overrides` of the form `key=value`."""
    return load_as(kind_of(load_tree(path)), path, overrides)


def machines_for(recipe: RunRecipe, nodes: int, per_node: int | None, link: float) -> Machines:
    """Return the machines of a planned run, with the number of workers (training processes) on each.

    Args:
        recipe: Recipe of the planned run.
        nodes: Number of machines.
        per_node: Number of workers on each machine; None divides the recipe's `launch.workers` (the largest number, if
            it is a range) among the machines.
        link: Speed of the network between machines, and to the store, in Gbit/s.
    """
    asked = recipe.launch.workers
    most = max(1, asked[1] if isinstance(asked, tuple) else asked)
    return Machines(nodes, per_node or math.ceil(most / nodes), link)
